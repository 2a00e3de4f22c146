// Hashes of tokens: they find, and tokens confirm.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "src/base/hash.h"
#include "src/base/ids.h"

namespace quire {

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
