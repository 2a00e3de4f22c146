// The ops' inner loops for the avx512 level (src/device/cpu_features.h).
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tile_table.h"

namespace quire::cpu {
const OpTable& avx512_ops() {
  static constexpr OpTable kTable = make_table<Avx512Vec>();
  return kTable;
}

}  // namespace quire::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
