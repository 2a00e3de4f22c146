// Products of 17 to 64 rows by mma.sync (wide.cu): how the tiles of w are shared among blocks of threads, how the sums
// of a tile that several blocks made come together, and how they are written.
//
// A tile is 128 rows of w times all rows of x; a step is 64 columns of k. The steps of all tiles, one after another, are
// cut into equal ranges, one per block, so that every multiprocessor streams the same number of bytes: a layer of an 8B
// model has 32 to 224 tiles, and whole tiles would leave a sixth of 132 multiprocessors idle. A block's part of a tile is
// a fragment; the block with the tile's first step is its head. A fragment that is no whole tile goes to memory as
// float32. They are added in the order of k, whoever adds them, so a second run gives the same bits.
#pragma once

#include "kernels/cuda/attention/work_split.h"
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/matmul.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kWidePanel = 64;        // columns: 128 bytes, a row of a swizzled panel
inline constexpr int kWidePanelBytes = 128;  // of a row
inline constexpr int kLeastWideSteps = 4;    // of a range; fewer cost more in partial sums than they save

struct WideParams {
  Product p;
  SharedSums scratch;
  int32_t tiles = 0, steps = 0;  // steps: of one tile
};

struct WideFragment {
  int tile, first, count;  // steps [first, first + count) of the tile
};

// The fragments of a block, in order.
class WideRange {
 public:
  __device__ WideRange(const WideParams& a, int block, int blocks)
      : ranges_(Ranges::best(a.tiles * a.steps, blocks, kLeastWideSteps, a.steps)),
        steps_(a.steps),
        at_(block < ranges_.parts ? ranges_.begin(block) : ranges_.total),
        end_(block < ranges_.parts ? ranges_.begin(block + 1) : ranges_.total) {}

  __device__ int num_steps() const { return end_ - at_; }
  __device__ bool next(WideFragment& f) {
    if (at_ >= end_) return false;
    f.tile = at_ / steps_;
    f.first = at_ - f.tile * steps_;
    f.count = min(steps_ - f.first, end_ - at_);
    at_ += f.count;
    return true;
  }
  __device__ bool whole(const WideFragment& f) const { return f.count == steps_; }
  __device__ int head_of(const WideFragment& f) const { return ranges_.owner(f.tile * steps_); }
  __device__ int last_of(const WideFragment& f) const { return ranges_.owner(f.tile * steps_ + steps_ - 1); }

 private:
  Ranges ranges_;
  int steps_, at_, end_;
};

// Where a block's partial sums lie: it is the head of at most one split tile, and no head of at most one. `threads`
// threads of kQuads times four sums each; each quad of all threads is one run of memory.
template <int kQuads>
struct PartialSums {
  float4* base;
  int threads, thread;

  __device__ static PartialSums of(const SharedSums& scratch, int block, bool head, int threads, int thread) {
    const int64_t slot = int64_t{2} * block + (head ? 1 : 0);
    return {reinterpret_cast<float4*>(scratch.partials) + slot * kQuads * threads, threads, thread};
  }
  template <int kCount>
  __device__ void put(int first, const float (&sums)[kCount][4]) const {
#pragma unroll
    for (int q = 0; q < kCount; ++q)
      store(base + (first + q) * threads + thread,
            make_float4(sums[q][0], sums[q][1], sums[q][2], sums[q][3]));
  }
  template <int kCount>
  __device__ void add_to(int first, float (&sums)[kCount][4]) const {
    constexpr int kBatch = kCount < 8 ? kCount : 8;  // loads under way: each comes from L2
#pragma unroll
    for (int from = 0; from < kCount; from += kBatch) {
      float4 v[kBatch];
#pragma unroll
      for (int q = 0; q < kBatch; ++q)
        v[q] = load_shared_by_grid(base + (first + from + q) * threads + thread);
#pragma unroll
      for (int q = 0; q < kBatch; ++q) {
        sums[from + q][0] += v[q].x, sums[from + q][1] += v[q].y;
        sums[from + q][2] += v[q].z, sums[from + q][3] += v[q].w;
      }
    }
  }
};

// What a warp holds of 16 rows of w (from row0) times kTokens rows of x: sums[j] are rows 8j + 2 (lane % 4) and the one
// after of x times rows lane / 4 (first two) and lane / 4 + 8 (last two) of w, as mma leaves them.
template <class T, int kTokens>
__device__ inline void put_sums(const Product& p, int row0, const float (&sums)[kTokens / 8][4]) {
  const int lane = threadIdx.x % kWarp, row = row0 + lane / 4;
  if (p.gated) {  // rows g and g + 8 are a pair
    if (row0 >= p.n) return;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int m = j * 8 + lane % 4 * 2 + e;
        if (m < p.m) put_gated<T>(p, m, row0 / 2 + lane / 4, sums[j][e], sums[j][2 + e]);
      }
    return;
  }
#pragma unroll
  for (int j = 0; j < kTokens / 8; j += 2) {
    float before[2][4];  // all loads of the residual stream before the first store
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int m = (j + i / 4) * 8 + lane % 4 * 2 + i % 2, n = row + i % 4 / 2 * 8;
      before[i / 4][i % 4] = m < p.m && n < p.n ? before_sum<T>(p, m, n) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int m = (j + i / 4) * 8 + lane % 4 * 2 + i % 2, n = row + i % 4 / 2 * 8;
      if (m < p.m && n < p.n) put_sum<T>(p, m, n, sums[j + i / 4][i % 4], before[i / 4][i % 4]);
    }
  }
}

// Host.
inline WideParams wide_params(const Product& p, const SharedSums& scratch, int rows) {
  return {.p = p,
          .scratch = scratch,
          .tiles = ceil_div(p.n, rows),
          .steps = static_cast<int32_t>(ceil_div<int64_t>(p.w_stride, kWidePanel))};
}

}  // namespace quire::QUIRE_SIDE
