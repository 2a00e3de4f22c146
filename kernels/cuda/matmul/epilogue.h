// What becomes of a product's sums: stored; added to the residual stream; or gated. Each rounds as the op of
// its own would (kernels.h: matmul, then add_rms_norm's delta or silu_mul), so a fused step gives the bits of
// an unfused one with the same sums.
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/vector.h"

namespace quire::QUIRE_SIDE {

// The stored row of the i-th row in the order gate 0, up 0, gate 1, up 1...: groups of eight gate rows and
// eight up rows alternate.
__device__ inline int64_t gated_row(int64_t i) {
  return i / (2 * kGateGroup) * (2 * kGateGroup) + i % 2 * kGateGroup + i / 2 % kGateGroup;
}

// What stands in the residual stream where a sum will be added.
template <class T>
__device__ inline float before_sum(const Product& p, int64_t m, int64_t n) {
  return p.residual == nullptr ? 0.0f : to_f32(load(static_cast<const T*>(p.residual) + m * p.n + n));
}

template <class T>
__device__ inline void put_sum(const Product& p, int64_t m, int64_t n, float sum, float before) {
  if (p.bias != nullptr) sum += load(p.bias + n);
  const int64_t at = m * p.n + n;
  if (p.residual != nullptr) {
    store(static_cast<T*>(p.residual) + at, from_f32<T>(before + rounded<T>(sum)));
  } else if (p.out_f32) {
    store(static_cast<float*>(p.out) + at, sum);
  } else {
    store(static_cast<T*>(p.out) + at, from_f32<T>(sum));
  }
}

// Column i of the gated output, from the sums of its gate row and its up row.
template <class T>
__device__ inline void put_gated(const Product& p, int64_t m, int64_t i, float gate, float up) {
  if (p.bias != nullptr) {
    gate += load(p.bias + gated_row(2 * i));
    up += load(p.bias + gated_row(2 * i + 1));
  }
  store(static_cast<T*>(p.out) + m * (p.n / 2) + i, from_f32<T>(silu(rounded<T>(gate)) * rounded<T>(up)));
}

// Host: at most one of the three.
inline void check_fusion(const Product& p) {
  check(!p.gated || (p.residual == nullptr && !p.out_f32 && p.n % (2 * kGateGroup) == 0),
        "product: a gated output is of the activation type, and its rows alternate in groups of eight");
}

}  // namespace quire::QUIRE_SIDE
