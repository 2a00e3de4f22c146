// The table of one instruction set from its vector type. This header and all it is made of (tile_*.h, simd_*.h,
// vector_math.h) are compiled once per instruction set, under that unit's target pragma, so everything in them lies in
// unnamed namespaces: of a function that two units share the linker keeps any one copy, perhaps the AVX-512 one for
// a machine without it. tests/kernel/isa_symbols.py reads the objects.
#pragma once

#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/tile_rows.h"

namespace quire::cpu {
namespace {

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

}  // namespace
}  // namespace quire::cpu
