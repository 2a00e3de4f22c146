// Time as a seam: the real clock in production, a moved one in simulation.
#pragma once

#include <chrono>
#include <cstdint>

namespace quire {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t now_us() const = 0;  // microseconds, monotonic, from an arbitrary start
};

class SteadyClock final : public Clock {
 public:
  int64_t now_us() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

class ManualClock final : public Clock {
 public:
  int64_t now_us() const override { return now_us_; }
  void advance_us(int64_t delta) { now_us_ += delta; }

 private:
  int64_t now_us_ = 0;
};

}  // namespace quire
