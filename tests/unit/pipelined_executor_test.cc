// The executor's thread queues a step while the one before runs, and hands out results in order. Method: a runner whose steps end when the
// test says so; waits have a bound, so that an executor which holds a plan back fails instead of hanging.
#include "src/execute/pipelined_executor.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace quire {
namespace {

// What the test and the executor's thread share.
class Steps {
 public:
  void count_queued() {
    const std::lock_guard lock(mutex_);
    ++num_queued_;
    changed_.notify_all();
  }
  void end(uint64_t through) {
    const std::lock_guard lock(mutex_);
    ended_through_ = through;
    changed_.notify_all();
  }
  bool ended(uint64_t step) {
    const std::lock_guard lock(mutex_);
    return step <= ended_through_;
  }
  void wait_for_end(uint64_t step) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return step <= ended_through_; });
  }
  bool wait_for_queued(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return num_queued_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int num_queued_ = 0;
  uint64_t ended_through_ = 0;
};

class HeldStep final : public QueuedStep {
 public:
  HeldStep(Steps& steps, uint64_t step) : steps_(steps), step_(step) {}
  bool reached() override { return steps_.ended(step_); }
  StepResult wait() {
    steps_.wait_for_end(step_);
    return {.step = step_};
  }

 private:
  Steps& steps_;
  uint64_t step_;
};

class HeldRunner final : public QueueingRunner {
 public:
  explicit HeldRunner(Steps& steps) : steps_(steps) {}
  std::unique_ptr<QueuedStep> queue(std::shared_ptr<const BatchPlan> plan) override {
    steps_.count_queued();
    return std::make_unique<HeldStep>(steps_, plan->step);
  }
  StepResult finish(QueuedStep& step) override { return static_cast<HeldStep&>(step).wait(); }

 private:
  Steps& steps_;
};

std::shared_ptr<const BatchPlan> plan_of(uint64_t step) {
  auto plan = std::make_shared<BatchPlan>();
  plan->step = step;
  return plan;
}

TEST(PipelinedExecutor, QueuesAStepWhileTheOneBeforeRuns) {
  Steps steps;
  const std::unique_ptr<Executor> executor =
      make_pipelined_executor(std::make_unique<HeldRunner>(steps)).value();
  executor->submit(plan_of(1));
  ASSERT_TRUE(steps.wait_for_queued(1));
  for (uint64_t step = 2; step < 6; ++step) {
    executor->submit(plan_of(step));
    EXPECT_TRUE(steps.wait_for_queued(static_cast<int>(step)))
        << "step " << step << " waits for the end of the one before";
    EXPECT_FALSE(executor->ready());
    steps.end(step - 1);
    EXPECT_EQ(executor->wait().step, step - 1);
  }
  steps.end(5);
  EXPECT_EQ(executor->wait().step, 5u);
}

// Its result is not held back for a plan that does not come.
TEST(PipelinedExecutor, HandsOutAStepThatEndsWithNoneBehindIt) {
  Steps steps;
  const std::unique_ptr<Executor> executor =
      make_pipelined_executor(std::make_unique<HeldRunner>(steps)).value();
  executor->submit(plan_of(1));
  ASSERT_TRUE(steps.wait_for_queued(1));
  steps.end(1);
  EXPECT_EQ(executor->wait().step, 1u);
}

}  // namespace
}  // namespace quire
