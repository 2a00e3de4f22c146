// The ops' inner loops for the avx512bf16 level (src/device/cpu_features.h).
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/element.h"
#include "kernels/cpu/op_table.h"

// From here on every function is compiled for this level; all headers that others share are above.
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif

#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tile_table.h"

namespace quire::cpu {
namespace {

// Adds the product of bf16 pairs in one instruction. It rounds after each product and takes subnormals as
// zero.
struct Avx512Bf16Vec : Avx512Vec {
  static constexpr bool kHasDot = true;
  static Pairs set_pair(const Bf16* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static void store_pairs(void* p, Pairs x) { _mm512_storeu_si512(p, x); }
  // Word c of each 128-bit part, four times; c is known where loops are unrolled.
  [[gnu::always_inline]] static Pairs repeat_word(Pairs x, int c) {
    return c == 0   ? _mm512_shuffle_epi32(x, _MM_PERM_AAAA)
           : c == 1 ? _mm512_shuffle_epi32(x, _MM_PERM_BBBB)
           : c == 2 ? _mm512_shuffle_epi32(x, _MM_PERM_CCCC)
                    : _mm512_shuffle_epi32(x, _MM_PERM_DDDD);
  }
  // In each 128-bit part: turned[c] = word c of a, b, c and d.
  [[gnu::always_inline]] static void turn_quarters(Pairs a, Pairs b, Pairs c, Pairs d, Pairs (&turned)[4]) {
    const Pairs ab = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const Pairs cd = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    turned[0] = _mm512_unpacklo_epi64(ab, cd);
    turned[1] = _mm512_unpackhi_epi64(ab, cd);
    turned[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    turned[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }
  // Part g of the result is the sum of the four parts of x[g]: (0 + 2) + (1 + 3).
  [[gnu::always_inline]] static F sum_quarters(const F (&x)[4]) {
    const F first =
        _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
    const F second =
        _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88),
                         _mm512_shuffle_f32x4(first, second, 0xdd));
  }
  static Pairs set_word(const float* x) {
    int32_t word;
    __builtin_memcpy(&word, x, sizeof word);
    return _mm512_set1_epi32(word);
  }
  // 16 floats as bf16 in their order, to nearest even; sums[0, 8) += what they became, by twos.
  static void store_and_sum_rounded(float* words, float* sums, F x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), (__m256i)rounded);
    const __m256bh ones = (__m256bh)_mm256_set1_epi16(0x3f80);
    _mm256_storeu_ps(sums, _mm256_dpbf16_ps(_mm256_loadu_ps(sums), rounded, ones));
  }
  // Elements of both taken in turn: of each 128-bit part the first four, and the last four.
  [[gnu::always_inline]] static void pair_slots(Pairs a, Pairs b, Pairs& low, Pairs& high) {
    low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
  }
  // 128-bit parts of both taken in turn.
  static void interleave(F low, F high, F& first, F& second) {
    const __m512i of_first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i of_second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    first = _mm512_permutex2var_ps(low, of_first, high);
    second = _mm512_permutex2var_ps(low, of_second, high);
  }
  static F dot(F sum, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);  // std::bit_cast would not be of this level
  }
};

}  // namespace

const OpTable& avx512bf16_ops() {
  static constexpr OpTable kTable = make_table<Avx512Bf16Vec>();
  return kTable;
}

}  // namespace quire::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
