// Stream-K for ragged lists: the tiles of all units, one after another, are cut into ranges, one per block of
// threads, wherever units begin and end. Every block finds its range by itself from the lists' lengths (a
// scan that takes about a microsecond and runs before the wait for the kernel before), so no plan is made on
// the host or kept in memory.
#pragma once

#include "kernels/cuda/portable.h"

namespace quire::QUIRE_SIDE {

// Ranges of `total` tiles, one per part. Two ways:
//   equal     they differ by at most one tile; borders fall inside units.
//   aligned   when all units have the same number of tiles: a range is several whole units, or a unit is cut
//   in ranges of the same
//             length. Fewer partial results and merges, at the price of a few idle blocks.
struct Ranges {
  int total, parts;
  int each, longer;           // equal: the first `longer` ranges have each + 1 tiles
  int group, parts_of_group;  // aligned: a group of tiles is cut in parts of `each`; group = 0: equal

  __device__ static Ranges equal(int total, int max_parts, int min_tiles) {
    const int parts = max(1, min(max_parts, (total + min_tiles - 1) / min_tiles));
    return {total, parts, total / parts, total % parts, 0, 0};
  }
  __device__ static Ranges aligned(int total, int max_parts, int min_tiles, int unit) {
    const int units = total / unit;
    if (units >= max_parts) {
      const int group = (units + max_parts - 1) / max_parts * unit;
      return {total, (total + group - 1) / group, group, 0, group, 1};
    }
    const int wanted = max(1, min(max_parts / units, unit / min_tiles)), each = (unit + wanted - 1) / wanted;
    const int parts_of_unit = (unit + each - 1) / each;
    return {total, units * parts_of_unit, each, 0, unit, parts_of_unit};
  }
  // Aligned where that leaves at most a tenth of the blocks without work, or where ranges are so short that
  // merging outweighs it.
  __device__ static Ranges best(int total, int max_parts, int min_tiles, int unit) {
    const Ranges r = equal(total, max_parts, min_tiles);
    if (unit == 0) return r;
    const Ranges a = aligned(total, max_parts, min_tiles, unit);
    const bool few_idle = int64_t{a.each} * max_parts * 9 <= int64_t{total} * 10;
    return few_idle || a.each <= 2 * min_tiles ? a : r;
  }

  __device__ int begin(int part) const {
    if (group == 0) return part * each + min(part, longer);
    return min(total, part / parts_of_group * group + min(part % parts_of_group * each, group));
  }
  __device__ int owner(int tile) const {
    if (group != 0) return tile / group * parts_of_group + tile % group / each;
    const int in_longer = longer * (each + 1);
    return tile < in_longer ? tile / (each + 1) : longer + (tile - in_longer) / each;
  }
};

struct WorkStart {
  int total;        // tiles of all entries
  int entry;        // where this block's first tile lies; the number of entries if it has none
  int entry_begin;  // tiles of the entries before it
};

inline constexpr int kScanInts = 3 * kWarp + 2;  // shared memory of find_work, in int32

// Called by all threads of a block. weight(e) = tiles of entry e, 0 <= e < entries. first(total, uniform)
// gives the first tile of this block, or `total` when it has no work; uniform is the weight of every entry
// that has any, or 0 if they differ.
template <class Weight, class First>
__device__ inline WorkStart find_work(Shared<int32_t> scratch, int entries, Weight weight, First first) {
  const int threads = blockDim.x, thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp,
            warps = threads / kWarp;
  const int each = entries <= threads ? 1 : (entries + threads - 1) / threads;
  const int from = min(entries, thread * each), to = min(entries, from + each);
  int mine = 0, most = 0, least = 0x7fffffff;
  for (int e = from; e < to; ++e) {
    const int w = weight(e);
    mine += w;
    most = max(most, w);
    if (w > 0) least = min(least, w);
  }
  int inclusive = mine;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = shfl_up(inclusive, d);
    if (lane >= d) inclusive += below;
    most = max(most, shfl_xor(most, d));
    least = min(least, shfl_xor(least, d));
  }
  if (lane == kWarp - 1) {
    scratch[warp] = inclusive;
    scratch[kWarp + warp] = most;
    scratch[2 * kWarp + warp] = least;
  }
  sync_threads();
  int before = inclusive - mine, total = 0;
  for (int w = 0; w < warps; ++w) {
    const int sum = scratch[w];
    if (w < warp) before += sum;
    total += sum;
    most = max(most, static_cast<int32_t>(scratch[kWarp + w]));
    least = min(least, static_cast<int32_t>(scratch[2 * kWarp + w]));
  }
  const int tile = first(total, most == least ? most : 0);
  if (tile >= before && tile < before + mine) {
    int e = from;
    for (int w = weight(e); tile >= before + w; w = weight(e)) {
      before += w;
      ++e;
    }
    scratch[3 * kWarp] = e;
    scratch[3 * kWarp + 1] = before;
  }
  sync_threads();
  if (tile >= total) return {total, entries, total};
  return {total, scratch[3 * kWarp], scratch[3 * kWarp + 1]};
}

}  // namespace quire::QUIRE_SIDE
