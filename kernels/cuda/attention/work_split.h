// Stream-K for ragged lists: the tiles of all lists, one after another, are cut into equal ranges, one per block of threads,
// wherever lists begin and end. Every block finds its range by itself from the lists' lengths (a scan that takes about a
// microsecond and runs before the wait for the kernel before), so no plan is made on the host or kept in memory.
#pragma once

#include "kernels/cuda/portable.h"

namespace quire::QUIRE_SIDE {

// `total` tiles over `parts` ranges that differ by at most one tile.
struct EqualRanges {
  int total, parts, each, longer;  // the first `longer` ranges have each + 1 tiles

  __device__ static EqualRanges make(int total, int max_parts, int min_tiles) {
    const int parts = max(1, min(max_parts, (total + min_tiles - 1) / min_tiles));
    return {total, parts, total / parts, total % parts};
  }
  __device__ int begin(int part) const { return part * each + min(part, longer); }
  __device__ int owner(int tile) const {
    const int in_longer = longer * (each + 1);
    return tile < in_longer ? tile / (each + 1) : longer + (tile - in_longer) / each;
  }
};

struct WorkStart {
  int total;        // tiles of all entries
  int entry;        // where tile `begin(part)` lies
  int entry_begin;  // tiles of the entries before it
};

inline constexpr int kScanInts = 36;  // shared memory of find_work, in int32

// Called by all threads of a block. weight(e) = tiles of entry e, 0 <= e < entries. `first(total)` gives the first tile of this
// block, or a number >= total when it has no work.
template <class Weight, class First>
__device__ inline WorkStart find_work(Shared<int32_t> scratch, int entries, Weight weight, First first) {
  const int threads = blockDim.x, thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp, warps = threads / kWarp;
  const int each = (entries + threads - 1) / threads;
  const int from = min(entries, thread * each), to = min(entries, from + each);
  int mine = 0;
  for (int e = from; e < to; ++e) mine += weight(e);
  int inclusive = mine;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = shfl_up(inclusive, d);
    if (lane >= d) inclusive += below;
  }
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  sync_threads();
  int before = inclusive - mine, total = 0;
  for (int w = 0; w < warps; ++w) {
    const int sum = scratch[w];
    if (w < warp) before += sum;
    total += sum;
  }
  const int tile = first(total);
  if (tile >= before && tile < before + mine) {
    int e = from;
    for (int w = weight(e); tile >= before + w; w = weight(e)) {
      before += w;
      ++e;
    }
    scratch[32] = e;
    scratch[33] = before;
  }
  sync_threads();
  if (tile >= total) return {total, entries, total};
  return {total, scratch[32], scratch[33]};
}

}  // namespace quire::QUIRE_SIDE
