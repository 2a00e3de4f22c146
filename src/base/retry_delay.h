// The delays after which whoever was refused is told to try again. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace quire {

// Where nothing tells how long it will be: a start, a drain, memory that is full.
inline constexpr int64_t kRetryDelayMs = 1000;

// Of an estimate: no shorter than is worth a call, no longer than an estimate is good for.
inline int64_t retry_delay_of(int64_t estimated_ms) {
  return std::clamp<int64_t>(estimated_ms, 50, 60'000);
}

}  // namespace quire
