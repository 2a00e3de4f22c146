// The device language of the portable kernels: everything a kernel may use, on two sides.
//   nvcc: inline PTX (device_side.h). g++: the host shim (host_shim/), which runs a kernel's threads as
//   fibers and finds faults that a card would show seldom or never.
// Kernels include this header and nothing of CUDA's. Each source is compiled once per side into one program,
// so each side has a namespace of its own: kernels live in `namespace quire::QUIRE_SIDE`. That macro, and
// `__global__` and its kin on the host, are the only ones here.
//
// A kernel is a plain template `template <...> __global__ void name(Params p)` and runs by
//   launch<name<...>>({.grid = g, .block = b, .shared_bytes = n, .stream = s, .dependent = true}, params);
//
// Rules that both sides keep, and that the shim checks when checking is on:
// - Shared memory is reached through Shared<T>, a pointer carved from dynamic_shared(); no `__shared__`.
// - Global memory is reached through load, store and their kin, cp_async16 and atomic_add: no dereference.
// - Warp operations (shuffles, votes, ldmatrix, mma, sync_warp) are run by all 32 lanes, sync_threads by all
//   threads; a thread does not leave before the last of them.
// - A kernel launched `dependent` starts while its predecessor K-1 still runs. Every thread of it calls
//   wait_for_previous_kernel(), writes nothing global before that, and reads before it only what K-1 does
//   not write. It calls let_next_kernel_start() after that wait, so all kernels up to K-2 are complete when
//   K begins.
//
// Pointers   Shared<T> dynamic_shared<T>(); s[i], s + i, s.as<U>()
// Global     load(const T*), through L1; load_streaming: read once, first to be evicted;
//            load_shared_by_grid: from L2, what other blocks of this launch wrote;
//            store(T*, T)
// Async      cp_async16(Shared<char> target, const void* source): 16 bytes to shared memory;
//            cp_async16_or_zero(target, source, valid): zeros when !valid, source is not read then;
//            cp_async16_evict_first(target, source, evict_first()), and with _or_zero: read once a step;
//            their targets come from by_thread_pointer(Shared);
//            cp_async_commit(); cp_async_wait<N>(): all but the newest N groups have landed
// Registers  computed_here(x): x again, so that what follows from it is not kept in registers through a loop
// Warp       shfl(v, lane), shfl_xor(v, mask), shfl_up(v, n), any(p), ballot(p), count_bits(u), sync_warp()
// Tensor     ldmatrix_x4(r, row), ldmatrix_x4_trans(r, row), movmatrix_trans(r), mma_16816<T>(d, a, b)
// Block      sync_threads(), sync_threads_or(p), fence_grid()
// Atomics    atomic_add(int32_t* | uint32_t* | float*, v) gives the old value; atomic_max(uint32_t*, v);
//            the same on Shared<T>;
//            atomic_add_in_order(int32_t*, v), by one thread for those that met it at a barrier or sync_warp() before
//            and meet it at one behind: whoever sees the sum sees what they wrote, and what they then read is as new
// Types      bf16, f16 (bits); to_f32(x), from_f32<T>(f), pack2<T>(low, high), unpack2<T>(u) -> float2
// Maths      exp2_approx, log2_approx, reciprocal, rsqrt_approx, tanh_from_exp2
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define QUIRE_SIDE cuda
#include "kernels/cuda/device_side.h"
#else
#define QUIRE_SIDE cuda_host
#include "kernels/cuda/host_shim/host_side.h"
#endif

namespace quire::QUIRE_SIDE {

inline constexpr int kWarp = 32;
inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
inline constexpr unsigned kInfinityBits = 0x7f800000u;

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shfl_xor(x, mask);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, shfl_xor(x, mask));
  return x;
}
// tanh to about 1e-6: tanh.approx has 11 bits, too few for a soft cap of 50.
__device__ inline float tanh_from_exp2(float x) {
  return 1.0f - 2.0f * reciprocal(exp2_approx(2.0f * kLog2e * x) + 1.0f);
}

}  // namespace quire::QUIRE_SIDE
