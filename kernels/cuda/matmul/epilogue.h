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

// ---- two neighbouring columns at once: n is even; nothing where m or n lies outside ------------------------------
template <class T>
__device__ inline float2 before_pair(const Product& p, int64_t m, int64_t n) {
  if (p.residual == nullptr || m >= p.m || n >= p.n) return make_float2(0, 0);
  if (p.n % 2 == 0)
    return unpack2<T>(
        load(reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.residual) + m * p.n + n)));
  return make_float2(before_sum<T>(p, m, n), n + 1 < p.n ? before_sum<T>(p, m, n + 1) : 0.0f);
}

template <class T>
__device__ inline void put_pair(const Product& p, int64_t m, int64_t n, float2 sum, float2 before) {
  if (m >= p.m || n >= p.n) return;
  if (p.n % 2 != 0) {
    put_sum<T>(p, m, n, sum.x, before.x);
    if (n + 1 < p.n) put_sum<T>(p, m, n + 1, sum.y, before.y);
    return;
  }
  if (p.bias != nullptr) sum.x += load(p.bias + n), sum.y += load(p.bias + n + 1);
  const int64_t at = m * p.n + n;
  if (p.residual != nullptr) {
    store(reinterpret_cast<uint32_t*>(static_cast<T*>(p.residual) + at),
          pack2<T>(before.x + rounded<T>(sum.x), before.y + rounded<T>(sum.y)));
  } else if (p.out_f32) {
    store(reinterpret_cast<float2*>(static_cast<float*>(p.out) + at), sum);
  } else {
    store(reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + at), pack2<T>(sum.x, sum.y));
  }
}

// n: the stored row of the first gate column; its up column is kGateGroup further.
template <class T>
__device__ inline void put_gated_pair(const Product& p, int64_t m, int64_t n, float2 gate, float2 up) {
  if (m >= p.m || n >= p.n) return;
  const int64_t i = n / (2 * kGateGroup) * kGateGroup + n % kGateGroup;
  if (p.bias != nullptr) {
    gate.x += load(p.bias + n), gate.y += load(p.bias + n + 1);
    up.x += load(p.bias + n + kGateGroup), up.y += load(p.bias + n + kGateGroup + 1);
  }
  store(reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + m * (p.n / 2) + i),
        pack2<T>(silu(rounded<T>(gate.x)) * rounded<T>(up.x), silu(rounded<T>(gate.y)) * rounded<T>(up.y)));
}

// ---- eight neighbouring columns of a row at once: n is a multiple of eight; nothing where m or n lies outside -------
template <class T>
__device__ inline void add_bias_chunk(const Product& p, int64_t n, Chunk& c) {
  if (p.bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) c.v[i] += load(p.bias + n + i);
}

// The output is of the activation type, or the residual stream.
template <class T>
__device__ inline void put_chunk(const Product& p, int64_t m, int64_t n, Chunk c) {
  if (m >= p.m || n >= p.n) return;
  add_bias_chunk<T>(p, n, c);
  const int64_t at = m * p.n + n;
  if (p.residual == nullptr) return store_chunk(static_cast<T*>(p.out) + at, c);
  T* const to = static_cast<T*>(p.residual) + at;
  const Chunk before = load_chunk(static_cast<const T*>(to));
#pragma unroll
  for (int i = 0; i < kChunk; ++i) c.v[i] = before.v[i] + rounded<T>(c.v[i]);
  store_chunk(to, c);
}

// n: the stored row of the first of eight gate columns; their up columns are kGateGroup further.
template <class T>
__device__ inline void put_gated_chunk(const Product& p, int64_t m, int64_t n, Chunk gate, Chunk up) {
  if (m >= p.m || n >= p.n) return;
  add_bias_chunk<T>(p, n, gate);
  add_bias_chunk<T>(p, n + kGateGroup, up);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) gate.v[i] = silu(rounded<T>(gate.v[i])) * rounded<T>(up.v[i]);
  store_chunk(static_cast<T*>(p.out) + m * (p.n / 2) + n / 2, gate);
}

// Host: at most one of the three.
inline void check_fusion(const Product& p) {
  check(!p.gated || (p.residual == nullptr && !p.out_f32 && p.n % (2 * kGateGroup) == 0),
        "product: a gated output is of the activation type, and its rows alternate in groups of eight");
}

}  // namespace quire::QUIRE_SIDE
