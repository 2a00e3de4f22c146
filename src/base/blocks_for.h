// Blocks that so many tokens take, of any size; where a step asks, block_size.h.
#pragma once

#include <cstdint>

namespace quire {

inline int64_t blocks_for(int64_t tokens, int32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace quire
