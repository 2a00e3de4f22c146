// What steps cost and yield: medians over the last few hundred, and the rate of tokens where prompts run. Written by
// the engine thread; the rate is read by any.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace quire {

// Median of the last kSize values, renewed every kEvery: 0.05 us a step.
class RunningMedian {
 public:
  static constexpr size_t kSize = 256, kEvery = 64;
  void add(double value) {
    values_[count_ % kSize] = value;
    ++count_;
    if (count_ % kEvery == 0 || count_ < kEvery) renew();
  }
  double median() const { return median_; }

 private:
  void renew() {
    std::array<double, kSize> sorted = values_;
    const size_t n = std::min<size_t>(count_, kSize);
    std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.begin() + n);
    median_ = sorted[n / 2];
  }
  std::array<double, kSize> values_{};
  uint64_t count_ = 0;
  double median_ = 0;
};

class StepTimer {
 public:
  void planned(int64_t host_us) { plan_us_ += static_cast<double>(host_us); }
  struct Step {
    int64_t now_us = 0, host_us = 0;
    int64_t step_us = 0;  // since the commit before, or since it was submitted if the engine was idle
    int64_t tokens = 0, sequences = 0;
  };
  // The rate is that of steps that run prompts, two tokens and more a sequence: decoding alone says nothing of it.
  void committed(const Step& step) {
    host_us_.add(plan_us_ + static_cast<double>(step.host_us));
    step_ms_.add(static_cast<double>(step.step_us) * 1e-3);
    plan_us_ = 0;
    if (step.tokens < 2 * step.sequences) return;
    prompts_ran_us_ = step.now_us;
    // Of sums: two commits that follow at once make one step look free, and the other dear.
    prompt_us_ = (1 - kSmooth) * prompt_us_ + static_cast<double>(step.step_us);
    prompt_tokens_ = (1 - kSmooth) * prompt_tokens_ + static_cast<double>(step.tokens);
    prompt_steps_ = (1 - kSmooth) * prompt_steps_ + 1;
    if (prompt_us_ > 0) tokens_per_s_.store(1e6 * prompt_tokens_ / prompt_us_, std::memory_order_relaxed);
  }
  void stood_idle(double device_us) { device_idle_us_.add(device_us); }
  double host_us_p50() const { return host_us_.median(); }
  double device_idle_us_p50() const { return device_idle_us_.median(); }
  double step_ms_p50() const { return step_ms_.median(); }
  double tokens_per_s() const { return tokens_per_s_.load(std::memory_order_relaxed); }
  // What a step that runs prompts takes, at least; 0: there was none. Their mean, of which less is believed the longer ago
  // the last was: after a slow one nobody may be let in who would show that it was slow by chance. Engine thread.
  double prompt_step_us(int64_t now_us) const {
    const auto since_us = static_cast<double>(std::max<int64_t>(0, now_us - prompts_ran_us_));
    const double believed = kHalfBelievedUs / (kHalfBelievedUs + since_us);
    return prompt_steps_ > 0 ? believed * prompt_us_ / prompt_steps_ : 0;
  }

 private:
  static constexpr double kSmooth = 1.0 / 32, kHalfBelievedUs = 10e6;
  RunningMedian host_us_, step_ms_, device_idle_us_;
  double plan_us_ = 0;
  int64_t prompts_ran_us_ = 0;  // last
  double prompt_us_ = 0, prompt_tokens_ = 0,
         prompt_steps_ = 0;  // of steps that run prompts, the last ones most
  std::atomic<double> tokens_per_s_{0};
};

}  // namespace quire
