// What a FakeExecutor has in place of a model: hashes of the tokens so far.
#pragma once

#include <cstdint>

#include "src/base/ids.h"

namespace quire::fake {

inline constexpr uint64_t kUnknownChain = 0;  // after tokens that a window dropped before the first step

// Multiply to 128 bits and fold: most of what this executor computes is a chain for every token.
inline uint64_t mix(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a ^ 0x9E3779B97F4A7C15ull) *
                       ((b ^ 0xBF58476D1CE4E5B9ull) * 0x94D049BB133111EBull | 1);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A number below bound out of a hash: its high bits, without a division.
inline uint64_t below(uint64_t hash, uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(hash) * bound >> 64);
}

inline uint64_t chain_after(uint64_t before, TokenId token) {
  return mix(before, static_cast<uint64_t>(token) + 1);
}

inline float logprob_of(uint64_t hash) {
  return -0.05f - static_cast<float>(hash % 997) * 0.002f;
}

}  // namespace quire::fake
