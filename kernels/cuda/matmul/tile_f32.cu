// Several rows in float32: models whose weights are f32, with sums in f32 (no tf32, which has 10 bits), so
// that greedy tokens equal the CPU's. A block of 256 threads makes 32 rows of x by 64 rows of w, a thread 2 x
// 4 of it. Bound: FMA units. Models that are served in f32 are small; this kernel is here to be right.
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/matmul.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kRowsX = 32, kRowsW = 64, kStep = 16, kThreads = 256;
constexpr int kPitch = kStep + 1;  // one float of padding: a column is read by lanes of different banks
constexpr int kSharedBytes = (kRowsX + kRowsW) * kPitch * static_cast<int>(sizeof(float));

__device__ inline void fill(Shared<float> target, const float* source, int64_t stride, int first, int end,
                            int rows, int k0, int64_t k_end) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * kStep; i += kThreads) {
    const int row = i / kStep, k = i % kStep;
    const bool valid = first + row < end && k0 + k < k_end;
    target[row * kPitch + k] = valid ? load(source + int64_t{first + row} * stride + k0 + k) : 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads) tile_product_f32(Product p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int first_m = static_cast<int>(blockIdx.y) * kRowsX, first_n = static_cast<int>(blockIdx.x) * kRowsW;
  const int m = static_cast<int>(threadIdx.x) / 16, n = static_cast<int>(threadIdx.x) % 16;
  const Shared<float> x = dynamic_shared<float>(), w = x + kRowsX * kPitch;
  float sums[2][4] = {};
  for (int k0 = 0; k0 < p.k; k0 += kStep) {
    sync_threads();
    fill(x, static_cast<const float*>(p.x), p.k, first_m, p.m, kRowsX, k0, p.k);
    fill(w, static_cast<const float*>(p.w), p.w_stride, first_n, p.n, kRowsW, k0, p.w_stride);
    sync_threads();
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float a[2], b[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) a[i] = x[(m + i * 16) * kPitch + k];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = w[(n + j * 16) * kPitch + k];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = first_m + m + i * 16, column = first_n + n + j * 16;
      if (row >= p.m || column >= p.n) continue;
      put_sum<float>(p, row, column, sums[i][j], before_sum<float>(p, row, column));
    }
}

}  // namespace

void tile_gemm_f32(const Target& target, const Product& p) {
  check(target.activations == DType::kF32, "tile_gemm_f32: activations are not f32");
  check(!p.gated && p.norm_weight == nullptr, "tile_gemm_f32: gating and norms are kernels of their own");
  launch<tile_product_f32>({.grid = {as_grid(ceil_div(p.n, kRowsW)), as_grid(ceil_div(p.m, kRowsX))},
                            .block = kThreads,
                            .shared_bytes = kSharedBytes,
                            .stream = target.stream,
                            .dependent = true},
                           p);
}

}  // namespace quire::QUIRE_SIDE
