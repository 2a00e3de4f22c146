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

struct Avx512Bf16Unit {};

// Adds the product of bf16 pairs in one instruction. It rounds after each product and takes subnormals as
// zero.
struct Avx512Bf16Vec : Avx512Vec<Avx512Bf16Unit> {
  static constexpr bool kHasDot = true;
  static Pairs set_pair(const Bf16* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static void store_pairs(void* p, Pairs x) { _mm512_storeu_si512(p, x); }
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
