// Sixteen float lanes as one AVX-512 register. See simd_plain.h for what each function means.
// Included after the unit's target pragma (isa_avx512.cc, isa_avx512bf16.cc).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/element.h"

namespace quire::cpu {
namespace {

struct Avx512Vec {
  using F = __m512;
  using Pairs = __m512i;

  static constexpr bool kHasDot = false;
  static constexpr bool kReadsStrips = true;
  static constexpr int kTileRows = 6;
  // Of 32 registers: 24 sums, 4 for the weights, 1 for x.
  static constexpr int tile_vectors(int) { return 4; }

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static F load(const F16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  // As f32_to_bf16: nearest even, NaN stays NaN, subnormals kept (VCVTNEPS2BF16 would flush them).
  static void store(Bf16* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
  static void store(F16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static Pairs load_pairs(const void* p) { return _mm512_loadu_si512(p); }
  static F even(Pairs w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
  static F odd(Pairs w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F if_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static F times_power(F x, F n) { return _mm512_scalef_ps(x, n); }

  static float sum(F x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float highest(F x) { return _mm512_reduce_max_ps(x); }
  static bool any_above(F x, float limit) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
  }

  [[gnu::always_inline]] static void transpose(F (&rows)[16]) {
    Pairs words[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) words[i] = _mm512_castps_si512(rows[i]);
    transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_castsi512_ps(words[i]);
  }
  // 16 x 16 words: pairs of rows, pairs of pairs, then the 128-bit quarters in two steps. In registers: through
  // memory it takes twice as long.
  [[gnu::always_inline]] static void transpose(Pairs (&rows)[16]) {
    __m512i t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i a = _mm512_shuffle_i32x4(u[i], u[i + 4], 0x88),
                    b = _mm512_shuffle_i32x4(u[i], u[i + 4], 0xdd);
      const __m512i c = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0x88);
      const __m512i d = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0xdd);
      rows[i] = _mm512_shuffle_i32x4(a, c, 0x88);
      rows[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
      rows[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
      rows[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
  }
};

}  // namespace
}  // namespace quire::cpu
