// Where a token's K and V lie. One decision in one place; kernels take strides.
// Block bytes: [layer of the group][K|V][kv head][token][dim]; the blocks themselves: src/cache/README.md.
#pragma once

#include <cstdint>

#include "src/base/dtype.h"

namespace quire {

struct KvLayout {
  DType dtype = DType::kBF16;
  int32_t num_layers = 0;    // layers of the group that one block holds
  int32_t num_kv_heads = 0;  // heads that one block holds (1 for lists per head)
  int32_t head_dim = 0;
  int32_t block_tokens = 16;

  constexpr int64_t token_bytes() const { return head_dim * bytes_of(dtype); }
  // bytes, one (K or V, head) tile
  constexpr int64_t head_stride() const { return block_tokens * token_bytes(); }
  // K tile of a head to its V tile
  constexpr int64_t kv_stride() const { return num_kv_heads * head_stride(); }
  constexpr int64_t layer_stride() const { return 2 * kv_stride(); }
  constexpr int64_t block_bytes() const { return num_layers * layer_stride(); }
  // K of one token of a block from the block's base; its V lies kv_stride() behind.
  constexpr int64_t k_offset(int64_t layer, int64_t head, int64_t token) const {
    return layer * layer_stride() + head * head_stride() + token * token_bytes();
  }
};

}  // namespace quire
