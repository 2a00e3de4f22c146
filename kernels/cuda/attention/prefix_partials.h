// What the cascade's first phase leaves for the second: un-normalised results of shared prefixes.
#pragma once

#include "kernels/cuda/attention/paged_kv.h"

namespace quire::QUIRE_SIDE {

// Floats of a row: values, largest, sum, zeros to whole sectors of 32 bytes, which a card writes as they are; of one that
// comes in two pieces it keeps a mask.
constexpr int prefix_row_floats(int head_dim) {
  return head_dim + 8;
}

// Row m = (node, member) in node order; a node's slots may be cut in `splits` parts.
struct PrefixPartials {
  const float* rows = nullptr;  // [members][splits][num_q_heads][prefix_row_floats()]
  const int32_t* member_start =
      nullptr;  // [num_sequences + 1] into members_of_sequence, or null: no shared prefixes
  const int32_t* members_of_sequence = nullptr;  // rows m of each sequence
  int32_t splits = 0;
};

}  // namespace quire::QUIRE_SIDE
