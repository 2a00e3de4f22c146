// How a simulated run went over time, in a bounded number of moments: what `quire bench sim --plot` draws.
#pragma once

#include <cstdint>
#include <vector>

#include "quire/engine.h"

namespace quire {

// Sums over the looks that were taken within it; a sum by `looks` is a mean.
struct SimMoment {
  double seconds = 0;  // simulated
  double running = 0, waiting = 0;
  double held_share = 0, cached_share = 0;     // of the cache's blocks; the rest is free
  int64_t asked_tokens = 0, found_tokens = 0;  // prompt tokens looked for in the prefix cache, and found
  int64_t looks = 0;

  SimMoment& operator+=(const SimMoment& other);
};

class Timeline {
 public:
  static constexpr size_t kMostMoments = 1024;

  // Each episode has an engine of its own, whose clock and counters begin at 0.
  void begin_episode();
  void look(double episode_seconds, const EngineStats& stats);
  const std::vector<SimMoment>& moments() const { return moments_; }

 private:
  void halve();

  std::vector<SimMoment> moments_;
  int64_t looks_each_ = 1;  // of a moment; doubles when they become too many
  double episode_start_s_ = 0, last_s_ = 0;
  int64_t asked_before_ = 0, found_before_ = 0;
};

}  // namespace quire
