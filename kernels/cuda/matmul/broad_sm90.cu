// 17 to 256 rows on Hopper, large weights: wgmma with the rows of x as its 64 rows and up to 224 rows of w as columns.
//
// What a block works on: parts (broad_plan.h), each a tile of 8 * kUnits rows of w times 64 * kGroups rows of x over a range of k, a
// warpgroup 64 rows of x. A thread copies through a ring of stages, w's first ones before the dependency wait. Bound: device memory,
// bytes = w once; with more rows what a multiprocessor takes in, 84 of some 110 GB/s; then tensor cores. Against the second: wide tiles
// whose k is shared, so that x is read for fewer of them. Above 128 rows clusters of two blocks have half of x each and fetch half of
// w for both.
#include <utility>

#include "kernels/cuda/matmul/broad_plan.h"
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/tile_ring_sm90.h"
#include "kernels/cuda/matmul/wgmma_rows.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kMostShared = 227 * 1024;
static_assert(kBroadStep == kMapColumns);

template <int kUnits_, int kGroups_, int kCluster_>
struct BroadLayout {
  static constexpr int kUnits = kUnits_, kGroups = kGroups_, kCluster = kCluster_;
  static constexpr int kRows = 8 * kUnits;
  static constexpr int kConsumers = kGroups * kWarpgroup, kThreads = kConsumers + kWarpgroup;
  // Of 65536: a warpgroup that copies needs few. With one of each there is no need to shift any.
  static constexpr bool kShifts = kGroups > 1;
  static constexpr int kConsumerRegisters = kGroups > 2 ? 160 : 240,
                       kProducerRegisters = kShifts ? 504 - kGroups * kConsumerRegisters : 240;

  static constexpr int kWBytes = kRows * kPanelBytes, kXBytes = 64 * kGroups * kPanelBytes;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kBatch = kGroups > 2 ? 2 : 4;  // units written at once
  static constexpr int kSumsStride = 8 * kBatch + 8;  // floats, of one of a warp's 16 rows: no bank conflicts
  static constexpr int kWarpSums = 16 * kSumsStride, kSumsBytes = kConsumers / kWarp * kWarpSums * 4;
  static constexpr int kFitting = (kMostShared - kSumsBytes - 256) / kStageBytes,
                       kStages = kFitting < 8 ? kFitting : 8;
  static constexpr int kSums = kStages * kStageBytes, kBarriers = kSums + kSumsBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kUnits % kBatch == 0 && kStages >= 3 &&
                kGroups * kConsumerRegisters + kProducerRegisters <= 512);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline int32_t load_acquire(const int32_t* p) {
  int32_t v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Behind it all that this block wrote before a barrier of its threads.
__device__ inline void add_release(int32_t* p, int32_t v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

template <class L>
struct BroadProducer {
  const CUtensorMap *w, *x;
  uint32_t shared;
  int x_rows, early;
  const BroadWalk& walk;
  TileRing<L::kStages> ring;
  int rank = static_cast<int>(rank_in_cluster());
  EvictFirst once = evict_first();

  __device__ void run() {
    BroadCursor ahead(walk);
    int filled = 0;  // stages that nobody has used before
    for (; filled < early && ahead.more(); ++filled, ahead.next()) begin(filled, ahead);
    wait_for_previous_kernel();
    let_next_kernel_start();
    BroadCursor behind(walk);
    for (int i = 0; i < filled; ++i, behind.next()) copy_x(i, behind);
    for (; filled < L::kStages && ahead.more(); ++filled, ahead.next()) fill(filled, ahead);
    for (; ahead.more(); ahead.next(), ring.next()) {
      ring.empty(ring.stage).wait(ring.round);
      fill(ring.stage, ahead);
    }
    // The other block's last arrivals come here before this one goes.
    if constexpr (L::kCluster > 1)
      for (int i = 0; i < filled; ++i, ring.next()) ring.empty(ring.stage).wait(ring.round);
  }

  __device__ void fill(int stage, const BroadCursor& at) const {
    begin(stage, at);
    copy_x(stage, at);
  }
  __device__ void begin(int stage, const BroadCursor& at) const {
    ring.full(stage).arrive_expecting(L::kWBytes + x_rows * kPanelBytes);
    const uint32_t to = shared + stage * L::kStageBytes;
    const int column = at.step() * kBroadStep, row = at.tile() * L::kRows;
    if constexpr (L::kCluster == 1) {
      copy_box_once(to, w, column, row, ring.full(stage), once);
    } else {
      copy_box_once_to_both(to + rank * (L::kWBytes / 2), w, column, row + rank * (L::kRows / 2),
                            ring.full(stage), once);
    }
  }
  __device__ void copy_x(int stage, const BroadCursor& at) const {
    copy_box(shared + stage * L::kStageBytes + L::kWBytes, x, at.step() * kBroadStep, rank * x_rows,
             ring.full(stage));
  }
};

template <class T, class L>
struct BroadConsumer {
  static constexpr int kBatches = L::kUnits / L::kBatch;

  const BroadParams& a;
  uint32_t shared;
  BroadWalk walk;
  TileRing<L::kStages> ring;
  BroadPart part{};
  const Product& p = a.p;
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int rank = static_cast<int>(rank_in_cluster());
  float sums[L::kUnits][4];

  __device__ void run() {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (; walk.more(); walk.next()) {
      part = walk.part();
      multiply_stages(*this, ring, part.count);
      walk.splits == 1 ? write(0, kBatches) : write_share();
    }
  }

  // ---- products ----
  // To whoever copies into this block's stages.
  __device__ void release(int stage) const {
    if constexpr (L::kCluster == 1) {
      if (lane == 0) ring.empty(stage).arrive();
    } else {
      if (lane < L::kCluster) arrive_in_cluster(ring.empty(stage), static_cast<uint32_t>(lane));
    }
  }
  __device__ void multiply_stage(bool accumulate) {
    const uint32_t w = shared + ring.stage * L::kStageBytes, x = w + L::kWBytes + warp / 4 * 64 * kPanelBytes;
    wgmma_fence();
#pragma unroll
    for (int k16 = 0; k16 < kBroadStep / 16; ++k16)
      wgmma_rows<T, L::kUnits>(sums, operand_descriptor(x + k16 * 32, 0), operand_descriptor(w + k16 * 32, 0),
                               k16 > 0 || accumulate);
    wgmma_commit();
  }
  // ---- a tile that several clusters share: each writes the sums that others add, and adds its own batches ----
  __device__ void write_share() {
    const int first = part.split * kBatches / walk.splits, end = (part.split + 1) * kBatches / walk.splits;
    float4* const mine = partials(part.split);
#pragma unroll
    for (int u = 0; u < L::kUnits; ++u)
      if (u / L::kBatch < first || u / L::kBatch >= end)
        store(mine + u * L::kConsumers, make_float4(sums[u][0], sums[u][1], sums[u][2], sums[u][3]));
    named_sync(1, L::kConsumers);
    int32_t* const arrived = a.scratch.arrivals + 2 * (part.tile * L::kCluster + rank);
    if (threadIdx.x == 0) meet(arrived);
    named_sync(1, L::kConsumers);
    write(first, end);
    if (threadIdx.x == 0) leave(arrived);
  }
  __device__ float4* partials(int split) const {
    const int block = (part.tile * walk.splits + split) * L::kCluster + rank;
    return reinterpret_cast<float4*>(a.scratch.partials) + int64_t{block} * L::kUnits * L::kConsumers +
           threadIdx.x;
  }
  // All of them run (plan_broad), so waiting ends.
  __device__ void meet(int32_t* arrived) const {
    add_release(arrived, 1);
    while (load_acquire(arrived) < walk.splits) {
    }
  }
  // The last to do so puts the counts back.
  __device__ void leave(int32_t* arrived) const {
    if (atomic_add(arrived + 1, 1) == walk.splits - 1) store(arrived, 0), store(arrived + 1, 0);
  }
  // v: this block's sums of a batch, and then all blocks', added in the order of k.
  __device__ void add_others(float4 (&v)[L::kBatch], int from) const {
    constexpr int kSpare = (L::kConsumerRegisters - 4 * L::kUnits - 8 * L::kBatch - 56) / (4 * L::kBatch);
    constexpr int kAtOnce = kSpare < 1 ? 1 : kSpare > 4 ? 4 : kSpare;  // loads under way: each comes from L2
    float4 total[L::kBatch] = {};
#pragma unroll 1
    for (int first = 0; first < walk.splits; first += kAtOnce) {
      float4 others[kAtOnce][L::kBatch];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (first + j < walk.splits && first + j != part.split)
#pragma unroll
          for (int i = 0; i < L::kBatch; ++i)
            others[j][i] = load_shared_by_grid(partials(first + j) + (from + i) * L::kConsumers);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (first + j < walk.splits)
#pragma unroll
          for (int i = 0; i < L::kBatch; ++i) {
            const float4 s = first + j == part.split ? v[i] : others[j][i];
            total[i].x += s.x, total[i].y += s.y, total[i].z += s.z, total[i].w += s.w;
          }
    }
#pragma unroll
    for (int i = 0; i < L::kBatch; ++i) v[i] = total[i];
  }

  // ---- sums to memory, a batch of units at a time: by way of shared memory to 16 bytes a thread ----
  // One short loop: written from registers each unit has code of its own, run once and fetched from afar (wide_sm90.cu).
  __device__ void write(int first, int end) const {
#pragma unroll 1
    for (int batch = first; batch < end; ++batch) {
      float4 v[L::kBatch];
      take(v, batch);
      if (walk.splits > 1) add_others(v, batch * L::kBatch);
      sync_warp();
      keep(v);
      sync_warp();
      p.gated ? write_gated(batch * L::kBatch) : write_plain(batch * L::kBatch);
    }
  }
  template <int kBatchAt = 0>
  __device__ void take(float4 (&v)[L::kBatch], int batch) const {
    if (batch == kBatchAt) {
#pragma unroll
      for (int i = 0; i < L::kBatch; ++i) {
        const float(&s)[4] = sums[kBatchAt * L::kBatch + i];
        v[i] = make_float4(s[0], s[1], s[2], s[3]);
      }
    } else if constexpr (kBatchAt + 1 < kBatches) {
      take<kBatchAt + 1>(v, batch);
    }
  }
  // A unit's sums of a thread: rows lane / 4 (first two) and lane / 4 + 8 of the warp's 16 of x, columns 2 (lane % 4) and the next.
  __device__ void keep(const float4 (&v)[L::kBatch]) const {
    const Shared<float> to = kept(lane / 4, lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < L::kBatch; ++i) {
      (to + 8 * i).template as<float2>()[0] = make_float2(v[i].x, v[i].y);
      (to + 8 * L::kSumsStride + 8 * i).template as<float2>()[0] = make_float2(v[i].z, v[i].w);
    }
  }
  __device__ Shared<float> kept(int row, int column) const {
    return (dynamic_shared() + L::kSums).template as<float>() + warp * L::kWarpSums + row * L::kSumsStride +
           column;
  }
  __device__ Chunk chunk(int row, int unit) const {
    const Shared<float4> at = kept(row, unit * 8).template as<float4>();
    const float4 low = at[0], high = at[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }
  __device__ int first_n(int unit) const { return part.tile * L::kRows + unit * 8; }
  // Of one of the warp's rows; p.m where it is none of the block's.
  __device__ int m_of(int row) const {
    const int in_block = warp * 16 + row;
    return in_block < a.x_rows ? rank * a.x_rows + in_block : p.m;
  }

  __device__ void write_plain(int from) const {
#pragma unroll
    for (int i = 0; i < L::kBatch / 2; ++i) {
      const int at = i * kWarp + lane, row = at / L::kBatch, unit = at % L::kBatch;
      put_chunk<T>(p, m_of(row), first_n(from + unit), chunk(row, unit));
    }
  }
  // Units alternate: gate rows, up rows.
  __device__ void write_gated(int from) const {
    constexpr int kPairs = L::kBatch / 2;
    const int row = lane / kPairs, unit = lane % kPairs * 2;
    if (row < 16)
      put_gated_chunk<T>(p, m_of(row), first_n(from + unit), chunk(row, unit), chunk(row, unit + 1));
  }
};

template <class L>
__device__ inline void start_ring(const TileRing<L::kStages>& ring, const CUtensorMap* w,
                                  const CUtensorMap* x) {
  if (threadIdx.x == L::kConsumers) {
    prefetch_map(w);
    prefetch_map(x);
    for (int s = 0; s < L::kStages; ++s) {
      ring.full(s).init(1);
      ring.empty(s).init(L::kConsumers / kWarp * L::kCluster);
    }
    fence_barrier_init();
  }
  if constexpr (L::kCluster == 1) {
    sync_threads();
  } else {
    meet_in_cluster();
  }
}

template <class T, class L>
__device__ inline void run_broad(const BroadParams& a, const CUtensorMap* w, const CUtensorMap* x) {
  const uint32_t shared = dynamic_shared().address();
  const TileRing<L::kStages> ring{shared + L::kBarriers};
  start_ring<L>(ring, w, x);
  const BroadWalk walk{.tiles = a.tiles,
                       .splits = a.splits,
                       .steps = a.steps,
                       .cluster = static_cast<int>(blockIdx.x) / L::kCluster,
                       .clusters = static_cast<int>(gridDim.x) / L::kCluster};
  if (threadIdx.x < L::kConsumers) {
    if constexpr (L::kShifts) take_registers<L::kConsumerRegisters>();
    BroadConsumer<T, L>{a, shared, walk, ring}.run();
  } else {
    if constexpr (L::kShifts) give_registers<L::kProducerRegisters>();
    if (threadIdx.x == L::kConsumers) {
      BroadProducer<L>{w, x, shared, a.x_rows, min(a.early, L::kStages), walk, ring}.run();
    } else {
      wait_for_previous_kernel();
      let_next_kernel_start();
    }
  }
}

#endif  // sm_90a

template <class T, class L>
__global__ void __cluster_dims__(L::kCluster, 1, 1) __launch_bounds__(L::kThreads, 1)
    broad_tiles_sm90(const __grid_constant__ BroadParams a, const __grid_constant__ CUtensorMap w,
                     const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_broad<T, L>(a, &w, &x);
#else
  __trap();  // as in attention/prefill_sm90.cu
#endif
}

// ---- host ----
template <class T, class L>
void launch_broad(const Target& target, const SharedSums& scratch, const Product& p, int splits) {
  const BroadParams params{.p = p,
                           .scratch = scratch,
                           .tiles = ceil_div(p.n, L::kRows),
                           .splits = splits,
                           .steps = static_cast<int32_t>(p.w_stride / kBroadStep),
                           .x_rows = ceil_div(ceil_div(p.m, L::kCluster), 8) * 8,
                           .early = early_stages(p)};
  const int clusters = std::min(target.multiprocessors / L::kCluster, params.tiles * splits);
  const MapOfRows w{.data = p.w,
                    .rows = p.n,
                    .columns = p.w_stride,
                    .stride = p.w_stride,
                    .box_rows = L::kRows / L::kCluster},
      x{.data = p.x, .rows = p.m, .columns = p.k, .stride = p.k, .box_rows = params.x_rows};
  launch<broad_tiles_sm90<T, L>>({.grid = as_grid(clusters * L::kCluster),
                                  .block = L::kThreads,
                                  .shared_bytes = L::kBytes,
                                  .stream = target.stream,
                                  .dependent = true,
                                  .carveout = carveout_of(p.m)},
                                 params, w.encode(target.activations), x.encode(target.activations));
}

template <class T, int kForm>
bool launch_form(const Target& target, const SharedSums& scratch, const Product& p, const BroadPlan& plan) {
  constexpr BroadForm kF = kBroadForms[kForm];
  if (plan.form != kF) return false;
  launch_broad<T, BroadLayout<kF.units, kF.groups, kF.cluster>>(target, scratch, p, plan.splits);
  return true;
}

template <class T, int... kForms>
void launch_plan(const Target& target, const SharedSums& scratch, const Product& p, const BroadPlan& plan,
                 std::integer_sequence<int, kForms...>) {
  check((launch_form<T, kForms>(target, scratch, p, plan) || ...), "broad_gemm_sm90: a plan of no form");
}

}  // namespace

bool broad_sm90_takes(const Target& target, const Product& p) {
  return target.compute_capability == 90 && p.k % kChunk == 0 && p.n % (2 * kGateGroup) == 0 &&
         broad_sm90_pays(p);
}

void broad_gemm_sm90(const Target& target, const SharedSums& scratch, const Product& p) {
  check(p.norm_weight == nullptr, "broad_gemm_sm90: norms are a kernel of their own");
  check_fusion(p);
  constexpr std::make_integer_sequence<int, std::size(kBroadForms)> kAll;
  const BroadPlan plan = plan_broad(target.multiprocessors, p);
  target.activations == DType::kBF16 ? launch_plan<bf16>(target, scratch, p, plan, kAll)
                                     : launch_plan<f16>(target, scratch, p, plan, kAll);
}

}  // namespace quire::QUIRE_SIDE
