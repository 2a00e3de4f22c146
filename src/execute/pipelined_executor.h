// The executor thread of a device that queues work: it queues the next plan while the step before it runs, then waits for results in
// order. What it waits for is a plan or the end of the oldest step, whichever comes first.
#pragma once

#include <memory>

#include "quire/result.h"
#include "src/execute/executor.h"

namespace quire {

// A step between queueing and its result.
class QueuedStep {
 public:
  virtual ~QueuedStep() = default;
  virtual bool reached() = 0;  // would finish() return at once?
};

// Lives on the executor thread from its first call to its destruction. A bad plan is a status in the result, never an exception.
class QueueingRunner {
 public:
  virtual ~QueueingRunner() = default;
  virtual std::unique_ptr<QueuedStep> queue(std::shared_ptr<const BatchPlan> plan) = 0;
  virtual StepResult finish(QueuedStep& step) = 0;  // in the order of queue()
};

Result<std::unique_ptr<Executor>> make_pipelined_executor(std::unique_ptr<QueueingRunner> runner);

}  // namespace quire
