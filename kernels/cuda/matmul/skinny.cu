// 2 to 16 rows on tensor cores. 16 rows of w are the m of m16n8k16, eight rows of x its n.
//
// What a block works on: a contiguous range of 16-row tiles of w, one after another. A stage of its ring
// holds kStep columns of a tile and of x; its eight warps share the columns, and meet in shared memory at a
// tile's end. Long runs of a row matter most: a warp's copy reads 512 contiguous bytes (runs of 256 or 512 in
// all cost 7 to 18 %). w is marked evict-first, x is not: it is read again for every tile. 16-byte chunk c of
// row r lies at c ^ (r & 7), so that ldmatrix meets no bank twice. All stages but one of w are on their way
// before the dependency wait; x of those follows by plain loads, because waiting for an asynchronous group
// would wait for all of the w before it. Bound: device memory, bytes = w once; 96 to 190 KiB in flight a
// multiprocessor.
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTileRows = 16;  // of w
constexpr int kXRows = 8;      // of x, in one n of an mma

// kHalves: groups of eight rows of x. kStep: columns of a stage. kStages: of the ring.
template <class T, int kHalves, int kStep, int kStages>
class Skinny {
 public:
  static constexpr int kRowBytes = kStep * 2, kRowChunks = kStep / kChunk;
  static constexpr int kWBytes = kTileRows * kRowBytes, kXBytes = kHalves * kXRows * kRowBytes;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kWarpSteps = kStep / 16 / kWarps;  // products of a warp in a stage
  static constexpr int kSums = kHalves * 4;               // of a lane
  static constexpr int kSumsAt = kStages * kStageBytes;
  static constexpr int kSharedBytes = kSumsAt + kWarps * kSums * kWarp * static_cast<int>(sizeof(float));
  static_assert(kWarpSteps % 2 == 0);

  __device__ explicit Skinny(const Product& p)
      : p_(p),
        lane_(threadIdx.x % kWarp),
        warp_(threadIdx.x / kWarp),
        steps_(static_cast<int>((p.w_stride + kStep - 1) / kStep)) {
    const int64_t tiles = (p.n + kTileRows - 1) / kTileRows;
    first_tile_ = static_cast<int>(tiles * blockIdx.x / gridDim.x);
    end_tile_ = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);
    fetch_tile_ = first_tile_;
  }

  __device__ void run() {
    for (int s = 0; s < kStages - 1; ++s) {
      fetch_w();
      cp_async_commit();
      advance();
    }
    wait_for_previous_kernel();
    let_next_kernel_start();
    first_x();
    int used = 0;
    for (int tile = first_tile_; tile < end_tile_; ++tile) {
      float sums[kHalves][4] = {};
      for (int step = 0; step < steps_; ++step, ++used) {
        cp_async_wait<kStages - 2>();
        sync_threads();  // the stage is there for all, and no one reads the one that is filled next
        fetch_w();
        fetch_x();
        cp_async_commit();
        advance();
        multiply(stage(used), sums);
      }
      meet(sums, tile);
    }
  }

 private:
  __device__ Shared<char> stage(int i) const { return dynamic_shared() + i % kStages * kStageBytes; }
  // The stage that is filled next, as a copy with a cache policy must name it (device_side.h).
  __device__ Shared<char> next_stage() const { return by_thread_pointer(stage(fetched_)); }
  __device__ static int swizzled(int row, int chunk) { return row * kRowBytes + (chunk ^ (row & 7)) * 16; }

  // The cursor walks the stages of all tiles of the block.
  __device__ void advance() {
    ++fetched_;
    if (++fetch_step_ == steps_) {
      fetch_step_ = 0;
      ++fetch_tile_;
    }
  }
  __device__ bool at_end() const { return fetch_tile_ >= end_tile_; }

  __device__ void fetch_w() const {
    if (at_end()) return;
    const Shared<char> target = next_stage();
    const EvictFirst once = evict_first();
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks, chunk = i % kRowChunks;
      const int64_t n = int64_t{fetch_tile_} * kTileRows + row,
                    k = int64_t{fetch_step_} * kStep + chunk * kChunk;
      const auto* source = static_cast<const T*>(p_.w) + n * p_.w_stride + k;
      const Shared<char> to = target + swizzled(row, chunk);
      if (n < p_.n && k < p_.w_stride) {
        cp_async16_evict_first(to, source, once);
      } else {
        cp_async16_or_zero(to, p_.w, false);
      }
    }
  }

  // x of a stage, by 16-byte chunks: a thread has kXLoads of them.
  static constexpr int kXLoads = kHalves * kXRows * kRowChunks / kThreads;
  static_assert(kXLoads * kThreads == kHalves * kXRows * kRowChunks);
  struct XChunk {
    const T* source;
    int64_t count;  // elements there, 0 outside of x
    int target;     // offset in the stage
  };
  __device__ XChunk x_chunk(int i, int step) const {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads, row = at / kRowChunks,
              chunk = at % kRowChunks;
    const int64_t k = int64_t{step} * kStep + chunk * kChunk;
    return {static_cast<const T*>(p_.x) + int64_t{row} * p_.k + k, row < p_.m && k < p_.k ? p_.k - k : 0,
            kWBytes + swizzled(row, chunk)};
  }
  __device__ uint4 load_x(const XChunk& c) const {
    return p_.k % kChunk == 0 ? load_x16(c.source, c.count > 0) : gather_x16(c.source, c.count);
  }

  // The columns of the stages that were filled before the wait: all loads before the first store, since each
  // comes from L2.
  __device__ void first_x() {
    uint4 x[kStages - 1][kXLoads];
    fetched_ = 0, fetch_tile_ = first_tile_, fetch_step_ = 0;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
#pragma unroll
      for (int i = 0; i < kXLoads; ++i)
        x[s][i] = at_end() ? make_uint4(0, 0, 0, 0) : load_x(x_chunk(i, fetch_step_));
      advance();
    }
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s)
#pragma unroll
      for (int i = 0; i < kXLoads; ++i) (stage(s) + x_chunk(i, 0).target).template as<uint4>()[0] = x[s][i];
  }

  __device__ void fetch_x() const {
    if (at_end()) return;
    const bool aligned = p_.k % kChunk == 0;
    const Shared<char> target = next_stage();
#pragma unroll
    for (int i = 0; i < kXLoads; ++i) {
      const XChunk c = x_chunk(i, fetch_step_);
      const Shared<char> to = target + c.target;
      if (aligned) {
        cp_async16_or_zero(to, c.count > 0 ? c.source : static_cast<const T*>(p_.x), c.count > 0);
      } else {
        to.template as<uint4>()[0] = gather_x16(c.source, c.count);
      }
    }
  }
  __device__ static uint4 load_x16(const T* source, bool valid) {
    return valid ? load_shared_by_grid(reinterpret_cast<const uint4*>(source)) : make_uint4(0, 0, 0, 0);
  }
  __device__ static uint4 gather_x16(const T* source, int64_t count) {
    return pack_chunk<T>(load_chunk<T, false>(source, count));
  }

  __device__ void multiply(Shared<char> at, float (&sums)[kHalves][4]) const {
    const Shared<char> x = at + kWBytes;
#pragma unroll
    for (int s = 0; s < kWarpSteps; s += 2) {
      const int chunk = (warp_ * kWarpSteps + s) * 2;  // of four that two products take
      uint32_t a[2][4], b[2][kHalves][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) ldmatrix_x4(a[i], at + swizzled(lane_ % 16, chunk + 2 * i + lane_ / 16));
      read_x(x, chunk, b);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int h = 0; h < kHalves; ++h) mma_16816<T>(sums[h], a[i], b[i][h]);
    }
  }
  __device__ void read_x(Shared<char> x, int chunk, uint32_t (&b)[2][kHalves][2]) const {
#pragma unroll
    for (int h = 0; h < kHalves;
         ++h) {  // the four matrices are chunks: two of the first product, two of the second
      uint32_t r[4];
      ldmatrix_x4(r, x + swizzled(h * kXRows + lane_ % 8, chunk + lane_ / 8));
      b[0][h][0] = r[0], b[0][h][1] = r[1], b[1][h][0] = r[2], b[1][h][1] = r[3];
    }
  }

  // The warps' sums of a tile, added in the order of the warps. The barrier of the next tile's first stage
  // stands between these reads and the next writes.
  __device__ void meet(const float (&sums)[kHalves][4], int tile) const {
    const Shared<float> all = (dynamic_shared() + kSumsAt).as<float>();
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int i = 0; i < 4; ++i) all[(warp_ * kSums + h * 4 + i) * kWarp + lane_] = sums[h][i];
    sync_threads();
    const auto total = [&](int e) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += all[(w * kSums + e) * kWarp + lane_];
      return sum;
    };
    for (int e = warp_; e < kSums; e += kWarps) {
      const int m = e / 4 * kXRows + lane_ % 4 * 2 + e % 2, row = lane_ / 4, upper = e % 4 / 2;
      if (m >= p_.m) continue;
      if (p_.gated) {  // rows g and g + 8 of a tile are a pair
        if (upper == 0 && tile * kTileRows < p_.n)
          put_gated<T>(p_, m, tile * kGateGroup + row, total(e), total(e + 2));
      } else {
        const int n = tile * kTileRows + row + upper * 8;
        if (n < p_.n) put_sum<T>(p_, m, n, total(e), before_sum<T>(p_, m, n));
      }
    }
  }

  const Product& p_;
  int lane_, warp_, steps_;
  int first_tile_, end_tile_;
  int fetched_ = 0, fetch_tile_, fetch_step_ = 0;
};

template <class T, int kHalves, int kStep, int kStages>
__global__ void __launch_bounds__(kThreads, 2) skinny_tiles(Product p) {
  Skinny<T, kHalves, kStep, kStages>(p).run();
}

int tiles_of(const Product& p) {
  return ceil_div(p.n, kTileRows);
}
// Where stages of 1024 columns fit, one block a multiprocessor.
constexpr int kLongStagesBytes = 220 * 1024;

// The share of `blocks` blocks' time in which they have a tile.
double evenness(const Product& p, int blocks) {
  return static_cast<double>(tiles_of(p)) / (static_cast<double>(ceil_div(tiles_of(p), blocks)) * blocks);
}

template <class T, int kHalves, int kStep, int kStages>
void launch_skinny(const Target& target, const Product& p) {
  constexpr int shared_bytes = Skinny<T, kHalves, kStep, kStages>::kSharedBytes;
  check_at_least("skinny_gemm, shared memory less a block's", target.shared_bytes_per_block - shared_bytes,
                 0);
  const int resident = std::min(2, (target.shared_bytes_per_block + 1024) / (shared_bytes + 1024));
  const int blocks = std::min(target.multiprocessors * resident, tiles_of(p));
  launch<skinny_tiles<T, kHalves, kStep, kStages>>({.grid = as_grid(blocks),
                                                    .block = kThreads,
                                                    .shared_bytes = shared_bytes,
                                                    .stream = target.stream,
                                                    .dependent = true,
                                                    .carveout = carveout_of(p.m)},
                                                   p);
}

// Measured on an H100 over all products of an 8B step (roof 4.87 ms): 8 rows 5.08 ms with 1024 columns and 4
// stages, one block a multiprocessor; 16 rows 5.24 ms with 512 and 3, two blocks. Smaller cards and short
// rows take smaller stages.
template <class T>
void launch_skinny(const Target& target, const SkinnyTuning& tuning, const Product& p) {
  const bool large = target.shared_bytes_per_block >= kLongStagesBytes;
  const int step = tuning.step > 0                           ? tuning.step
                   : p.w_stride < 512                        ? 256
                   : p.m <= 8 && large && p.w_stride >= 1024 ? 1024
                                                             : 512;
  if (p.m <= 8) {
    if (step == 1024) return launch_skinny<T, 1, 1024, 4>(target, p);
    if (step == 512) return launch_skinny<T, 1, 512, 3>(target, p);
    return launch_skinny<T, 1, 256, 4>(target, p);
  }
  // Two blocks a multiprocessor, or one with a ring twice as long where its whole tiles leave fewer blocks
  // idle (qkv: 384 tiles for 264).
  const int multiprocessors = target.multiprocessors;
  if (step == 512 && large && evenness(p, multiprocessors) > evenness(p, 2 * multiprocessors) + 0.1)
    return launch_skinny<T, 2, 512, 6>(target, p);
  if (step == 512 && large) return launch_skinny<T, 2, 512, 3>(target, p);
  launch_skinny<T, 2, 256, 4>(target, p);
}

}  // namespace

bool skinny_suits_one_row(const Target& target, const Product& p) {
  constexpr double kEven = 0.95;  // 0.97 was faster than gemv, 0.81 slower
  return target.activations != DType::kF32 && p.norm_weight == nullptr && p.k > kMostStagedAtOnce &&
         target.shared_bytes_per_block >= kLongStagesBytes && evenness(p, target.multiprocessors) >= kEven;
}

void skinny_gemm(const Target& target, const SkinnyTuning& tuning, const Product& p) {
  check(target.activations != DType::kF32, "skinny_gemm: f32 activations have tile_gemm_f32");
  check(p.norm_weight == nullptr, "skinny_gemm: norms are a kernel of their own");
  check_fusion(p);
  target.activations == DType::kBF16 ? launch_skinny<bf16>(target, tuning, p)
                                     : launch_skinny<f16>(target, tuning, p);
}

}  // namespace quire::QUIRE_SIDE
