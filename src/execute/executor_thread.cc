#include "src/execute/executor_thread.h"

#include <utility>

#include "src/execute/pipelined_executor.h"

namespace quire {
namespace {

// A step that had ended when it was queued.
class EndedStep final : public QueuedStep {
 public:
  explicit EndedStep(StepResult result) : result_(std::move(result)) {}
  bool reached() override { return true; }
  StepResult take() { return std::move(result_); }

 private:
  StepResult result_;
};

// Queues a step by running it to its end: the device is the thread itself.
class RunsToTheEnd final : public QueueingRunner {
 public:
  explicit RunsToTheEnd(std::unique_ptr<StepRunner> runner) : runner_(std::move(runner)) {}

  std::unique_ptr<QueuedStep> queue(std::shared_ptr<const BatchPlan> plan) override {
    return std::make_unique<EndedStep>(runner_->run(*plan));
  }
  StepResult finish(QueuedStep& step) override { return static_cast<EndedStep&>(step).take(); }

 private:
  std::unique_ptr<StepRunner> runner_;
};

}  // namespace

Result<std::unique_ptr<Executor>> make_threaded_executor(std::unique_ptr<StepRunner> runner) {
  return make_pipelined_executor(std::make_unique<RunsToTheEnd>(std::move(runner)));
}

}  // namespace quire
