// Prefill attention for Hopper: head sizes 64 and 128, 16-bit types. Also the cascade's first phase there.
//
// A block stays on its multiprocessor and takes tiles of 128 packed query rows of one kv head, longest first.
// One warp copies K and V tiles of 128 slots by tensor copies, one box a KV block and 64 columns, into a ring
// of two stages; two warpgroups of 64 rows each multiply (wgmma, P from registers) and keep ahead of
// themselves: dot products of tile j + 1 are under way while the values of tile j are summed and the softmax
// of j + 1 is made; the two take turns at issuing products, so one's softmax runs under the other's products
// (FlashAttention-3, arXiv 2407.08608, sections 3.1 and 3.2). The next tile's queries and first K arrive
// under the current one. Bound: tensor cores.
//
// Masks, softmax, epilogue and the choice of tiles are flash_tile.h and task_finder.h, which the host shim
// tests through prefill.cu. Not here: q_sink and soft_cap, which prefill.cu takes.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/flash_tile.h"
#include "kernels/cuda/attention/prefill_sm90.h"
#include "kernels/cuda/attention/task_finder.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kHopperThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kHopperRows = 64 * kConsumers;
constexpr int kHopperSlots = 128;
constexpr int kHopperStages = 2;
constexpr int kPanelColumns = 64;  // 128 bytes: what the swizzle spans

struct HopperParams {
  FlashParams flash;
  int32_t units;  // kv heads x splits: work items a tile of rows
};

enum NamedBarrier {
  kQueriesReady = 1,
  kTurn = kQueriesReady + kConsumers,
  kAllConsumers = kTurn + kConsumers
};

// Shared memory, in bytes from its start, where the keys are. Panels: [128 or 64 rows][128 bytes], swizzled.
template <int kDim>
struct HopperLayout {
  static constexpr int kPanels = kDim / kPanelColumns;
  static constexpr int kPanelBytes = kHopperSlots * 128;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static constexpr int kQueryPanelBytes = 64 * 128;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;  // of one warpgroup
  static constexpr int kValues = kHopperStages * kTileBytes, kQueries = 2 * kValues;
  static constexpr int kBarriers = kQueries + 2 * kConsumers * kQueryBytes;
  static constexpr int kBytes = kBarriers + 4 * kHopperStages * 8;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// A ring position: stage and the parity of its round.
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;
  __device__ void next() {
    if (++stage == kHopperStages) stage = 0, round ^= 1;
  }
};

template <int kDim>
struct HopperBarriers {
  uint32_t base;
  __device__ TransactionBarrier at(int i) const {
    return {base + HopperLayout<kDim>::kBarriers + 8 * static_cast<uint32_t>(i)};
  }
  __device__ TransactionBarrier keys_full(int s) const { return at(s); }
  __device__ TransactionBarrier keys_empty(int s) const { return at(kHopperStages + s); }
  __device__ TransactionBarrier values_full(int s) const { return at(2 * kHopperStages + s); }
  __device__ TransactionBarrier values_empty(int s) const { return at(3 * kHopperStages + s); }

  __device__ void init() const {
    for (int s = 0; s < kHopperStages; ++s) {
      keys_full(s).init(1);
      values_full(s).init(1);
      keys_empty(s).init(kConsumers * kWarpgroup / kWarp);
      values_empty(s).init(kConsumers * kWarpgroup / kWarp);
    }
  }
};

// The work items of a block, in order: every gridDim.x-th, heads fastest.
template <bool kCascade>
struct WorkItems {
  const HopperParams& a;
  TaskFinder<kHopperRows, kCascade> finder;
  int item = blockIdx.x;

  __device__ explicit WorkItems(const HopperParams& params) : a(params), finder(params.flash) {}
  __device__ bool next(FlashTask& task, int& split) {
    int entry, tile;
    if (!finder.find(item / a.units, entry, tile)) return false;
    const int unit = item % a.units, heads = a.flash.view.num_kv_heads;
    split = unit / heads;
    task = make_task<kHopperRows, kCascade>(a.flash, entry, tile, unit % heads, split);
    item += gridDim.x;
    return true;
  }
};

__device__ inline int first_tile_slot(const FlashTask& task) {
  return task.begin / kHopperSlots * kHopperSlots;
}
__device__ inline int tiles_of(const FlashTask& task) {
  return task.end <= task.begin ? 0 : (task.end - first_tile_slot(task) + kHopperSlots - 1) / kHopperSlots;
}

// ---- the warp that copies ----
template <int kDim, bool kCascade>
struct Producer {
  using L = HopperLayout<kDim>;
  const HopperParams& a;
  const AttentionView& v;
  const CUtensorMap* map;
  const HopperBarriers<kDim> barriers;
  uint32_t shared;
  int lane = threadIdx.x % kWarp;
  RingPosition keys, values;

  __device__ void run() {
    WorkItems<kCascade> items(a);
    FlashTask task;
    for (int split; items.next(task, split);) {
      const int first = first_tile_slot(task), tiles = tiles_of(task);
      for (int i = 0; i < tiles; ++i) {
        copy_keys(task, first + i * kHopperSlots);
        if (i > 0) copy_values(task, first + (i - 1) * kHopperSlots);
      }
      if (tiles > 0) copy_values(task, first + (tiles - 1) * kHopperSlots);
    }
  }

  __device__ void copy_keys(const FlashTask& task, int slot) {
    barriers.keys_empty(keys.stage).wait(keys.round ^ 1);
    copy_tile(task, slot, 0, shared + keys.stage * L::kTileBytes, barriers.keys_full(keys.stage));
    keys.next();
  }
  __device__ void copy_values(const FlashTask& task, int slot) {
    barriers.values_empty(values.stage).wait(values.round ^ 1);
    copy_tile(task, slot, v.v_offset, shared + L::kValues + values.stage * L::kTileBytes,
              barriers.values_full(values.stage));
    values.next();
  }

  // A lane a KV block. Blocks past the list are not copied: the stage keeps older numbers there, which masks
  // or zeros hide.
  __device__ void copy_tile(const FlashTask& task, int slot, int64_t offset, uint32_t target,
                            TransactionBarrier full) {
    const int block_tokens = 1 << v.block_shift, rows = min(block_tokens, kHopperSlots);
    const int live = min(kHopperSlots, task.length - slot), boxes = (live + rows - 1) / rows;
    if (lane == 0) full.arrive_expecting(boxes * rows * kDim * 2);
    __syncwarp();
    if (lane >= boxes) return;
    const int at = slot + lane * rows;
    const int32_t block = load(table_of(v, task.sequence, task.head) + (at >> v.block_shift));
    const int64_t byte =
        block * v.block_bytes + task.head * v.head_bytes + offset + (at & (block_tokens - 1)) * (kDim * 2);
    const int row = static_cast<int>(byte / (kDim * 2));
#pragma unroll
    for (int p = 0; p < L::kPanels; ++p)
      copy_box(target + p * L::kPanelBytes + lane * rows * 128, map, p * kPanelColumns, row, full);
  }
};

// ---- a warpgroup that multiplies ----
template <class T, int kDim, bool kCascade>
struct Consumer {
  using L = HopperLayout<kDim>;
  static constexpr int kColumns = kHopperSlots / 8, kSteps = kDim / 16, kValueSteps = kHopperSlots / 16;

  const HopperParams& a;
  const AttentionView& v;
  const HopperBarriers<kDim> barriers;
  uint32_t shared;
  int group = threadIdx.x / kWarpgroup - 1, thread = threadIdx.x % kWarpgroup, lane = threadIdx.x % kWarp;
  int buffer = 0;  // of the queries
  RingPosition keys, values;
  FlashTask task, next_task;
  int split, next_split;
  FlashRows<1> rows;
  FlashScores<1, kColumns> scores;
  uint32_t p[kValueSteps][4];
  float sums[kDim / 8][4];

  __device__ void run() {
    WorkItems<kCascade> items(a);
    bool more = items.next(task, split);
    if (more) fetch_queries(task, buffer);
    if (group == 0) named_arrive(kTurn, 2 * kWarpgroup);  // the first turn
    while (more) {
      cp_async_wait<0>();
      fence_async_proxy();
      named_sync(kQueriesReady + group,
                 kWarpgroup);  // queries have come; the other buffer's last use is over
      more = items.next(next_task, next_split);
      if (more) fetch_queries(next_task, buffer ^ 1);
      rows.reset();
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
      const int tiles = tiles_of(task);
      if (tiles > 0) go_through(tiles);
      write();
      task = next_task;
      split = next_split;
      buffer ^= 1;
    }
  }

  __device__ int first_row() const {
    return task.first_row + group * 64 + thread / kWarp * 16;
  }  // packed, of this warp
  __device__ uint32_t queries(int which) const {
    return shared + L::kQueries + (which * kConsumers + group) * L::kQueryBytes;
  }

  __device__ void fetch_queries(const FlashTask& of, int which) {
    const Shared<char> target{dynamic_shared().pointer + (queries(which) - shared)};
#pragma unroll 2
    for (int i = 0; i < 64 * kDim / 8 / kWarpgroup; ++i) {
      const int chunk = i * kWarpgroup + thread, row = chunk / (kDim / 8), column = chunk % (kDim / 8);
      const int packed = of.first_row + group * 64 + row;
      const bool valid = packed < of.rows;
      const T* from = static_cast<const T*>(v.q);
      if (valid)
        from += query_row_of<kCascade>(a.flash, of, packed) * v.q_stride +
                (of.head * v.group + packed % v.group) * kDim + column * 8;
      const int place = column / 8 * L::kQueryPanelBytes + row * 128 + ((column % 8 ^ (row & 7)) << 4);
      cp_async16_or_zero(target + place, from, valid);
    }
    cp_async_commit();
  }

  __device__ void go_through(int tiles) {
    int slot = first_tile_slot(task);
    barriers.keys_full(keys.stage).wait(keys.round);
    multiply_keys();
    wgmma_wait<0>();
    release(barriers.keys_empty(keys.stage), keys);
    float factor[1][2];
    weigh(slot, factor);  // the sums are zero yet: nothing to rescale
    keep_probabilities();
    for (int i = 1; i < tiles; ++i) {
      slot += kHopperSlots;
      barriers.keys_full(keys.stage).wait(keys.round);
      named_sync(kTurn + group, 2 * kWarpgroup);
      multiply_keys();
      barriers.values_full(values.stage).wait(values.round);
      add_values();
      named_arrive(kTurn + (group + 1) % kConsumers, 2 * kWarpgroup);
      wgmma_wait<1>();
      release(barriers.keys_empty(keys.stage), keys);
      const bool rescales = weigh(slot, factor);
      wgmma_wait<0>();
      release(barriers.values_empty(values.stage), values);
      keep_probabilities();
      if (rescales) rescale_sums(factor);
    }
    barriers.values_full(values.stage).wait(values.round);
    if (slot + kHopperSlots > task.length) clear_dead_values(task.length - slot);
    add_values();
    wgmma_wait<0>();
    release(barriers.values_empty(values.stage), values);
  }

  // This warp has read the stage; when all have, the producer fills it again.
  __device__ void release(TransactionBarrier empty, RingPosition& position) {
    if (lane == 0) empty.arrive();
    position.next();
  }

  __device__ void multiply_keys() {
    const uint32_t k = shared + keys.stage * L::kTileBytes, q = queries(buffer);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t in_panel = step % 4 * 32, panel = step / 4;
      wgmma_m64n128k16<T>(scores.s[0], operand_descriptor(q + panel * L::kQueryPanelBytes + in_panel, 0),
                          operand_descriptor(k + panel * L::kPanelBytes + in_panel, 0), step > 0);
    }
    wgmma_commit();
  }

  __device__ void add_values() {
    const uint32_t tile = shared + L::kValues + values.stage * L::kTileBytes;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step)
      wgmma_values<T>(sums, p[step], operand_descriptor(tile + step * 2048, L::kPanelBytes));
    wgmma_commit();
  }

  __device__ bool weigh(int slot, float (&factor)[1][2]) {
    const int least = task.index_of_row0 + task.first_row / v.group;  // the last slot that the first row sees
    const bool all_seen = slot >= task.begin && slot + kHopperSlots <= task.end &&
                          (kCascade || slot + kHopperSlots - 1 <= least) && !has_windows(v);
    if (!all_seen) scores.template mask<kCascade>(a.flash, task, first_row(), slot, task.begin, task.end);
    return scores.softmax(v.scale * kLog2e, rows, factor);
  }

  __device__ void keep_probabilities() {
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step) probabilities_as_a<T>(scores.s[0], step, p[step]);
  }

  __device__ void rescale_sums(const float (&factor)[1][2]) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor[0][i / 2];
  }

  // Rows of V past the list hold anything, NaN too, and zero times NaN is no zero. Only a list's last tile
  // has such rows; all consumers come here with it.
  __device__ void clear_dead_values(int live) {
    const Shared<char> tile{dynamic_shared().pointer + L::kValues + values.stage * L::kTileBytes};
    constexpr int kRowChunks = kDim / 8;
    for (int chunk = live * kRowChunks + group * kWarpgroup + thread; chunk < kHopperSlots * kRowChunks;
         chunk += kConsumers * kWarpgroup) {
      const int row = chunk / kRowChunks, column = chunk % kRowChunks;
      (tile + (column / 8 * L::kPanelBytes + row * 128 + column % 8 * 16)).template as<uint4>()[0] =
          make_uint4(0, 0, 0, 0);
    }
    fence_async_proxy();
    named_sync(kAllConsumers, kConsumers * kWarpgroup);
  }

  __device__ void write() {
    named_sync(kQueriesReady + group, kWarpgroup);  // no warp of the group reads these queries any more
    const Shared<char> staging{dynamic_shared().pointer + (queries(buffer) - shared) +
                               thread / kWarp * 16 * TileLayout<kDim>::kRowBytes};
    FlashEpilogue<T, kDim, kCascade> epilogue{a.flash, task};
    epilogue.write(first_row(), rows.largest[0], rows.sum[0], sums, split, staging);
  }
};

template <class T, int kDim, bool kCascade>
__device__ inline void run_hopper(const HopperParams& params, const CUtensorMap* map) {
  const uint32_t shared = dynamic_shared().address();
  const HopperBarriers<kDim> barriers{shared};
  if (threadIdx.x == 0) {
    prefetch_map(map);
    barriers.init();
    fence_barrier_init();
  }
  sync_threads();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x < kWarpgroup) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x < kWarp) Producer<kDim, kCascade>{params, params.flash.view, map, barriers, shared}.run();
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<T, kDim, kCascade>{params, params.flash.view, barriers, shared}.run();
  }
}

#endif  // sm_90a

template <class T, int kDim, bool kCascade>
__global__ void __launch_bounds__(kHopperThreads, 1)
    flash_attention_sm90(const __grid_constant__ HopperParams params,
                         const __grid_constant__ CUtensorMap map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_hopper<T, kDim, kCascade>(params, &map);
#else
  __trap();  // made for another architecture: sm90_takes() keeps it from being launched, or the output would be what lay there
#endif
}

// ---- host ----
// The arena as rows of head_dim: every tile of a block begins at a row. Boxes are one block (at most 128
// tokens) of 64 columns. The map's end is not the arena's, which is not known here; block tables decide what
// is read.
CUtensorMap map_of(const AttentionView& v, DType dtype) {
  return MapOfRows{.data = v.arena,
                   .rows = 0x7fffffff,
                   .columns = v.head_dim,
                   .stride = v.head_dim,
                   .box_rows = std::min(1 << v.block_shift, kHopperSlots)}
      .encode(dtype);
}

template <class T, int kDim, bool kCascade>
void launch_hopper(const AttentionContext& context, const FlashParams& flash, DType dtype, int64_t rows,
                   int64_t entries) {
  const HopperParams params{.flash = flash, .units = flash.view.num_kv_heads * flash.splits};
  const int64_t items = (rows * flash.view.group / kHopperRows + entries) * params.units;
  launch<flash_attention_sm90<T, kDim, kCascade>>(
      {.grid = dim3(static_cast<unsigned>(std::min<int64_t>(items, context.machine.multiprocessors))),
       .block = dim3(kHopperThreads),
       .shared_bytes = HopperLayout<kDim>::kBytes,
       .stream = context.stream,
       .dependent = true},
      params, map_of(flash.view, dtype));
}

template <class T, bool kCascade>
void launch_for_dim(const AttentionContext& context, const FlashParams& flash, DType dtype, int64_t rows,
                    int64_t entries) {
  if (flash.view.head_dim == 64) return launch_hopper<T, 64, kCascade>(context, flash, dtype, rows, entries);
  launch_hopper<T, 128, kCascade>(context, flash, dtype, rows, entries);
}

}  // namespace

bool sm90_takes(const AttentionMachine& machine, const FlashParams& flash) {
  return machine.compute_capability == 90 && (flash.view.head_dim == 64 || flash.view.head_dim == 128) &&
         flash.view.q_sink == nullptr && flash.view.soft_cap == 0;
}

void launch_flash_sm90(const AttentionContext& context, const FlashParams& flash, DType dtype, int64_t rows,
                       int64_t entries) {
  const bool cascade = flash.num_nodes > 0;
  if (dtype == DType::kBF16)
    return cascade ? launch_for_dim<bf16, true>(context, flash, dtype, rows, entries)
                   : launch_for_dim<bf16, false>(context, flash, dtype, rows, entries);
  cascade ? launch_for_dim<f16, true>(context, flash, dtype, rows, entries)
          : launch_for_dim<f16, false>(context, flash, dtype, rows, entries);
}

}  // namespace quire::QUIRE_SIDE
