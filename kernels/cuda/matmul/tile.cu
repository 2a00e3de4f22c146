// Many rows on tensor cores, for every card and for the host: stands in for cuBLASLt where that cannot be
// opened. A block of 8 warps makes a tile of 64 rows of x by 128 rows of w, a warp 32 x 32 of it; k runs in
// steps of 32 through a ring of three stages filled by 16-byte asynchronous copies. A stage's rows are 64
// bytes; 16-byte chunk c of row r lies at c ^ (r / 2 % 4), so that ldmatrix meets no bank twice. Bound:
// tensor cores from about 256 rows on, below it memory.
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/vector.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kRowsX = 64, kRowsW = 128, kStep = 32, kStages = 3;
constexpr int kThreads = 256, kWarpsW = 4;  // warps along w
constexpr int kRowBytes = kStep * 2;
constexpr int kStageBytes = (kRowsX + kRowsW) * kRowBytes;

__device__ inline int swizzled(int row, int chunk) {
  return row * kRowBytes + (chunk ^ (row / 2 % 4)) * 16;
}

template <class T>
class Tile {
 public:
  __device__ explicit Tile(const Product& p)
      : p_(p),
        first_m_(blockIdx.y * kRowsX),
        first_n_(blockIdx.x * kRowsW),
        lane_(threadIdx.x % kWarp),
        warp_(threadIdx.x / kWarp) {}

  __device__ void run() {
    const int steps = (p_.k + kStep - 1) / kStep;
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int s = 0; s < kStages - 1; ++s) fill(s, s, steps);
    for (int s = 0; s < steps; ++s) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // stage s is there for all, and no one reads the stage filled next any more
      fill(s + kStages - 1, (s + kStages - 1) % kStages, steps);
      multiply(dynamic_shared() + s % kStages * kStageBytes);
    }
    write();
  }

 private:
  __device__ void fill(int step, int stage, int steps) const {
    if (step < steps) {
      const Shared<char> target = dynamic_shared() + stage * kStageBytes;
      fill_rows(target, static_cast<const T*>(p_.x), p_.k, first_m_, p_.m, kRowsX, step, p_.k);
      fill_rows(target + kRowsX * kRowBytes, static_cast<const T*>(p_.w), p_.w_stride, first_n_, p_.n, kRowsW,
                step, p_.w_stride);
    }
    cp_async_commit();  // also when empty: the count of groups is the count of steps
  }

  __device__ void fill_rows(Shared<char> target, const T* source, int64_t stride, int first, int end,
                            int rows, int step, int64_t k_end) const {
    for (int i = static_cast<int>(threadIdx.x); i < rows * (kRowBytes / 16); i += kThreads) {
      const int row = i / 4, chunk = i % 4;
      const int64_t k = int64_t{step} * kStep + chunk * kChunk;
      const bool valid = first + row < end && k < k_end;
      const T* from = source + int64_t{first + row} * stride + k;
      const Shared<char> to = target + swizzled(row, chunk);
      if (stride % kChunk == 0) {
        cp_async16_or_zero(to, valid ? from : source, valid);
      } else {  // rows of x that do not begin at 16 bytes
        const Chunk c = load_chunk<T, false>(from, valid ? k_end - k : 0);
        to.template as<uint4>()[0] = make_uint4(pack2<T>(c.v[0], c.v[1]), pack2<T>(c.v[2], c.v[3]),
                                                pack2<T>(c.v[4], c.v[5]), pack2<T>(c.v[6], c.v[7]));
      }
    }
  }

  __device__ void multiply(Shared<char> stage) {
    const int m0 = warp_ / kWarpsW * 32, n0 = warp_ % kWarpsW * 32;
    const Shared<char> w = stage + kRowsX * kRowBytes;
#pragma unroll
    for (int k16 = 0; k16 < kStep / 16; ++k16) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ldmatrix_x4(a[i], stage + swizzled(m0 + i * 16 + lane_ % 16, k16 * 2 + lane_ / 16));
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ldmatrix_x4(b[i], w + swizzled(n0 + i * 16 + lane_ / 16 * 8 + lane_ % 8, k16 * 2 + lane_ / 8 % 2));
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_16816<T>(sums_[i][j], a[i], column);
        }
    }
  }

  __device__ void write() const {
    const int m0 = first_m_ + warp_ / kWarpsW * 32 + lane_ / 4,
              n0 = first_n_ + warp_ % kWarpsW * 32 + lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) write(m0 + i * 16 + e / 2 * 8, n0 + j * 8 + e % 2, sums_[i][j][e]);
  }
  __device__ void write(int m, int n, float sum) const {
    if (m >= p_.m || n >= p_.n) return;
    if (p_.bias != nullptr) sum += load(p_.bias + n);
    const int64_t at = int64_t{m} * p_.n + n;
    if (p_.out_f32) {
      store(static_cast<float*>(p_.out) + at, sum);
    } else {
      store(static_cast<T*>(p_.out) + at, from_f32<T>(sum));
    }
  }

  const Product& p_;
  int first_m_, first_n_, lane_, warp_;
  float sums_[2][4][4] = {};
};

template <class T>
__global__ void __launch_bounds__(kThreads) tile_product(Product p) {
  Tile<T>(p).run();
}

// out[m][n] += bias[n]: after a library's product of a model with biases. Bound: memory, out read and
// written.
template <class T>
__global__ void add_bias_rows(Product p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int n = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (n >= p.n) return;
  const int64_t at = int64_t{blockIdx.x} * p.n + n;
  const float bias = load(p.bias + n);
  if (p.out_f32) {
    auto* out = static_cast<float*>(p.out) + at;
    store(out, load(out) + bias);
  } else {
    auto* out = static_cast<T*>(p.out) + at;
    store(out, from_f32<T>(to_f32(load(out)) + bias));
  }
}

}  // namespace

void tile_gemm(const Target& target, const Product& p) {
  check(target.activations != DType::kF32, "tile_gemm: f32 activations have tile_gemm_f32");
  const LaunchConfig config{.grid = {as_grid(ceil_div(p.n, kRowsW)), as_grid(ceil_div(p.m, kRowsX))},
                            .block = kThreads,
                            .shared_bytes = kStages * kStageBytes,
                            .stream = target.stream,
                            .dependent = true};
  target.activations == DType::kBF16 ? launch<tile_product<bf16>>(config, p)
                                     : launch<tile_product<f16>>(config, p);
}

void add_bias(const Target& target, const Product& p) {
  const LaunchConfig config{.grid = {as_grid(p.m), as_grid(ceil_div(p.n, 256))},
                            .block = 256,
                            .stream = target.stream,
                            .dependent = true};
  with_float_type(target.activations, [&](auto act) { launch<add_bias_rows<decltype(act)>>(config, p); });
}

}  // namespace quire::QUIRE_SIDE
