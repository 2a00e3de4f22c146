#include "benchmarks/sim/timeline.h"

#include <algorithm>
#include <utility>

namespace quire {

SimMoment& SimMoment::operator+=(const SimMoment& other) {
  seconds += other.seconds;
  running += other.running;
  waiting += other.waiting;
  held_share += other.held_share;
  cached_share += other.cached_share;
  asked_tokens += other.asked_tokens;
  found_tokens += other.found_tokens;
  looks += other.looks;
  return *this;
}

void Timeline::begin_episode() {
  episode_start_s_ = last_s_;
  asked_before_ = found_before_ = 0;
}

void Timeline::look(double episode_seconds, const EngineStats& stats) {
  last_s_ = episode_start_s_ + episode_seconds;
  if (moments_.empty() || moments_.back().looks == looks_each_) {
    if (moments_.size() == kMostMoments) halve();
    moments_.emplace_back();
  }
  const double blocks = std::max(1, stats.blocks_total);
  moments_.back() +=
      {.seconds = last_s_,
       .running = static_cast<double>(stats.sequences_running),
       .waiting = static_cast<double>(stats.requests_waiting),
       .held_share = stats.blocks_held / blocks,
       .cached_share = stats.blocks_cached / blocks,
       .asked_tokens = stats.prefix_queries_tokens_total -
                       std::exchange(asked_before_, stats.prefix_queries_tokens_total),
       .found_tokens = stats.cached_tokens_total - std::exchange(found_before_, stats.cached_tokens_total),
       .looks = 1};
}

void Timeline::halve() {
  for (size_t i = 0; i < kMostMoments / 2; ++i) {
    moments_[i] = moments_[2 * i];
    moments_[i] += moments_[2 * i + 1];
  }
  moments_.resize(kMostMoments / 2);
  looks_each_ *= 2;
}

}  // namespace quire
