// The table of one instruction set from its vector type.
#pragma once

#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/tile_rows.h"

namespace quire::cpu {

template <class V>
constexpr OpTable make_table() {
  return {.embed = embed<V>,
          .add_rms_norm = add_rms_norm<V>,
          .rope_kv_write = rope_kv_write<V>,
          .silu_mul = silu_mul<V>,
          .matmul = matmul<V>,
          .attend = attend<V>,
          .merge_partials = merge_partials<V>,
          .add_column_sums = add_column_sums<V>};
}

}  // namespace quire::cpu
