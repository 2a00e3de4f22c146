// Attention's two products of a strip in f32: where K and V are f32 or f16, or the level has no dot instructions, or activations are f32.
// An output meets dimensions, and then slots, in the order in which many queries meet them (tile_attention.h), by the same instructions.
#pragma once

#include <type_traits>

#include "kernels/cpu/tile_matmul.h"

namespace quire::cpu {
namespace {

// sum[r] = the products of query r, of at most four, with 16 slots, whose K lies in one piece: K of some dimensions is turned in registers.
// Rows of queries are `q_stride` floats apart; dim is a multiple of 32. For each line of K one of `ahead` is asked for.
template <class V, class Kv, int R, class Dim, class Ahead>
[[gnu::always_inline]] inline void multiply_strip(const float* q, int64_t q_stride, const char* keys, Dim dim,
                                                  typename V::F (&sum)[R], const Ahead& ahead) {
  constexpr int64_t kSize = sizeof(Kv);
  const auto add = [&](int64_t i, const typename V::F& of_slots) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] = V::fma(V::set(q[r * q_stride + i]), of_slots, sum[r]);
  };
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = V::zero();
  if constexpr (std::is_same_v<Kv, Bf16>) {  // two dimensions at a time: half the shuffles
    for (int64_t i = 0; i < dim; i += 32) {
      typename V::Pairs square[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) square[j] = V::load_pairs(keys + kSize * (i + j * dim));
      V::transpose(square);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        ahead.ask(kStripSlots * kSize * i + 64 * j);
        add(i + 2 * j, V::even(square[j]));
        add(i + 2 * j + 1, V::odd(square[j]));
      }
    }
  } else {
    for (int64_t i = 0; i < dim; i += 16) {
      typename V::F square[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j)
        square[j] = V::load(reinterpret_cast<const Kv*>(keys + kSize * (i + j * dim)));
      V::transpose(square);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        if (16 * kSize * j % 64 == 0) ahead.ask(kStripSlots * kSize * i + 16 * kSize * j);
        add(i + j, square[j]);
      }
    }
  }
}

// values[r] += weights[r] * V of a strip, for 16 * N columns: V of the first slot's at `rows`, that of the next `row_bytes` on; rows of
// values are `stride` floats apart, rows of weights kTileSlots. For each line of V one of `ahead` is asked for, from `ahead_byte` on.
template <class V, class Kv, int R, int N, class Ahead>
[[gnu::always_inline]] inline void add_strip_columns(const float* weights, const char* rows,
                                                     int64_t row_bytes, float* values, int64_t stride,
                                                     const Ahead& ahead, int64_t ahead_byte) {
  constexpr int64_t kBytes = 16 * N * static_cast<int64_t>(sizeof(Kv));  // of a row
  typename V::F sum[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n] = V::load(values + r * stride + 16 * n);
  }
  for (int64_t slot = 0; slot < kStripSlots; ++slot, rows += row_bytes, ahead_byte += kBytes) {
    if (kBytes >= 64 || slot % 2 == 0)
      for (int64_t byte = 0; byte < kBytes; byte += 64) ahead.ask(ahead_byte + byte);
    FloatProduct<V, Kv>::template add<R, N>(weights + slot, kTileSlots, rows, sum);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) V::store(values + r * stride + 16 * n, sum[r][n]);
  }
}

// The same for all columns of V, rows of which lie one after the other at `of_strip`, as rows of values do.
template <class V, class Kv, int R, class Ahead>
inline void add_strip(const float* weights, const char* of_strip, int64_t dim, float* values,
                      const Ahead& ahead) {
  constexpr int64_t kSize = sizeof(Kv);
  int64_t column = 0;
  const auto add = [&](auto vectors) __attribute__((always_inline)) {
    add_strip_columns<V, Kv, R, vectors>(weights, of_strip + kSize * column, kSize * dim, values + column,
                                         dim, ahead, kStripSlots * kSize * column);
  };
  constexpr int N = V::tile_vectors(R);
  for (; column + 16 * N <= dim; column += 16 * N) add(std::integral_constant<int, N>{});
  for (; column < dim; column += 16) add(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace quire::cpu
