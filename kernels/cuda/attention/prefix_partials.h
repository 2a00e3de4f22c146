// What the cascade's first phase leaves for the second: un-normalised results of shared prefixes (K2).
#pragma once

#include "kernels/cuda/attention/paged_kv.h"

namespace quire::QUIRE_SIDE {

// Row m = (node, member) in node order; a node's slots may be cut in `splits` parts.
struct PrefixPartials {
  const float* rows = nullptr;  // [members][splits][num_q_heads][head_dim + 4]: values, largest, sum
  const int32_t* member_start =
      nullptr;  // [num_sequences + 1] into members_of_sequence, or null: no shared prefixes
  const int32_t* members_of_sequence = nullptr;  // rows m of each sequence
  int32_t splits = 0;
};

}  // namespace quire::QUIRE_SIDE
