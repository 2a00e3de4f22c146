// portable.h for nvcc: sm_80 and later. See portable.h for what each function means.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "src/base/check.h"

namespace quire::cuda {

// ---- 16-bit floats as bits; conversions are one instruction each ----
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
__device__ inline float to_f32(T x);
template <>
__device__ inline float to_f32<float>(float x) {
  return x;
}
template <>
__device__ inline float to_f32<bf16>(bf16 x) {
  return __uint_as_float(uint32_t(x.bits) << 16);
}
template <>
__device__ inline float to_f32<f16>(f16 x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}

template <class T>
__device__ inline T from_f32(float f);
template <>
__device__ inline float from_f32<float>(float f) {
  return f;
}
template <>
__device__ inline bf16 from_f32<bf16>(float f) {
  bf16 x;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(f));
  return x;
}
template <>
__device__ inline f16 from_f32<f16>(float f) {
  f16 x;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(f));
  return x;
}

template <class T>
__device__ inline uint32_t pack2(float low, float high);
template <>
__device__ inline uint32_t pack2<bf16>(float low, float high) {
  uint32_t u;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
}
template <>
__device__ inline uint32_t pack2<f16>(float low, float high) {
  uint32_t u;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
}
template <class T>
__device__ inline float2 unpack2(uint32_t u) {
  return make_float2(to_f32(T{uint16_t(u)}), to_f32(T{uint16_t(u >> 16)}));
}

// ---- shared memory ----
template <class T>
struct Shared {
  T* pointer;

  __device__ T& operator[](int i) const { return pointer[i]; }
  __device__ Shared operator+(int i) const { return {pointer + i}; }
  template <class U>
  __device__ Shared<U> as() const {
    return {reinterpret_cast<U*>(pointer)};
  }
  __device__ uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }
};

template <class T = char>
__device__ inline Shared<T> dynamic_shared() {
  extern __shared__ __align__(1024) char quire_dynamic_shared[];
  return {reinterpret_cast<T*>(quire_dynamic_shared)};
}

// ---- global memory ----
template <class T>
__device__ inline T load(const T* p) {
  return *p;
}
template <class T>
__device__ inline T load_streaming(const T* p) {
  return __ldcs(p);
}
template <class T>
__device__ inline T load_shared_by_grid(const T* p) {
  return __ldcg(p);
}
template <class T>
__device__ inline void store(T* p, T v) {
  *p = v;
}

// ---- asynchronous copies to shared memory ----
struct EvictFirst {
  uint64_t policy;
};
__device__ inline EvictFirst evict_first() {
  EvictFirst e;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(e.policy));
  return e;
}
// The same place, by a pointer that the compiler takes for each thread's own. ptxas 13.0 splits the target of a copy with a cache policy
// into a thread's part and the uniform base of shared memory, and encodes that form wrongly ([R+UR0], desc[UR1]; neither is written): an
// illegal instruction on an H100. It did so in decode at head sizes 64 and 256. What a shuffle gives cannot be split.
template <class T>
__device__ inline Shared<T> by_thread_pointer(Shared<T> s) {
  const auto bits = reinterpret_cast<unsigned long long>(s.pointer);
  return {reinterpret_cast<T*>(__shfl_sync(~0u, bits, threadIdx.x % 32))};
}
__device__ inline void cp_async16(Shared<char> target, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(target.address()), "l"(source)
               : "memory");
}
__device__ inline void cp_async16_or_zero(Shared<char> target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target.address()), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void cp_async16_evict_first(Shared<char> target, const void* source, EvictFirst e) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(target.address()),
      "l"(source), "l"(e.policy)
      : "memory");
}
__device__ inline void cp_async16_or_zero_evict_first(Shared<char> target, const void* source, bool valid,
                                                      EvictFirst e) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(target.address()),
      "l"(source), "r"(valid ? 16 : 0), "l"(e.policy)
      : "memory");
}
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kNewest>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// ---- warp and block ----
template <class T>
__device__ inline T shfl(T v, int lane) {
  return __shfl_sync(~0u, v, lane);
}
template <class T>
__device__ inline T shfl_xor(T v, int mask) {
  return __shfl_xor_sync(~0u, v, mask);
}
template <class T>
__device__ inline T shfl_up(T v, int n) {
  return __shfl_up_sync(~0u, v, n);
}
// The same number, of which the compiler knows nothing: what is computed from it stays where it stands instead of being kept in registers
// through a loop.
__device__ inline int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ inline bool any(bool p) {
  return __any_sync(~0u, p);
}
__device__ inline uint32_t ballot(bool p) {
  return __ballot_sync(~0u, p);
}
__device__ inline int count_bits(uint32_t u) {
  return __popc(u);
}
__device__ inline void sync_warp() {
  __syncwarp();
}
__device__ inline void sync_threads() {
  __syncthreads();
}
__device__ inline bool sync_threads_or(bool p) {
  return __syncthreads_or(p);
}
__device__ inline void fence_grid() {
  __threadfence();
}

// ---- tensor cores ----
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], Shared<char> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address()));
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<char> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address()));
}
__device__ inline uint32_t movmatrix_trans(uint32_t r) {
  uint32_t t;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(r));
  return t;
}
template <class T>
__device__ inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_16816<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- atomics ----
__device__ inline int32_t atomic_add(int32_t* p, int32_t v) {
  return atomicAdd(p, v);
}
__device__ inline uint32_t atomic_add(uint32_t* p, uint32_t v) {
  return atomicAdd(p, v);
}
__device__ inline float atomic_add(float* p, float v) {
  return atomicAdd(p, v);
}
__device__ inline int32_t atomic_add_in_order(int32_t* p, int32_t v) {
  int32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
__device__ inline uint32_t atomic_max(uint32_t* p, uint32_t v) {
  return atomicMax(p, v);
}
template <class T>
__device__ inline T atomic_add(Shared<T> p, T v) {
  return atomicAdd(p.pointer, v);
}
template <class T>
__device__ inline T atomic_max(Shared<T> p, T v) {
  return atomicMax(p.pointer, v);
}

// ---- maths, float32 ----
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2_approx(float x) {
  return __log2f(x);
}
__device__ inline float reciprocal(float x) {
  return __frcp_rn(x);
}
__device__ inline float rsqrt_approx(float x) {
  return rsqrtf(x);
}
__device__ inline float bits_to_f32(uint32_t u) {
  return __uint_as_float(u);
}
__device__ inline uint32_t f32_to_bits(float f) {
  return __float_as_uint(f);
}

// ---- programmatic dependent launch ----
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- launch ----
struct LaunchConfig {
  dim3 grid{1, 1, 1}, block{1, 1, 1};
  int shared_bytes = 0;
  void* stream = nullptr;  // cudaStream_t
  bool dependent = false;  // programmatic dependent launch; ignored before sm_90
  int carveout =
      -1;  // percent of a multiprocessor's memory that is shared memory (dispatch.h); -1: the driver's choice
};

inline void check_cuda(cudaError_t e, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (e != cudaSuccess) [[unlikely]]
    check_failed(cudaGetErrorString(e), file, line);
}

inline bool device_has_dependent_launch() {
  static const bool has = [] {
    int device = 0, major = 0;
    check_cuda(cudaGetDevice(&device));
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
  }();
  return has;
}

// Runs `kernel` once. The first launch of a kernel raises its shared-memory limit when it needs more than 48
// KiB; one process drives one device, so a flag per kernel is enough.
template <auto kernel, class... Params>
inline void launch(const LaunchConfig& config, const Params&... params) {
  static int raised_to = 48 * 1024;
  if (config.shared_bytes > raised_to) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes));
    raised_to = config.shared_bytes;
  }
  cudaLaunchConfig_t c = {};
  c.gridDim = config.grid;
  c.blockDim = config.block;
  c.dynamicSmemBytes = static_cast<size_t>(config.shared_bytes);
  c.stream = static_cast<cudaStream_t>(config.stream);
  cudaLaunchAttribute attributes[2] = {};
  c.attrs = attributes;
  if (config.dependent && device_has_dependent_launch()) {
    attributes[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[c.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.carveout >= 0) {
    attributes[c.numAttrs].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[c.numAttrs++].val.sharedMemCarveout = static_cast<unsigned>(config.carveout);
  }
  check_cuda(cudaLaunchKernelEx(&c, kernel, params...));
}

}  // namespace quire::cuda
