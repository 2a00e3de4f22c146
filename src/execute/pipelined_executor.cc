#include "src/execute/pipelined_executor.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "src/base/check.h"
#include "src/base/threads.h"

namespace quire {
namespace {

constexpr size_t kMaxUnderWay = 2;
constexpr auto kPoll =
    std::chrono::microseconds(20);  // how late a finished step may be noticed while no plan comes

class PipelinedExecutor final : public Executor {
 public:
  explicit PipelinedExecutor(std::unique_ptr<QueueingRunner> runner) : runner_(std::move(runner)) {}

  ~PipelinedExecutor() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    submitted_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  Status start() {
    Result<std::jthread> thread = start_thread("the executor", [this] { serve(); });
    if (!thread) return thread.error();
    thread_ = std::move(*thread);
    return ok();
  }

  void submit(std::shared_ptr<const BatchPlan> plan) override {
    {
      const std::lock_guard lock(mutex_);
      check(plan != nullptr, "executor: no plan");
      check(num_under_way_ < kMaxUnderWay, "executor: at most two steps are under way");
      ++num_under_way_;
      plans_.push_back(std::move(plan));
    }
    submitted_.notify_one();
  }

  StepResult wait() override {
    std::unique_lock lock(mutex_);
    check(num_under_way_ > 0, "executor: nothing was submitted");
    done_.wait(lock, [this] { return !results_.empty(); });
    StepResult result = std::move(results_.front());
    results_.pop_front();
    --num_under_way_;
    return result;
  }

  bool ready() override {
    const std::lock_guard lock(mutex_);
    return !results_.empty();
  }

 private:
  // The next plan; null when there is none and the oldest queued step has ended, or when all is over.
  std::shared_ptr<const BatchPlan> next_plan() {
    std::unique_lock lock(mutex_);
    const auto something = [this] { return stopping_ || !plans_.empty(); };
    if (queued_.empty()) {
      submitted_.wait(lock, something);
    } else {
      while (!something() && !queued_.front()->reached()) submitted_.wait_for(lock, kPoll);
    }
    if (plans_.empty()) return nullptr;
    std::shared_ptr<const BatchPlan> plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

  void deliver_oldest() {
    StepResult result = runner_->finish(*queued_.front());
    queued_.pop_front();  // lets the plan go before its result is seen
    {
      const std::lock_guard lock(mutex_);
      results_.push_back(std::move(result));
    }
    done_.notify_one();
  }

  void serve() {
    while (true) {
      std::shared_ptr<const BatchPlan> plan = next_plan();
      if (plan == nullptr && queued_.empty()) break;
      const bool has_plan = plan != nullptr;
      if (has_plan) queued_.push_back(runner_->queue(std::move(plan)));
      if (!has_plan || queued_.size() == kMaxUnderWay || queued_.front()->reached()) deliver_oldest();
    }
    runner_.reset();  // the device is let go by the thread that used it
  }

  std::unique_ptr<QueueingRunner> runner_;
  std::deque<std::unique_ptr<QueuedStep>> queued_;  // executor thread only
  std::mutex mutex_;
  std::condition_variable submitted_, done_;
  std::deque<std::shared_ptr<const BatchPlan>> plans_;
  std::deque<StepResult> results_;
  size_t num_under_way_ = 0;
  bool stopping_ = false;
  std::jthread thread_;
};

}  // namespace

Result<std::unique_ptr<Executor>> make_pipelined_executor(std::unique_ptr<QueueingRunner> runner) {
  auto executor = std::make_unique<PipelinedExecutor>(std::move(runner));
  if (Status started = executor->start(); !started) return started.error();
  return std::unique_ptr<Executor>(std::move(executor));
}

}  // namespace quire
