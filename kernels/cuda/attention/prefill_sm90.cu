// Prefill attention for Hopper: head sizes 64 and 128, 16-bit types. Also the cascade's first phase there.
//
// A block stays on its multiprocessor and draws tiles of 128 packed query rows of one kv head, longest first.
// hopper_pipeline.h brings what they need: one warp copies K and V tiles of 128 slots into rings of two
// stages, two bring the queries. Here two warpgroups of 64 rows each multiply (wgmma, P from registers) and
// keep ahead of themselves: dot products of the next tile are under way while the values of a tile are summed
// and the next softmax is made, also from one tile of rows to the next. The two take turns at issuing
// products, so one's softmax runs under the other's products (FlashAttention-3, arXiv 2407.08608, sections 3.1
// and 3.2). Bound: tensor cores.
//
// Masks, softmax, epilogue and the choice of tiles are flash_tile.h and task_finder.h, which the host shim
// tests through prefill.cu. Not here: q_sink and soft_cap, which prefill.cu takes.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/flash_tile.h"
#include "kernels/cuda/attention/hopper_pipeline.h"
#include "kernels/cuda/attention/prefill_sm90.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

enum NamedBarrier { kOwnGroup = 1, kTurn = kOwnGroup + kConsumers };

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;

// x is computed before what follows: the sums of probabilities among the exponentials, not in a row behind them.
__device__ inline void made_here(float& x) {
  asm volatile("" : "+f"(x));
}

// ---- a warpgroup that multiplies ----
template <class T, int kDim, bool kCascade>
struct Consumer {
  using L = HopperLayout<kDim>;
  static constexpr int kColumns = kHopperSlots / 8, kSteps = kDim / 16, kValueSteps = kHopperSlots / 16;

  const HopperParams& a;
  const AttentionView& v;
  const HopperBarriers<kDim> barriers;
  uint32_t shared;
  int group = shfl(static_cast<int>(threadIdx.x) / kWarpgroup, 0) - 1, thread = threadIdx.x % kWarpgroup,
      lane = threadIdx.x % kWarp;
  RingPosition<kKeyStages> keys;
  RingPosition<kValueStages> values;
  RingPosition<kItemSlots> items;       // of the running item, whose slot is held until its rows are written
  RingPosition<kQueryBuffers> queries;  // of the running item
  int slot, left;  // of the running item: its tile's first slot, tiles whose values are to be summed
  FlashRows<1> rows;
  FlashScores<1, kColumns> scores;
  uint32_t p[kValueSteps][4];
  float sums[kDim / 8][4];

  __device__ void run() {
    if (group == 0) named_arrive(kTurn, 2 * kWarpgroup);  // the first turn
    if (!begin_item()) return;
    clear_sums();
    weigh_first_tile();
    while (true) {
      FlashRows<1> done;  // of the item that ends with this step
      const bool ends = --left == 0;
      if (!ends) {
        slot += kHopperSlots;
      } else if (!change_items(done)) {
        return finish();
      }
      float factor[1][2];
      const bool rescales = multiply_and_weigh(factor);
      end_values(ends, done, rescales, factor);
      keep_probabilities();
    }
  }

  __device__ const HopperItem& item(int stage) const { return hopper_item<kDim>(stage)[0]; }

  // False when there is no more.
  __device__ bool begin_item() {
    barriers.item_full(items.stage).wait(items.round);
    const HopperItem& next = item(items.stage);
    if (next.tiles == 0) return false;
    slot = first_tile_slot(next.task);
    left = next.tiles;
    rows.reset();
    barriers.queries_full(queries.stage).wait(queries.round);
    return true;
  }

  __device__ bool change_items(FlashRows<1>& done) {
    clear_dead_values(item(items.stage).task.length - slot);
    done = rows;
    items.next();
    queries.next();
    return begin_item();
  }

  __device__ void weigh_first_tile() {
    barriers.keys_full(keys.stage).wait(keys.round);
    named_sync(kTurn + group, 2 * kWarpgroup);
    multiply_keys();
    pass_turn();
    wgmma_wait<0>();
    release(barriers.keys_empty(keys.stage), keys);
    float factor[1][2];
    weigh(item(items.stage).all_end, factor);
    keep_probabilities();
  }

  // The running tile's dot products and probabilities, under the sums of the values before.
  __device__ bool multiply_and_weigh(float (&factor)[1][2]) {
    barriers.keys_full(keys.stage).wait(keys.round);
    named_sync(kTurn + group, 2 * kWarpgroup);
    multiply_keys();
    barriers.values_full(values.stage).wait(values.round);
    add_values();
    pass_turn();
    const int all_end = item(items.stage).all_end;
    wgmma_wait<1>();
    release(barriers.keys_empty(keys.stage), keys);
    return weigh(all_end, factor);
  }

  __device__ void pass_turn() { named_arrive(kTurn + (group + 1) % kConsumers, 2 * kWarpgroup); }

  __device__ void end_values() {
    wgmma_wait<0>();
    release(barriers.values_empty(values.stage), values);
  }

  // The sums are complete, and written where their item ends. A wait in each branch: beside the softmax, in one run of
  // code with it, ptxas 13.0 puts the wait before the exponentials, and they run under no product of this group.
  __device__ void end_values(bool ends, const FlashRows<1>& done, bool rescales,
                             const float (&factor)[1][2]) {
    if (ends) {
      end_values();
      write(done);
      clear_sums();
    } else if (rescales) {
      end_values();
      rescale_sums(factor);
    } else {
      end_values();
    }
  }

  __device__ void finish() {
    barriers.values_full(values.stage).wait(values.round);
    add_values();
    end_values();
    named_sync(kOwnGroup + group, kWarpgroup);  // no warp of the group reads the queries any more
    write(rows);
  }

  // This warp has read the stage; when all have, it is filled again.
  template <class Ring>
  __device__ void release(TransactionBarrier empty, Ring& position) {
    if (lane == 0) empty.arrive();
    position.next();
  }

  __device__ uint32_t queries_of(int buffer) const {
    return L::kQueries + (buffer * kConsumers + group) * L::kQueryBytes;
  }

  __device__ void multiply_keys() {
    const uint64_t q = operand_descriptor(shared + queries_of(queries.stage), 0),
                   k = operand_descriptor(shared + keys.stage * L::kTileBytes, 0, L::kEightRows);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t in_panel = step % 4 * 32, panel = step / 4;
      wgmma_m64n128k16<T>(scores.s[0], further(q, panel * L::kQueryPanelBytes + in_panel),
                          further(k, panel * L::kPanelStride + in_panel), step > 0);
    }
    wgmma_commit();
  }

  __device__ void add_values() {
    const uint64_t tile = operand_descriptor(shared + L::kValues + values.stage * L::kTileBytes,
                                             L::kPanelStride, L::kEightRows);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step)
      wgmma_values<T>(sums, p[step], further(tile, step * 2 * L::kEightRows));
    wgmma_commit();
  }

  // all_end: as HopperItem's.
  __device__ bool weigh(int all_end, float (&factor)[1][2]) {
    const FlashTask& task = item(items.stage).task;
    if ((kCascade && slot < task.begin) || slot + kHopperSlots > all_end) {
      scores.template mask<kCascade>(a.flash, task, first_row(task), slot, task.begin, task.end);
    }
    const bool rescales = scores.softmax(v.scale * kLog2e, rows, factor);
    made_here(rows.sum[0][0]);
    made_here(rows.sum[0][1]);
    return rescales;
  }

  // The packed row at which this warp's begin.
  __device__ int first_row(const FlashTask& task) const {
    return task.first_row + group * 64 + thread / kWarp * 16;
  }

  __device__ void keep_probabilities() {
#pragma unroll
    for (int step = 0; step < kValueSteps; ++step) probabilities_as_a<T>(scores.s[0], step, p[step]);
  }

  __device__ void clear_sums() {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
  }

  __device__ void rescale_sums(const float (&factor)[1][2]) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor[0][i / 2];
  }

  // Rows of V past the list hold anything, NaN too, and zero times NaN is no zero. Only a list's last tile
  // has such rows. Each group clears them for itself: to wait for the other would be to wait for its turn.
  __device__ void clear_dead_values(int live) {
    if (live >= kHopperSlots) return;
    barriers.values_full(values.stage).wait(values.round);
    const Shared<char> tile = dynamic_shared() + L::kValues + values.stage * L::kTileBytes;
    constexpr int kRowChunks = kDim / 8;
    for (int chunk = max(0, live) * kRowChunks + thread; chunk < kHopperSlots * kRowChunks;
         chunk += kWarpgroup) {
      const int row = chunk / kRowChunks, column = chunk % kRowChunks;
      (tile + row / 8 * L::kEightRows + column / 8 * L::kPanelStride + row % 8 * 128 + column % 8 * 16)
          .template as<uint4>()[0] = make_uint4(0, 0, 0, 0);
    }
    fence_async_proxy();
    named_sync(kOwnGroup + group, kWarpgroup);
  }

  // The item before items.stage's, whose queries nobody reads any more.
  __device__ void write(const FlashRows<1>& of) {
    const int done = (items.stage + kItemSlots - 1) % kItemSlots, buffer = queries.stage ^ 1;
    const Shared<char> staging =
        dynamic_shared() + queries_of(buffer) + thread / kWarp * 16 * TileLayout<kDim>::kRowBytes;
    const FlashTask task = item(done).task;
    FlashEpilogue<T, kDim, kCascade> epilogue{a.flash, task};
    epilogue.write(first_row(task), of.largest[0], of.sum[0], sums, item(done).split, staging);
    sync_warp();
    if (lane == 0) {
      barriers.item_empty(done).arrive();
      barriers.queries_empty(buffer).arrive();
    }
  }
};

template <class T, int kDim, bool kCascade>
__device__ inline void run_hopper(const HopperParams& params, const CUtensorMap* map) {
  const uint32_t shared = dynamic_shared().address();
  const HopperBarriers<kDim> barriers{shared};
  const AttentionView& view = params.flash.view;
  if (threadIdx.x == 0) {
    prefetch_map(map);
    barriers.init();
    fence_barrier_init();
  }
  sync_threads();
  if (threadIdx.x >= kWarp) {  // the copying warp may begin before
    wait_for_previous_kernel();
    let_next_kernel_start();
  }
  if (threadIdx.x < kWarpgroup) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x < kWarp) {
      HopperCopier<kDim, kCascade>{params, view, map, barriers, shared}.run();
    } else if (const int group = static_cast<int>(threadIdx.x) / kWarp - 1; group < kQueryWarps) {
      HopperQueries<T, kDim, kCascade>{params, view, barriers, group}.run();
    }
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<T, kDim, kCascade>{params, view, barriers, shared}.run();
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
// The arena as eights of rows of head_dim: every tile of a block begins at one. Boxes are one block, at most 128
// tokens. The map's end is not the arena's, which is not known here; block tables decide what is read.
CUtensorMap map_of(const AttentionView& v, DType dtype) {
  return MapOfEights{.data = v.arena,
                     .eights = 0x7fffffff / 8,
                     .columns = v.head_dim,
                     .box_rows = rows_of_box(v.block_shift)}
      .encode(dtype);
}

template <class T, int kDim, bool kCascade>
void launch_hopper(const AttentionContext& context, const FlashParams& flash, DType dtype, int64_t rows,
                   int64_t entries) {
  const HopperParams params{
      .flash = flash, .units = flash.view.num_kv_heads * flash.splits, .counter = context.scratch.counters};
  check_at_least("attention scratch, counters", context.scratch.num_counters, 1);
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
