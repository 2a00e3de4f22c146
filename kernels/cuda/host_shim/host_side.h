// portable.h for g++: the same functions over the shim. See portable.h for what each means.
// Operations that can diverge take the caller's line, which names them in faults and tells one call site from
// another.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/host_shim/runner.h"
#include "kernels/cuda/host_shim/runner_access.h"
#include "src/base/dtype.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

namespace quire::cuda_host {

using shim::hot;
using shim::threadIdx, shim::blockIdx, shim::blockDim, shim::gridDim;
using dim3 = shim::Dim3;

// ---- vectors of CUDA's names and alignments ----
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// One instruction, as on a card, where the processor has it: g++ for any x86-64 calls a function instead, which took
// a third of the time of tests that serve f32 models through the shim.
#if defined(__x86_64__)
inline const bool has_fma = __builtin_cpu_supports("fma") != 0;
#endif
inline float fmaf(float a, float b, float c) {
#if defined(__x86_64__)
  if (has_fma) [[likely]] {
    asm("vfmadd231ss %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
  }
#endif
  return std::fmaf(a, b, c);
}

// ---- 16-bit floats ----
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
inline float to_f32(float x) {
  return x;
}
inline float to_f32(bf16 x) {
  return bf16_to_f32(x.bits);
}
inline float to_f32(f16 x) {
  return f16_to_f32(x.bits);
}
template <class T>
inline T from_f32(float f) {
  if constexpr (std::is_same_v<T, float>) {
    return f;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return {f32_to_bf16(f)};
  } else {
    return {f32_to_f16(f)};
  }
}
template <class T>
inline uint32_t pack2(float low, float high) {
  return from_f32<T>(low).bits | uint32_t{from_f32<T>(high).bits} << 16;
}
template <class T>
inline float2 unpack2(uint32_t u) {
  return {to_f32(T{uint16_t(u)}), to_f32(T{uint16_t(u >> 16)})};
}

// ---- shared memory ----
template <class T>
class SharedReference {
 public:
  explicit SharedReference(uint32_t offset) : offset_(offset) {}
  SharedReference(const SharedReference&) = default;
  operator T() const {
    if (hot.checking) shim::check_shared_read(offset_, sizeof(T));
    T v;
    std::memcpy(&v, hot.shared + offset_, sizeof(T));
    return v;
  }
  const SharedReference& operator=(T v) const {
    if (hot.checking) shim::check_shared_write(offset_, sizeof(T));
    std::memcpy(hot.shared + offset_, &v, sizeof(T));
    return *this;
  }
  const SharedReference& operator=(const SharedReference& other) const {
    return *this = static_cast<T>(other);
  }
  const SharedReference& operator+=(T v) const { return *this = static_cast<T>(*this) + v; }

 private:
  uint32_t offset_;
};

template <class T>
struct Shared {
  uint32_t offset;  // bytes from the start of the block's shared memory

  SharedReference<T> operator[](int i) const {
    return SharedReference<T>(offset + static_cast<uint32_t>(i) * sizeof(T));
  }
  Shared operator+(int i) const { return {offset + static_cast<uint32_t>(i) * uint32_t{sizeof(T)}}; }
  template <class U>
  Shared<U> as() const {
    return {offset};
  }
};

template <class T = char>
inline Shared<T> dynamic_shared() {
  return {0};
}

// ---- global memory ----
template <class T>
inline T load(const T* p) {
  if (hot.checking) shim::check_global_read(p, sizeof(T));
  return *p;
}
template <class T>
inline T load_streaming(const T* p) {
  return load(p);
}
template <class T>
inline T load_shared_by_grid(const T* p) {
  return load(p);
}
template <class T>
inline void store(T* p, T v) {
  if (hot.checking) shim::check_global_write(p, sizeof(T));
  *p = v;
}

// ---- asynchronous copies ----
struct EvictFirst {};
inline EvictFirst evict_first() {
  return {};
}
// Without checking they land at once.
inline void cp_async16(Shared<char> target, const void* source) {
  if (hot.checking) return shim::begin_async_copy({source, target.offset, 16});
  std::memcpy(hot.shared + target.offset, source, 16);
}
inline void cp_async16_or_zero(Shared<char> target, const void* source, bool valid) {
  if (hot.checking) return shim::begin_async_copy({valid ? source : nullptr, target.offset, 16});
  static constexpr uint4 kZeros{};
  std::memcpy(hot.shared + target.offset, valid ? source : &kZeros, 16);
}
template <class T>
inline Shared<T> by_thread_pointer(Shared<T> s) {
  return s;
}
inline void cp_async16_or_zero_evict_first(Shared<char> target, const void* source, bool valid, EvictFirst) {
  cp_async16_or_zero(target, source, valid);
}
inline void cp_async16_evict_first(Shared<char> target, const void* source, EvictFirst) {
  cp_async16(target, source);
}
inline void cp_async_commit() {
  if (hot.checking) shim::commit_async_copies();
}
template <int kNewest>
inline void cp_async_wait() {
  if (hot.checking) shim::wait_async_copies(kNewest);
}

// ---- warp and block ----
template <class T>
struct ShuffleArgs {
  T in, out;
  int source;  // lane
};
template <class T>
inline void execute_shuffle(void* const* args) {
  for (int i = 0; i < 32; ++i) {
    auto* a = static_cast<ShuffleArgs<T>*>(args[i]);
    a->out = static_cast<ShuffleArgs<T>*>(args[a->source & 31])->in;
  }
}
template <class T>
inline constexpr shim::WarpOp kShuffle{"shfl", execute_shuffle<T>};
inline constexpr shim::WarpOp kSyncWarp{"sync_warp", nullptr};

inline int lane_index() {
  return static_cast<int>(hot.fiber->thread % 32);
}
template <class T>
inline T shfl(T v, int lane, int line = __builtin_LINE()) {
  if constexpr (sizeof(T) == sizeof(uint32_t)) {
    shim::Warp& warp = *hot.fiber->warp;
    const int self = lane_index();
    warp.words[self] = std::bit_cast<uint32_t>(v);
    warp.sources[self] = static_cast<uint32_t>(lane) % 32;
    shim::wait_for_shuffle(kShuffle<T>, line);
    return std::bit_cast<T>(warp.shuffled[self]);
  }
  ShuffleArgs<T> a{v, v, lane};
  shim::warp_operation(kShuffle<T>, &a, line);
  return a.out;
}
template <class T>
inline T shfl_xor(T v, int mask, int line = __builtin_LINE()) {
  return shfl(v, lane_index() ^ mask, line);
}
template <class T>
inline T shfl_up(T v, int n, int line = __builtin_LINE()) {
  const int lane = lane_index();
  return shfl(v, lane >= n ? lane - n : lane, line);
}

struct VoteArgs {
  bool in;
  uint32_t out;
};
void execute_vote(void* const* args);
inline constexpr shim::WarpOp kVote{"vote", execute_vote};
inline uint32_t ballot(bool p, int line = __builtin_LINE()) {
  VoteArgs a{p, 0};
  shim::warp_operation(kVote, &a, line);
  return a.out;
}
inline int count_bits(uint32_t u) {
  return std::popcount(u);
}
inline int computed_here(int x) {
  return x;
}
inline bool any(bool p, int line = __builtin_LINE()) {
  return ballot(p, line) != 0;
}
inline void sync_warp(int line = __builtin_LINE()) {
  shim::warp_operation(kSyncWarp, nullptr, line);
}
inline void sync_threads(int line = __builtin_LINE()) {
  shim::block_barrier("sync_threads", line);
}
inline bool sync_threads_or(bool p, int line = __builtin_LINE()) {
  return shim::block_barrier_or(p, line);
}
inline void fence_grid() {}  // blocks run one after another: nothing is out of order

// ---- tensor cores: fragments as in PTX; tensor_core.cc says how sums are made ----
struct LdmatrixArgs {
  uint32_t row;  // shared offset of the 16-byte row this lane names
  uint32_t* out;
  uint32_t thread;
};
void execute_ldmatrix(void* const* args);
void execute_ldmatrix_trans(void* const* args);
inline constexpr shim::WarpOp kLdmatrix{"ldmatrix_x4", execute_ldmatrix},
    kLdmatrixTrans{"ldmatrix_x4_trans", execute_ldmatrix_trans};
inline void ldmatrix_x4(uint32_t (&r)[4], Shared<char> row, int line = __builtin_LINE()) {
  LdmatrixArgs a{row.offset, r, hot.fiber->thread};
  shim::warp_operation(kLdmatrix, &a, line);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<char> row, int line = __builtin_LINE()) {
  LdmatrixArgs a{row.offset, r, hot.fiber->thread};
  shim::warp_operation(kLdmatrixTrans, &a, line);
}

struct MovmatrixArgs {
  uint32_t in, out;
};
void execute_movmatrix(void* const* args);
inline constexpr shim::WarpOp kMovmatrix{"movmatrix_trans", execute_movmatrix};
inline uint32_t movmatrix_trans(uint32_t r, int line = __builtin_LINE()) {
  MovmatrixArgs a{r, 0};
  shim::warp_operation(kMovmatrix, &a, line);
  return a.out;
}

struct MmaArgs {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};
void execute_mma_bf16(void* const* args);
void execute_mma_f16(void* const* args);
inline constexpr shim::WarpOp kMmaBf16{"mma_16816<bf16>", execute_mma_bf16},
    kMmaF16{"mma_16816<f16>", execute_mma_f16};
template <class T>
inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      int line = __builtin_LINE()) {
  MmaArgs args{d, a, b};
  shim::warp_operation(std::is_same_v<T, bf16> ? kMmaBf16 : kMmaF16, &args, line);
}

// ---- atomics ----
template <class T>
inline T atomic_add(T* p, T v) {
  const T old = load(p);
  store(p, static_cast<T>(old + v));
  return old;
}
inline int32_t atomic_add_in_order(int32_t* p, int32_t v) {
  return atomic_add(p, v);
}
inline uint32_t atomic_max(uint32_t* p, uint32_t v) {
  const uint32_t old = load(p);
  store(p, old > v ? old : v);
  return old;
}
template <class T, class F>
inline T shared_atomic(Shared<T> p, F f) {
  if (hot.checking) shim::check_shared_atomic(p.offset, sizeof(T));
  T old;
  std::memcpy(&old, hot.shared + p.offset, sizeof(T));
  const T now = f(old);
  std::memcpy(hot.shared + p.offset, &now, sizeof(T));
  return old;
}
template <class T>
inline T atomic_add(Shared<T> p, T v) {
  return shared_atomic(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
inline T atomic_max(Shared<T> p, T v) {
  return shared_atomic(p, [v](T old) { return old > v ? old : v; });
}

// ---- maths ----
inline float exp2_approx(float x) {
  return std::exp2(x);
}
inline float log2_approx(float x) {
  return std::log2(x);
}
inline float reciprocal(float x) {
  return 1.0f / x;
}
inline float rsqrt_approx(float x) {
  return 1.0f / std::sqrt(x);
}
inline float bits_to_f32(uint32_t u) {
  return std::bit_cast<float>(u);
}
inline uint32_t f32_to_bits(float f) {
  return std::bit_cast<uint32_t>(f);
}

// ---- programmatic dependent launch ----
inline void wait_for_previous_kernel() {
  shim::mark_waited_for_previous_kernel();
}
inline void let_next_kernel_start() {
  shim::mark_next_kernel_may_start();
}

// ---- launch ----
struct LaunchConfig {
  dim3 grid{1, 1, 1}, block{1, 1, 1};
  int shared_bytes = 0;
  void* stream = nullptr;  // shim::HostStream*, or null: run at once
  bool dependent = false;
  int carveout = -1;
};

// "kernel_name() [with auto kernel = decode<...>]", as the compiler spells it.
template <auto kernel>
inline const char* kernel_name() {
  return std::strstr(__PRETTY_FUNCTION__, "kernel = ") + std::strlen("kernel = ");
}

template <auto kernel, class... Params>
inline void launch(const LaunchConfig& c, const Params&... params) {
  shim::run_or_record(c.stream, [c, params...] {
    shim::run_grid({c.grid, c.block, c.shared_bytes, c.dependent, kernel_name<kernel>()},
                   [&] { kernel(params...); });
  });
}

}  // namespace quire::cuda_host
