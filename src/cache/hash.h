// 64-bit mixing for finding, never for deciding: whatever a hash finds is confirmed by tokens or by a whole
// key. Multiply to 128 bits and fold, the step that wyhash is made of.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "src/base/ids.h"

namespace quire {

inline constexpr uint64_t kHashSeed = 0x9E3779B97F4A7C15ull;

inline uint64_t mix(uint64_t a, uint64_t b) {
  const auto product =
      static_cast<unsigned __int128>(a ^ 0xA0761D6478BD642Full) * (b ^ 0xE7037ED1A0B428DBull);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Of the tokens alone; an even number of them. Four chains, so that the multiplications overlap.
inline uint64_t hash_tokens(std::span<const TokenId> tokens) {
  uint64_t lanes[4] = {kHashSeed, kHashSeed + 1, kHashSeed + 2, kHashSeed + 3};
  for (size_t i = 0; i + 1 < tokens.size(); i += 2) {
    uint64_t pair;
    std::memcpy(&pair, &tokens[i], sizeof pair);
    lanes[(i / 2) & 3] = mix(lanes[(i / 2) & 3], pair);
  }
  return mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3]));
}

}  // namespace quire
