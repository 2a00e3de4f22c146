// A bounded, even choice of values that come one after another (Vitter 1985, Random Sampling with a Reservoir, algorithm R): each of those
// that came is kept with the same chance. Up to its bound it holds them all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/base/random.h"

namespace quire {

class Reservoir {
 public:
  explicit Reservoir(size_t most) : most_(most) {}

  void add(std::span<const float> values) {
    for (const float value : values) {
      ++seen_;
      if (kept_.size() < most_)
        kept_.push_back(value);
      else if (const uint64_t at = random_.below(seen_); at < most_)
        kept_[at] = value;
    }
  }
  const std::vector<float>& kept() const { return kept_; }
  uint64_t seen() const { return seen_; }

 private:
  size_t most_;
  uint64_t seen_ = 0;
  std::vector<float> kept_;
  Random random_{0};  // the same values give the same choice
};

}  // namespace quire
