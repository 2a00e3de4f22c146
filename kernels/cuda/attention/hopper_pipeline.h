// How work, queries, K and V reach the warpgroups of prefill_sm90.cu: the layout of shared memory, its
// barriers, and the warps that fill it.
//
// The copying warp draws tiles of rows from a counter that all blocks of threads share, so that no block has
// the long tiles of every round, and hands each on through a ring. K and V tiles of 128 slots come by tensor
// copies, one box a KV block. Two more warps bring the queries of the next tile of rows under the current one.
#pragma once

#include "kernels/cuda/attention/flash_tile.h"
#include "kernels/cuda/attention/task_finder.h"
#include "kernels/cuda/wgmma.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kWarpgroup = 128;  // threads
inline constexpr int kConsumers = 2;    // warpgroups that multiply
inline constexpr int kConsumerWarps = kConsumers * kWarpgroup / kWarp;
inline constexpr int kHopperThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kHopperRows = 64 * kConsumers;
inline constexpr int kHopperSlots = 128;
inline constexpr int kKeyStages = 2, kValueStages = 2, kQueryBuffers = 2, kItemSlots = 4;
inline constexpr int kQueryWarps = kConsumers;

struct HopperParams {
  FlashParams flash;
  int32_t units;     // kv heads x splits: work items a tile of rows
  int32_t* counter;  // items drawn; zero between launches
};

// A tile of rows of one kv head and split. One without slots has a tile all the same, of which nothing is seen.
struct HopperItem {
  FlashTask task;
  int split;
  int tiles;    // of slots; 0: no more items
  int all_end;  // the end of the slots that every row sees, from task.begin on
};

__device__ inline int first_tile_slot(const FlashTask& task) {
  return task.begin / kHopperSlots * kHopperSlots;
}
__device__ inline int tiles_of(const FlashTask& task) {
  return max(1, (task.end - first_tile_slot(task) + kHopperSlots - 1) / kHopperSlots);
}

// Rows of a box: a KV block, at most a tile.
__device__ __host__ inline int rows_of_box(int block_shift) {
  return min(1 << block_shift, kHopperSlots);
}

// Shared memory, in bytes from its start. Tiles of K and V: [row / 8][panel of 64 columns][row % 8][128 bytes],
// so that a KV block is one box (MapOfEights) in one piece; queries: [panel][64 rows][128 bytes]. All swizzled.
template <int kDim>
struct HopperLayout {
  static constexpr int kPanels = kDim / 64;
  static constexpr int kRowBytes = kDim * 2, kEightRows = 8 * kRowBytes;
  static constexpr int kPanelStride = 8 * 128;  // in a tile of K or V
  static constexpr int kTileBytes = kHopperSlots * kRowBytes;
  static constexpr int kQueryPanelBytes = 64 * 128;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;  // of one warpgroup
  static constexpr int kValues = kKeyStages * kTileBytes, kQueries = kValues + kValueStages * kTileBytes;
  static constexpr int kItems = kQueries + kQueryBuffers * kConsumers * kQueryBytes;
  static constexpr int kBarriers = kItems + kItemSlots * int{sizeof(HopperItem)};
  static constexpr int kBytes = kBarriers + 2 * (kKeyStages + kValueStages + kQueryBuffers + kItemSlots) * 8;
  static_assert(kBarriers % 8 == 0);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A ring position: stage and the parity of its round.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, round ^= 1;
  }
};

// A barrier that a stage is full, and one that it is empty, for every stage of four rings.
template <int kDim>
struct HopperBarriers {
  uint32_t base;

  __device__ TransactionBarrier keys_full(int s) const { return at(2 * s); }
  __device__ TransactionBarrier keys_empty(int s) const { return at(2 * s + 1); }
  __device__ TransactionBarrier values_full(int s) const { return at(2 * (kKeyStages + s)); }
  __device__ TransactionBarrier values_empty(int s) const { return at(2 * (kKeyStages + s) + 1); }
  __device__ TransactionBarrier queries_full(int s) const { return at(2 * (kKeyStages + kValueStages + s)); }
  __device__ TransactionBarrier queries_empty(int s) const {
    return at(2 * (kKeyStages + kValueStages + s) + 1);
  }
  __device__ TransactionBarrier item_full(int s) const { return at(2 * (kFirstItem + s)); }
  __device__ TransactionBarrier item_empty(int s) const { return at(2 * (kFirstItem + s) + 1); }

  __device__ void init() const {
    for (int s = 0; s < kKeyStages; ++s) keys_full(s).init(1), keys_empty(s).init(kConsumerWarps);
    for (int s = 0; s < kValueStages; ++s) values_full(s).init(1), values_empty(s).init(kConsumerWarps);
    for (int s = 0; s < kQueryBuffers; ++s)
      queries_full(s).init(kQueryWarps), queries_empty(s).init(kConsumerWarps);
    for (int s = 0; s < kItemSlots; ++s)
      item_full(s).init(1), item_empty(s).init(kConsumerWarps + kQueryWarps);
  }

 private:
  static constexpr int kFirstItem = kKeyStages + kValueStages + kQueryBuffers;
  __device__ TransactionBarrier at(int i) const {
    return {base + HopperLayout<kDim>::kBarriers + 8 * static_cast<uint32_t>(i)};
  }
};

template <int kDim>
__device__ inline Shared<HopperItem> hopper_item(int stage) {
  return (dynamic_shared() + HopperLayout<kDim>::kItems).template as<HopperItem>() + stage;
}

// ---- the warp that draws items and copies K and V ----
template <int kDim, bool kCascade>
struct HopperCopier {
  using L = HopperLayout<kDim>;
  const HopperParams& a;
  const AttentionView& v;
  const CUtensorMap* map;
  const HopperBarriers<kDim> barriers;
  uint32_t shared;
  TaskFinder<kHopperRows, kCascade> finder{a.flash};
  int lane = threadIdx.x % kWarp;
  RingPosition<kKeyStages> keys;
  RingPosition<kValueStages> values;
  RingPosition<kItemSlots> items;

  // The KV blocks of a tile of slots: how many are copied, and where this lane's begins, in eights of the map's rows.
  // Blocks past the list are not copied: the stage keeps older numbers there, which masks or zeros hide.
  static constexpr int kCopiedFirst = 2;  // tiles of an item before the next is looked for
  struct Tile {
    int blocks = -1, eight = 0;  // before the first: -1
  };

  // The values of a tile follow the keys of the next, whosever that is: the order in which they are used.
  __device__ void run() {
    HopperItem item{};
    Tile before{};
    int n = blockIdx.x;
    if (kCascade && a.flash.early_fetch) {
      item = item_at(n);
      hand_on(item);
      before = copy_first(item, before);
      wait_for_previous_kernel();
      if (item.tiles == 0) return leave(n);
      n = static_cast<int>(gridDim.x) + shfl(draw(), 0);
    } else {
      wait_for_previous_kernel();
    }
    while (true) {
      const HopperItem next = item_at(n);
      if (next.tiles == 0) leave(n);
      hand_on(next);
      for (int i = kCopiedFirst; i < item.tiles; ++i) before = copy_keys_before_values(item.task, i, before);
      if (next.tiles == 0) break;
      item = next;
      const int ticket = draw();  // comes while the first tiles are copied
      before = copy_first(item, before);
      n = static_cast<int>(gridDim.x) + shfl(ticket, 0);
    }
    if (before.blocks >= 0) copy_values(before);
  }

  __device__ Tile copy_first(const HopperItem& item, Tile before) {
    for (int i = 0; i < min(kCopiedFirst, item.tiles); ++i)
      before = copy_keys_before_values(item.task, i, before);
    return before;
  }

  __device__ Tile copy_keys_before_values(const FlashTask& task, int i, const Tile& before) {
    const Tile tile = tile_at(task, first_tile_slot(task) + i * kHopperSlots);
    copy_keys(tile);
    if (before.blocks >= 0) copy_values(before);
    return tile;
  }

  // ---- items: n counts tiles of rows from the end, kv heads fastest ----
  __device__ HopperItem item_at(int n) {
    HopperItem item{};
    int entry, tile;
    if (!finder.find(n / a.units, entry, tile)) return item;
    int unit = n % a.units;
    const int heads = a.flash.view.num_kv_heads;
    if constexpr (kCascade) beside_each_other(n, entry, tile, unit);
    item.split = unit / heads;
    item.task = make_task<kHopperRows, kCascade>(a.flash, entry, tile, unit % heads, item.split);
    item.tiles = tiles_of(item.task);
    item.all_end = all_see(item.task);
    return item;
  }

  // The tiles of a node's unit one after another: they read the same slots, so together.
  __device__ void beside_each_other(int n, int entry, int& tile, int& unit) const {
    const int tiles = flash_tiles<kHopperRows, kCascade>(a.flash, entry);
    const int of_node = n - (n / a.units - (tiles - 1 - tile)) * a.units;
    unit = of_node / tiles;
    tile = of_node % tiles;
  }

  // The end of the slots that every row sees; 0 where windows may hide any.
  __device__ int all_see(const FlashTask& task) const {
    if (kCascade) return task.end;
    return has_windows(v) ? 0 : min(task.end, task.index_of_row0 + task.first_row / v.group + 1);
  }

  // A block's first item is its own number, every further one is drawn. So there are as many draws as items, and the
  // last of them, which finds nothing, leaves the counter zero.
  __device__ int draw() const { return lane == 0 ? atomic_add(a.counter, 1) : 0; }
  __device__ void leave(int n) const {
    const int last = static_cast<int>(gridDim.x) + finder.tiles_before * a.units - 1;
    if (lane == 0 && n == last) store(a.counter, 0);
  }

  __device__ void hand_on(const HopperItem& item) {
    barriers.item_empty(items.stage).wait(items.round ^ 1);
    if (lane == 0) {
      hopper_item<kDim>(items.stage)[0] = item;
      barriers.item_full(items.stage).arrive();
    }
    items.next();
  }

  // ---- copies ----
  __device__ Tile tile_at(const FlashTask& task, int slot) const {
    const int rows = rows_of_box(v.block_shift), live = min(kHopperSlots, task.length - slot);
    const Tile tile{.blocks = max(0, live + rows - 1) / rows, .eight = 0};
    if (lane >= tile.blocks) return tile;
    const int at = slot + lane * rows;
    const int32_t block = load(table_of(v, task.sequence, task.head) + (at >> v.block_shift));
    const int64_t byte =
        block * v.block_bytes + task.head * v.head_bytes + (at & ((1 << v.block_shift) - 1)) * L::kRowBytes;
    return {tile.blocks, static_cast<int>(byte / L::kEightRows)};
  }
  __device__ void copy_keys(const Tile& tile) {
    barriers.keys_empty(keys.stage).wait(keys.round ^ 1);
    copy(tile, tile.eight, shared + keys.stage * L::kTileBytes, barriers.keys_full(keys.stage));
    keys.next();
  }
  __device__ void copy_values(const Tile& tile) {
    barriers.values_empty(values.stage).wait(values.round ^ 1);
    copy(tile, tile.eight + static_cast<int>(v.v_offset / L::kEightRows),
         shared + L::kValues + values.stage * L::kTileBytes, barriers.values_full(values.stage));
    values.next();
  }
  // A lane a KV block.
  __device__ void copy(const Tile& tile, int eight, uint32_t target, TransactionBarrier full) const {
    const int bytes = rows_of_box(v.block_shift) * L::kRowBytes;
    if (lane == 0) full.arrive_expecting(tile.blocks * bytes);
    sync_warp();
    if (lane < tile.blocks) copy_eights(target + lane * bytes, map, eight, full);
  }
};

// ---- the warps that bring queries, one for each warpgroup ----
template <class T, int kDim, bool kCascade>
struct HopperQueries {
  using L = HopperLayout<kDim>;
  const HopperParams& a;
  const AttentionView& v;
  const HopperBarriers<kDim> barriers;
  int group;  // the warpgroup that it is for
  int lane = threadIdx.x % kWarp;
  RingPosition<kItemSlots> items;
  RingPosition<kQueryBuffers> buffers;

  __device__ void run() {
    while (true) {
      barriers.item_full(items.stage).wait(items.round);
      const HopperItem item = hopper_item<kDim>(items.stage)[0];
      sync_warp();
      if (lane == 0) barriers.item_empty(items.stage).arrive();
      items.next();
      if (item.tiles == 0) return;
      barriers.queries_empty(buffers.stage).wait(buffers.round ^ 1);
      fetch(item.task, L::kQueries + (buffers.stage * kConsumers + group) * L::kQueryBytes);
      cp_async_commit();
      cp_async_wait<0>();
      fence_async_proxy();
      sync_warp();
      if (lane == 0) barriers.queries_full(buffers.stage).arrive();
      buffers.next();
    }
  }

  // A lane finds where one row's query begins; then two rows (four of 64) go at once. A division for each chunk took
  // longer than the products of a short tile of rows.
  __device__ void fetch(const FlashTask& task, int target) const {
    constexpr int kRowChunks = kDim / 8, kAtOnce = kWarp / kRowChunks;
    const int column = lane % kRowChunks;
    for (int from = 0; from < 64; from += kWarp) {
      const int64_t mine = element_of(task, task.first_row + group * 64 + from + lane);
#pragma unroll 4
      for (int i = 0; i < kWarp; i += kAtOnce) {
        const int row = from + i + lane / kRowChunks;
        const int64_t element = shfl(mine, i + lane / kRowChunks);
        const int place = column / 8 * L::kQueryPanelBytes + row * 128 + ((column % 8 ^ (row & 7)) << 4);
        cp_async16_or_zero(dynamic_shared() + (target + place),
                           static_cast<const T*>(v.q) + max(element, int64_t{0}) + column * 8, element >= 0);
      }
    }
  }

  // -1 past the last row.
  __device__ int64_t element_of(const FlashTask& task, int packed) const {
    if (packed >= task.rows) return -1;
    return query_row_of<kCascade>(a.flash, task, packed) * v.q_stride +
           (task.head * v.group + packed % v.group) * kDim;
  }
};

#endif  // sm_90a

}  // namespace quire::QUIRE_SIDE
