// Attention's two products where K and V are bf16 and the level has dot instructions (AVX512_BF16).
//
// Logits: K of four slots is turned within 128-bit parts only, in half the shuffles of a whole turn: of each 64
// bytes, quarter p of vector c then holds pair 4 p + c of the four slots. It meets the query's line with word c of each
// quarter four times, and each logit is the sum of its four quarters' sums, whether K is turned on the way (a few
// queries: nothing but memory is waited for) or once for many queries. Words are repeated on the way too: queries laid out
// that way took four times the room, most of the first cache for 32 of them.
// Values: a weight is rounded to bf16, as a tensor core's second product takes it, and meets V of two slots in one
// instruction; the sum that lse is of stays that of the unrounded ones. Of each eight columns the first four lie apart
// from the last, as the interleaving within 128-bit parts leaves them.
#pragma once

#include <algorithm>

#include "kernels/cpu/op_table.h"

namespace quire::cpu {
namespace {

// Bytes of a query in whole lines.
inline int64_t query_bytes(int64_t dim) {
  return turned_dim(dim) * static_cast<int64_t>(sizeof(Bf16));
}

// sums[r][g] += the dots of query r with four slots each, of one line; rows of K are `row_bytes` apart.
template <class V, int R, int G, class RowBytes, class Ahead>
[[gnu::always_inline]] inline void dot_line(const char* q, int64_t q_bytes, const char* keys,
                                            RowBytes row_bytes, typename V::F (&sum)[R][G],
                                            const Ahead& ahead, int64_t ahead_byte) {
  // Two vectors of a turned group at a time: all of four groups would not fit into registers.
  constexpr int kAtOnce = 2;
  typename V::Pairs of_query[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    of_query[r] = V::load_pairs(q + r * q_bytes);
    // Or the compiler loads it again for each word, and requests for memory wait for the same ports.
    asm volatile("" : "+v"(of_query[r]));
  }
#pragma GCC unroll 2
  for (int first = 0; first < 4; first += kAtOnce) {
    typename V::Pairs k[G][4];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const char* const four = keys + 4 * g * row_bytes;
      V::turn_quarters(V::load_pairs(four), V::load_pairs(four + row_bytes),
                       V::load_pairs(four + 2 * row_bytes), V::load_pairs(four + 3 * row_bytes), k[g]);
    }
#pragma GCC unroll 4
    for (int c = first; c < first + kAtOnce; ++c) {
#pragma GCC unroll 4
      for (int g = R; g < G; ++g) ahead.ask(ahead_byte + 64 * (G * c + g));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        ahead.ask(ahead_byte + 64 * (G * c + r));  // apart from each other: bursts are lost
        const typename V::Pairs pairs = V::repeat_word(of_query[r], c);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[r][g] = V::dot(sum[r][g], pairs, k[g][c]);
      }
    }
    asm volatile("" ::: "memory");  // or the compiler keeps all of k
  }
}

template <int R, int N, class V>
[[gnu::always_inline]] inline void clear(typename V::F (&sum)[R][N]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = V::zero();
  }
}

// sum[r] = the dots of query r, of at most four, with 16 slots, whose K lies in one piece. For each line of K one of
// `ahead` is asked for.
template <class V, int R, class Dim, class Ahead>
[[gnu::always_inline]] inline void dot_strip(const char* q, int64_t q_bytes, const char* keys, Dim dim,
                                             typename V::F (&sum)[R], const Ahead& ahead) {
  constexpr int kGroups = kStripSlots / 4;
  typename V::F parts[R][kGroups];
  clear<R, kGroups, V>(parts);
  for (int64_t byte = 0; byte < 2 * dim; byte += 64)
    dot_line<V, R, kGroups>(q + byte, q_bytes, keys + byte, 2 * dim, parts, ahead, kStripSlots * byte);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = V::sum_quarters(parts[r]);
}

// The same of K that lies turned, `step_bytes` from each c to the next: the same sums in the same order.
template <class V, int R>
[[gnu::always_inline]] inline void dot_turned(const char* q, int64_t q_bytes, const char* turned,
                                              int64_t step_bytes, int64_t dim, typename V::F (&sum)[R]) {
  typename V::F parts[R][4];
  clear<R, 4, V>(parts);
  for (int64_t line = 0; line < query_bytes(dim); line += 64) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c, turned += step_bytes) {
      typename V::Pairs k[4];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) k[g] = V::load_pairs(turned + 64 * g);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename V::Pairs pairs = V::repeat_word(V::load_pairs(q + r * q_bytes + line), c);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) parts[r][g] = V::dot(parts[r][g], pairs, k[g]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = V::sum_quarters(parts[r]);
}

// values[r] += weights[r] * V of some slots (an even number), V of the columns in question at value_of(slot), for 16 * N
// columns; rows of values are `dim` apart, rows of weights, two slots a word, kTileSlots. For each line of V one of
// `ahead` is asked for, from `ahead_byte` on.
template <class V, int R, int N, class ValueOf, class Slots, class Dim, class Ahead>
[[gnu::always_inline]] inline void add_weighted(const float* weights, const ValueOf& value_of, Slots slots,
                                                float* values, Dim dim, const Ahead& ahead,
                                                int64_t ahead_byte) {
  typename V::F sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = V::load(values + r * dim + 16 * n);
  }
  for (int64_t slot = 0; slot < slots; slot += 2) {
    const char *const row = value_of(slot), *const other = value_of(slot + 1);
    typename V::Pairs weight[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) weight[r] = V::set_word(weights + r * kTileSlots + slot / 2);
#pragma GCC unroll 4
    for (int line = 0; line < N / 2; ++line) {
      ahead.ask(ahead_byte + 32 * N * slot + 64 * line);
      typename V::Pairs low, high;
      V::pair_slots(V::load_pairs(row + 64 * line), V::load_pairs(other + 64 * line), low, high);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][2 * line] = V::dot(sum[r][2 * line], weight[r], low);
      ahead.ask(ahead_byte + 32 * N * (slot + 1) + 64 * line);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][2 * line + 1] = V::dot(sum[r][2 * line + 1], weight[r], high);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) V::store(values + r * dim + 16 * n, sum[r][n]);
  }
}

}  // namespace
}  // namespace quire::cpu
