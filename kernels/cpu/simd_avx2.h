// Sixteen float lanes as two AVX2 registers, with FMA and F16C. See simd_plain.h for what each function
// means. Included after the unit's target pragma (isa_avx2.cc).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/element.h"

namespace quire::cpu {
namespace {

struct Avx2Vec {
  struct F {
    __m256 low, high;
  };
  struct Pairs {
    __m256i low, high;
  };

  static constexpr bool kHasDot = false;
  static constexpr bool kReadsStrips = true;
  static constexpr int kTileRows = 6;
  // Of 16 registers: 2 per vector for each row's sums, 2 for the weights, 1 for x.
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F load(const Bf16* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  static F load(const F16* p) { return {widen_f16(p), widen_f16(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  static void store(Bf16* p, F x) {
    narrow_bf16(p, x.low);
    narrow_bf16(p + 8, x.high);
  }
  static void store(F16* p, F x) {
    narrow_f16(p, x.low);
    narrow_f16(p + 8, x.high);
  }
  static Pairs load_pairs(const void* p) {
    const auto* words = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
  static F even(Pairs w) {
    return {as_float(_mm256_slli_epi32(w.low, 16)), as_float(_mm256_slli_epi32(w.high, 16))};
  }
  static F odd(Pairs w) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {as_float(_mm256_and_si256(w.low, mask)), as_float(_mm256_and_si256(w.high, mask))};
  }

  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F round(F a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
  }
  static F if_less(F a, F b, F x, F y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
  }
  static F times_power(F x, F n) { return mul(x, {power(n.low), power(n.high)}); }

  static float sum(F x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float highest(F x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }

  static bool any_above(F x, float limit) {
    const __m256 least = _mm256_set1_ps(limit);
    const __m256 above =
        _mm256_or_ps(_mm256_cmp_ps(x.low, least, _CMP_GT_OQ), _mm256_cmp_ps(x.high, least, _CMP_GT_OQ));
    return _mm256_movemask_ps(above) != 0;
  }

  // Sixteen rows of sixteen as four 8 x 8 squares; the two off the diagonal change places.
  static void transpose(F rows[16]) {
    __m256 a[8], b[8], c[8], d[8];
    for (int i = 0; i < 8; ++i) {
      a[i] = rows[i].low, b[i] = rows[i].high;
      c[i] = rows[i + 8].low, d[i] = rows[i + 8].high;
    }
    square(a), square(b), square(c), square(d);
    for (int i = 0; i < 8; ++i) {
      rows[i] = {a[i], c[i]};
      rows[i + 8] = {b[i], d[i]};
    }
  }
  static void transpose(Pairs rows[16]) {
    F as_floats[16];
    for (int i = 0; i < 16; ++i) as_floats[i] = {as_float(rows[i].low), as_float(rows[i].high)};
    transpose(as_floats);
    for (int i = 0; i < 16; ++i) {
      rows[i] = {_mm256_castps_si256(as_floats[i].low), _mm256_castps_si256(as_floats[i].high)};
    }
  }

 private:
  static __m256 as_float(__m256i x) { return _mm256_castsi256_ps(x); }
  static __m256 widen_bf16(const Bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m256 widen_f16(const F16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void narrow_f16(F16* p, __m256 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  // As f32_to_bf16: nearest even, NaN stays NaN.
  static void narrow_bf16(Bf16* p, __m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static __m256 power(__m256 n) {
    return as_float(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static void square(__m256 r[8]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace quire::cpu
