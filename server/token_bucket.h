// A token bucket: holds at most what a minute brings, and begins full. Exact: in integers, of which one token has as many as make a rate of
// one token a minute one of them a microsecond. Times are a Clock's and do not go back. Not for several threads at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

namespace quire::server {

class TokenBucket {
 public:
  static constexpr int64_t kMostPerMinute = 1'000'000'000;

  // per_minute: 0 = no limit, at most kMostPerMinute.
  TokenBucket(int64_t per_minute, int64_t now_us)
      : per_minute_(per_minute), level_(full_level()), at_us_(now_us) {}

  // Microseconds until it holds `amount`, 0 = it does; none: it never will.
  std::optional<int64_t> wait_us(int64_t amount, int64_t now_us) {
    if (per_minute_ == 0) return 0;
    if (amount > per_minute_) return std::nullopt;
    fill(now_us);
    const int64_t lacking = amount * kUnit - level_;
    return lacking <= 0 ? 0 : (lacking + per_minute_ - 1) / per_minute_;
  }
  // Takes `amount`, or with a negative one gives it back. More may be taken than is there: then it fills from below nothing.
  void take(int64_t amount, int64_t now_us) {
    if (per_minute_ == 0) return;
    fill(now_us);
    level_ =
        std::clamp(level_ - std::clamp(amount, -kMostAmount, kMostAmount) * kUnit, -kMostDebt, full_level());
  }
  bool is_full(int64_t now_us) {
    fill(now_us);
    return level_ == full_level();
  }
  // Whole tokens in it; negative where more was taken.
  int64_t left() const { return level_ / kUnit; }

 private:
  static constexpr int64_t kUnit = 60'000'000;
  static constexpr int64_t kMostAmount = 10 * kMostPerMinute;  // so that no sum overflows
  static constexpr int64_t kMostDebt = int64_t{1} << 60;

  int64_t full_level() const { return per_minute_ * kUnit; }
  void fill(int64_t now_us) {
    const int64_t passed_us = now_us - at_us_;
    at_us_ = now_us;
    if (per_minute_ == 0) return;
    const int64_t until_full_us = (full_level() - level_ + per_minute_ - 1) / per_minute_;
    level_ = passed_us >= until_full_us ? full_level() : level_ + passed_us * per_minute_;
  }

  int64_t per_minute_, level_, at_us_;
};

}  // namespace quire::server
