// 17 to 64 rows on tensor cores by mma.sync: cards before Hopper, the host, and on Hopper what its tensor copies
// cannot fetch (rows of x that do not begin at 16 bytes).
//
// What a block works on: a range of steps of 128 rows of w x 64 columns (wide_plan.h), through a ring of stages in
// shared memory that 16-byte asynchronous copies fill. Each of eight warps multiplies 16 rows of w with all of x.
// 16-byte chunk c of row r lies at c ^ (r & 7). Bound: device memory, bytes = w once; x comes from L2 once a tile, a
// quarter to one of w's bytes. The last block of a tile to come adds the tile's partial sums.
#include "kernels/cuda/matmul/wide_plan.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRows = kWarps * 16;
constexpr int kRowChunks = kWidePanelBytes / 16;
constexpr int kWBytes = kRows * kWidePanelBytes;

template <class T, int kTokens>
class Wide {
 public:
  static constexpr int kStageBytes = kWBytes + kTokens * kWidePanelBytes, kStages = 4;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kQuads = kTokens / 8;

  __device__ explicit Wide(const WideParams& a)
      : a_(a),
        p_(a.p),
        lane_(threadIdx.x % kWarp),
        warp_(threadIdx.x / kWarp),
        range_(a, blockIdx.x, gridDim.x),
        fetch_range_(range_),
        fetches_(fetch_range_.next(fetched_)) {}

  __device__ void run() {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int s = 0; s < kStages - 1; ++s) fetch();
    WideFragment f;
    while (range_.next(f)) {
      float sums[kQuads][4] = {};
      for (int step = 0; step < f.count; ++step, ++used_) {
        cp_async_wait<kStages - 2>();
        sync_threads();  // the stage is there for all, and no one reads the one that is filled next
        fetch();
        multiply(stage(used_), sums);
      }
      finish(f, sums);
    }
  }

 private:
  __device__ Shared<char> stage(int i) const { return dynamic_shared() + i % kStages * kStageBytes; }
  __device__ static int swizzled(int row, int chunk) {
    return row * kWidePanelBytes + (chunk ^ (row & 7)) * 16;
  }

  // The next stage of the block's range, of whatever fragment. A group a stage, also when there is none left.
  __device__ void fetch() {
    if (fetches_) {
      const Shared<char> target = stage(filled_++);
      const int64_t k = int64_t{fetched_.first} * kWidePanel;
      fetch_w(target, int64_t{fetched_.tile} * kRows, k);
      fetch_x(target + kWBytes, k);
      ++fetched_.first;
      if (--fetched_.count == 0) fetches_ = fetch_range_.next(fetched_);
    }
    cp_async_commit();
  }
  __device__ void fetch_w(Shared<char> target, int64_t n0, int64_t k0) const {
#pragma unroll
    for (int i = 0; i < kRows * kRowChunks / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / kRowChunks,
                chunk = at % kRowChunks;
      const int64_t n = n0 + row, k = k0 + chunk * kChunk;
      const bool valid = n < p_.n && k < p_.w_stride;
      const T* source = static_cast<const T*>(p_.w) + (valid ? n * p_.w_stride + k : 0);
      cp_async16_or_zero(target + swizzled(row, chunk), source, valid);
    }
  }
  __device__ void fetch_x(Shared<char> target, int64_t k0) const {
#pragma unroll
    for (int i = 0; i < kTokens * kRowChunks / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / kRowChunks,
                chunk = at % kRowChunks;
      const int64_t k = k0 + chunk * kChunk, count = row < p_.m ? p_.k - k : 0;
      const T* source = static_cast<const T*>(p_.x) + (count > 0 ? int64_t{row} * p_.k + k : 0);
      const Shared<char> to = target + swizzled(row, chunk);
      if (p_.k % kChunk == 0) {
        cp_async16_or_zero(to, source, count > 0);
      } else {
        to.template as<uint4>()[0] = pack_chunk<T>(load_chunk<T, false>(source, count));
      }
    }
  }

  __device__ void multiply(Shared<char> at, float (&sums)[kQuads][4]) const {
#pragma unroll
    for (int chunk = 0; chunk < kRowChunks; chunk += 4) {  // four chunks are two products
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ldmatrix_x4(a[i], at + swizzled(warp_ * 16 + lane_ % 16, chunk + 2 * i + lane_ / 16));
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        uint32_t r[4];  // two matrices of the first product, two of the second
        ldmatrix_x4(r, at + kWBytes + swizzled(j * 8 + lane_ % 8, chunk + lane_ / 8));
        const uint32_t b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
        mma_16816<T>(sums[j], a[0], b[0]);
        mma_16816<T>(sums[j], a[1], b[1]);
      }
    }
  }

  __device__ void finish(const WideFragment& f, float (&sums)[kQuads][4]) const {
    if (!range_.whole(f)) {
      partials(blockIdx.x, f.first == 0).put(0, sums);
      if (!comes_last(f)) return;
      add_partials(f, sums);
    }
    put_sums<T, kTokens>(p_, f.tile * kRows + warp_ * 16, sums);
  }
  __device__ PartialSums<kQuads> partials(int block, bool head) const {
    return PartialSums<kQuads>::of(a_.scratch, block, head, kThreads, static_cast<int>(threadIdx.x));
  }
  // Whether all other blocks' fragments of this tile lie in memory; if so the count is put back.
  __device__ bool comes_last(const WideFragment& f) const {
    fence_grid();
    sync_threads();
    const int head = range_.head_of(f);
    bool last = false;
    if (threadIdx.x == 0) {
      last = atomic_add(a_.scratch.arrivals + head, 1) == range_.last_of(f) - head;
      if (last) store(a_.scratch.arrivals + head, 0);
    }
    last = sync_threads_or(last);
    if (last) fence_grid();
    return last;
  }
  __device__ void add_partials(const WideFragment& f, float (&sums)[kQuads][4]) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) sums[q][0] = sums[q][1] = sums[q][2] = sums[q][3] = 0;
    const int head = range_.head_of(f), last = range_.last_of(f);
    for (int block = head; block <= last; ++block) partials(block, block == head).add_to(0, sums);
  }

  const WideParams& a_;
  const Product& p_;
  int lane_, warp_;
  WideRange range_, fetch_range_;
  WideFragment fetched_;  // `first` and `count` move with its fetched steps
  bool fetches_;
  int filled_ = 0, used_ = 0;
};

template <class T, int kTokens>
__global__ void __launch_bounds__(kThreads, 1) wide_tiles(WideParams a) {
  Wide<T, kTokens>(a).run();
}

template <class T, int kTokens>
void launch_wide(const Target& target, const SharedSums& scratch, const Product& p) {
  const WideParams params = wide_params(p, scratch, kRows);
  const int blocks = std::min(target.multiprocessors, ceil_div(params.tiles * params.steps, kLeastWideSteps));
  launch<wide_tiles<T, kTokens>>({.grid = as_grid(blocks),
                                  .block = kThreads,
                                  .shared_bytes = Wide<T, kTokens>::kSharedBytes,
                                  .stream = target.stream,
                                  .dependent = true,
                                  .carveout = carveout_of(p.m)},
                                 params);
}

template <class T>
void launch_wide(const Target& target, const SharedSums& scratch, const Product& p) {
  if (p.m <= 32) return launch_wide<T, 32>(target, scratch, p);
  launch_wide<T, 64>(target, scratch, p);
}

}  // namespace

int64_t SharedSums::partial_bytes(const Target& target) {
  const int64_t room = target.compute_capability == 90 ? kMostBroadTile : 2 * kMostWideTile;
  return target.multiprocessors * room * static_cast<int64_t>(sizeof(float));
}
int64_t SharedSums::bytes(const Target& target) {
  return partial_bytes(target) + target.multiprocessors * int64_t{2 * sizeof(int32_t)};
}
SharedSums SharedSums::in(const Target& target, void* memory) {
  return {.partials = static_cast<float*>(memory),
          .arrivals = reinterpret_cast<int32_t*>(static_cast<char*>(memory) + partial_bytes(target))};
}

void wide_gemm(const Target& target, const SharedSums& scratch, const Product& p) {
  check(target.activations != DType::kF32, "wide_gemm: f32 activations have tile_gemm_f32");
  check(p.norm_weight == nullptr, "wide_gemm: norms are a kernel of their own");
  check_at_least("wide_gemm, most rows less m", kMaxWideRows - p.m, 0);
  check_fusion(p);
  if (wide_sm90_takes(target, p)) return wide_gemm_sm90(target, p);
  target.activations == DType::kBF16 ? launch_wide<bf16>(target, scratch, p)
                                     : launch_wide<f16>(target, scratch, p);
}

}  // namespace quire::QUIRE_SIDE
