// Which tile of rows is the n-th from the end, found by one warp from the device's own counts. From the end,
// because the last tile of a sequence sees the most slots, and long work should start first. Asked for
// growing n; remembers the 32 sequences (or nodes) it stands at, so each question of a block that takes many
// tiles costs one scan of a warp as a rule.
#pragma once

#include "kernels/cuda/attention/flash_tile.h"

namespace quire::QUIRE_SIDE {

template <int kRows, bool kCascade>
struct TaskFinder {
  const FlashParams& a;
  int entries, group_from = 0, tiles_before = 0;  // the group of 32 entries, counted from the last entry

  __device__ explicit TaskFinder(const FlashParams& params)
      : a(params), entries(kCascade ? params.num_nodes : params.view.num_sequences) {}

  // entry and its tile; false past the last. All lanes of the warp ask for the same n.
  __device__ bool find(int n, int& entry, int& tile) {
    const int lane = threadIdx.x % kWarp;
    for (; group_from < entries; group_from += kWarp) {
      const int mine =
          group_from + lane < entries ? flash_tiles<kRows, kCascade>(a, entries - 1 - group_from - lane) : 0;
      int inclusive = mine;
#pragma unroll
      for (int d = 1; d < kWarp; d *= 2) {
        const int below = shfl_up(inclusive, d);
        if (lane >= d) inclusive += below;
      }
      const int total = shfl(inclusive, kWarp - 1);
      if (n < tiles_before + total) {
        const int owner = count_bits(ballot(tiles_before + inclusive <= n));
        entry = entries - 1 - group_from - owner;
        const int from_end = n - tiles_before - (shfl(inclusive, owner) - shfl(mine, owner));
        tile = shfl(mine, owner) - 1 - from_end;
        return true;
      }
      tiles_before += total;
    }
    return false;
  }
};

}  // namespace quire::QUIRE_SIDE
