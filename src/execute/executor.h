// The seam between planning and the device. One engine thread calls; an executor owns its device, streams and sampler states.
// Steps run in the order submitted; at most two are under way, so that step N + 1 is planned while step N runs.
#pragma once

#include <cstdint>
#include <memory>

#include "src/execute/step_result.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class Executor {
 public:
  virtual ~Executor() = default;
  virtual void submit(std::shared_ptr<const BatchPlan> plan) = 0;  // returns at once
  virtual StepResult wait() = 0;       // the oldest submitted step, once it has run
  virtual bool ready() = 0;            // would wait() return at once?
  virtual void recycle(StepResult) {}  // what wait() gave and has been taken in: its memory may serve again
};

}  // namespace quire
