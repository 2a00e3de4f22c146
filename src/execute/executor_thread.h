// The executor thread of a device that has no queue of its own: the thread runs each plan to its end (a pipelined executor whose
// steps have ended by the time they are queued).
#pragma once

#include <memory>

#include "quire/result.h"
#include "src/execute/executor.h"

namespace quire {

// Lives on the executor thread from its first run() to its destruction.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  virtual StepResult run(const BatchPlan& plan) = 0;  // a bad plan or no memory: a status, never an exception
};

// Submitting a third step before waiting for the first is the engine's fault. The plan is let go before its
// result is handed out, so that the engine may use its memory again. The destructor lets submitted steps end.
Result<std::unique_ptr<Executor>> make_threaded_executor(std::unique_ptr<StepRunner> runner);

}  // namespace quire
