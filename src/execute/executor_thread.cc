#include "src/execute/executor_thread.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr size_t kMaxUnderWay = 2;

class ThreadedExecutor final : public Executor {
 public:
  explicit ThreadedExecutor(std::unique_ptr<StepRunner> runner)
      : runner_(std::move(runner)), thread_([this] { serve(); }) {}

  ~ThreadedExecutor() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    submitted_.notify_one();
    thread_.join();
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
  std::shared_ptr<const BatchPlan> next_plan() {
    std::unique_lock lock(mutex_);
    submitted_.wait(lock, [this] { return stopping_ || !plans_.empty(); });
    if (plans_.empty()) return nullptr;
    std::shared_ptr<const BatchPlan> plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

  void serve() {
    while (std::shared_ptr<const BatchPlan> plan = next_plan()) {
      StepResult result = runner_->run(*plan);
      plan.reset();
      {
        const std::lock_guard lock(mutex_);
        results_.push_back(std::move(result));
      }
      done_.notify_one();
    }
    runner_.reset();  // the device is let go by the thread that used it
  }

  std::unique_ptr<StepRunner> runner_;
  std::mutex mutex_;
  std::condition_variable submitted_, done_;
  std::deque<std::shared_ptr<const BatchPlan>> plans_;
  std::deque<StepResult> results_;
  size_t num_under_way_ = 0;  // submitted and not yet waited for
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Executor> make_threaded_executor(std::unique_ptr<StepRunner> runner) {
  return std::make_unique<ThreadedExecutor>(std::move(runner));
}

}  // namespace quire
