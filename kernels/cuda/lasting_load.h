// A read of what later kernels read again, past bytes that would push it out of L2: the last to be evicted. For tables of a few MB.
#pragma once

#include "kernels/cuda/vector.h"

namespace quire::QUIRE_SIDE {

#if defined(__CUDACC__)
__device__ inline float4 load_lasting(const float4* p) {
  float4 v;
  asm volatile(
      "{\n.reg .b64 lasting;\n"
      "createpolicy.fractional.L2::evict_last.b64 lasting, 1.0;\n"
      "ld.global.L2::cache_hint.v4.f32 {%0, %1, %2, %3}, [%4], lasting;\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(p));
  return v;
}
#else
inline float4 load_lasting(const float4* p) {
  return load(p);
}
#endif

// p is aligned to 16 bytes.
__device__ inline Chunk load_lasting_chunk(const float* p) {
  const auto* quads = reinterpret_cast<const float4*>(p);
  const float4 a = load_lasting(quads), b = load_lasting(quads + 1);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

}  // namespace quire::QUIRE_SIDE
