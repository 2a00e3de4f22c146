// residual += delta; out = residual / rms(residual) * weight, in one pass: the row stays in registers.
// A block of threads takes a row. Bounded by memory: reads two rows and writes two (one each without delta),
// 16 bytes at a time. At one row (decode) it is bounded by latency: one load, two barriers, one store; the
// weight is fetched before the wait.
#include "kernels/cuda/limits.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxHeld = 4;  // chunks of eight elements that a thread holds
static_assert(kMaxThreads * kMaxHeld * kChunk == kMaxNormedElements);

// Sum over the block of threads, in the same order at every run. `partial` has a float for each warp.
__device__ inline float block_sum(float x, Shared<float> partial) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) partial[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  float sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / kWarp); ++w) sum += partial[w];
  return sum;
}

template <class Act, int kHeld, bool kVector>
__global__ void __launch_bounds__(kMaxThreads) add_rms_norm_rows(AddRmsNormParams p) {
  const int64_t stride = int64_t{blockDim.x} * kChunk, first = int64_t{threadIdx.x} * kChunk;
  Chunk weight[kHeld] = {};
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = first + h * stride;
    if (i < p.hidden) weight[h] = load_chunk<float, kVector>(p.weight + i, p.hidden - i);
  }
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int64_t row = p.row_index == nullptr ? int64_t{blockIdx.x} : load(p.row_index + blockIdx.x);
  auto* residual = static_cast<Act*>(p.residual) + row * p.hidden;
  const auto* delta = static_cast<const Act*>(p.delta) + row * p.hidden;
  Chunk x[kHeld] = {};
  float squares = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = first + h * stride, count = p.hidden - i;
    if (i >= p.hidden) continue;
    x[h] = load_chunk<Act, kVector>(residual + i, count);
    if (p.delta != nullptr) {
      const Chunk d = load_chunk<Act, kVector>(delta + i, count);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) x[h].v[j] = rounded<Act>(x[h].v[j] + d.v[j]);
      if (p.row_index == nullptr) store_chunk<Act, kVector>(residual + i, x[h], count);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) squares += x[h].v[j] * x[h].v[j];
  }
  const float mean = block_sum(squares, dynamic_shared<float>()) / static_cast<float>(p.hidden);
  const float scale = rsqrt_approx(mean + p.eps);

  auto* out = static_cast<Act*>(p.out) + int64_t{blockIdx.x} * p.hidden;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = first + h * stride;
    if (i >= p.hidden) continue;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) x[h].v[j] *= scale * weight[h].v[j];
    store_chunk<Act, kVector>(out + i, x[h], p.hidden - i);
  }
}

}  // namespace

void add_rms_norm(const Target& target, const AddRmsNormParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  check_at_least("add_rms_norm, widest row less hidden", kMaxNormedElements - p.hidden, 0);
  const int64_t chunks = ceil_div<int64_t>(p.hidden, kChunk);
  const auto threads =
      static_cast<unsigned>(std::min<int64_t>(kMaxThreads, ceil_div<int64_t>(chunks, kWarp) * kWarp));
  const LaunchConfig config{.grid = as_grid(p.rows),
                            .block = threads,
                            .shared_bytes = static_cast<int>(threads / kWarp * sizeof(float)),
                            .stream = target.stream,
                            .dependent = true,
                            .carveout = carveout_of(p.rows)};
  with_float_type(target.activations, [&](auto act) {
    with_bool(p.hidden % kChunk == 0, [&](auto vector) {
      using Act = decltype(act);
      chunks <= threads ? launch<add_rms_norm_rows<Act, 1, vector>>(config, p)
                        : launch<add_rms_norm_rows<Act, kMaxHeld, vector>>(config, p);
    });
  });
}

}  // namespace quire::QUIRE_SIDE
