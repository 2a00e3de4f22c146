// Eight elements at a time, as floats: one 16-byte access of a 16-bit type, two of f32.
#pragma once

#include "kernels/cuda/portable.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kChunk = 8;  // elements

struct Chunk {
  float v[kChunk];
};

template <class T>
__device__ inline Chunk unpack_chunk(uint4 u) {
  const float2 a = unpack2<T>(u.x), b = unpack2<T>(u.y), c = unpack2<T>(u.z), d = unpack2<T>(u.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

template <class T>
__device__ inline uint4 pack_chunk(const Chunk& c) {
  return make_uint4(pack2<T>(c.v[0], c.v[1]), pack2<T>(c.v[2], c.v[3]), pack2<T>(c.v[4], c.v[5]),
                    pack2<T>(c.v[6], c.v[7]));
}

// A chunk as it lies in memory: half the registers of a 16-bit type's floats, where many are in flight.
template <class T>
struct RawChunk {
  uint4 u[sizeof(T) * kChunk / sizeof(uint4)];
};
template <class T>
__device__ inline RawChunk<T> load_raw(const T* p) {
  RawChunk<T> raw;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) * kChunk / sizeof(uint4)); ++i)
    raw.u[i] = load(reinterpret_cast<const uint4*>(p) + i);
  return raw;
}
template <class T>
__device__ inline Chunk unpack_chunk(const RawChunk<T>& raw) {
  if constexpr (sizeof(T) == 4) {
    const uint4 a = raw.u[0], b = raw.u[1];
    return {{bits_to_f32(a.x), bits_to_f32(a.y), bits_to_f32(a.z), bits_to_f32(a.w), bits_to_f32(b.x),
             bits_to_f32(b.y), bits_to_f32(b.z), bits_to_f32(b.w)}};
  } else {
    return unpack_chunk<T>(raw.u[0]);
  }
}

// p is aligned to 16 bytes.
template <class T>
__device__ inline Chunk load_chunk(const T* p) {
  if constexpr (sizeof(T) == 4) {
    const float4 a = load(reinterpret_cast<const float4*>(p)),
                 b = load(reinterpret_cast<const float4*>(p) + 1);
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  } else {
    return unpack_chunk<T>(load(reinterpret_cast<const uint4*>(p)));
  }
}

template <class T>
__device__ inline void store_chunk(T* p, const Chunk& c) {
  if constexpr (sizeof(T) == 4) {
    store(reinterpret_cast<float4*>(p), make_float4(c.v[0], c.v[1], c.v[2], c.v[3]));
    store(reinterpret_cast<float4*>(p) + 1, make_float4(c.v[4], c.v[5], c.v[6], c.v[7]));
  } else {
    store(reinterpret_cast<uint4*>(p), pack_chunk<T>(c));
  }
}

// The same where rows do not begin at 16 bytes: `count` (<= 8) elements one by one, zeros after them.
template <class T, bool kVector>
__device__ inline Chunk load_chunk(const T* p, int64_t count) {
  if constexpr (kVector) {
    return load_chunk(p);
  } else {
    Chunk c;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) c.v[i] = i < count ? to_f32(load(p + i)) : 0.0f;
    return c;
  }
}
template <class T, bool kVector>
__device__ inline void store_chunk(T* p, const Chunk& c, int64_t count) {
  if constexpr (kVector) {
    store_chunk(p, c);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) store(p + i, from_f32<T>(c.v[i]));
  }
}

__device__ inline float silu(float x) {
  return x * reciprocal(1.0f + exp2_approx(-kLog2e * x));
}

// A value as the activation type holds it.
template <class T>
__device__ inline float rounded(float f) {
  return to_f32(from_f32<T>(f));
}

}  // namespace quire::QUIRE_SIDE
