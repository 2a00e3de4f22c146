// Stream-K for ragged lists: the tiles of all units, one after another, are cut into ranges, one per block of
// threads, wherever units begin and end.
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
  // Of a unit's tiles only the first `live` take time.
  __device__ static Ranges aligned(int total, int max_parts, int min_tiles, int unit, int live) {
    const int units = total / unit;
    if (units >= max_parts) {
      const int group = (units + max_parts - 1) / max_parts * unit;
      return {total, (total + group - 1) / group, group, 0, group, 1};
    }
    const int wanted = max(1, min(max_parts / units, live / min_tiles)), each = (live + wanted - 1) / wanted;
    const int parts_of_unit = (live + each - 1) / each;
    return {total, units * parts_of_unit, each, 0, unit, parts_of_unit};
  }
  __device__ static Ranges best(int total, int max_parts, int min_tiles, int unit) {
    return best(total, max_parts, min_tiles, unit, unit);
  }
  // Aligned where that leaves at most a tenth of the blocks without work, or where ranges are so short that
  // merging outweighs it.
  __device__ static Ranges best(int total, int max_parts, int min_tiles, int unit, int live) {
    const Ranges r = equal(total, max_parts, min_tiles);
    if (unit == 0) return r;
    const Ranges a = aligned(total, max_parts, min_tiles, unit, live);
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

}  // namespace quire::QUIRE_SIDE
