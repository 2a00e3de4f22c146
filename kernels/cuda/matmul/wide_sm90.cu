// 17 to 64 rows on Hopper: wgmma with the rows of x as its 64 rows and rows of w as its columns.
//
// What a block works on: a tile of 8 * kUnits rows of w and all of k, then another where there are more tiles than
// blocks. Columns come in eights, so an 8B model's products divide into 128 equal tiles or twice as many (48, 32, 112
// and 32 rows): no sum is split, and every multiprocessor streams the same bytes. The price is that every block reads
// all of x from L2.
// A copying warp fills a ring of stages with tensor copies, w's first stages before the dependency wait; a warpgroup
// multiplies; what stands in place of rows that x has not gives sums that are not written.
// w is marked evict-first. Operands lie as the copies' 128-byte swizzle leaves them,
// zeros where a box reaches over an edge. Bound: device memory, bytes = w once; where tiles are small, L2: bytes = w
// and for each tile all of x, at 2.5 times the rate.
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/matmul/tile_ring_sm90.h"
#include "kernels/cuda/matmul/wgmma_rows.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kTileThreads = kWarpgroup + kWarp;

struct TileParams {
  Product p;
  int32_t tiles = 0, steps = 0;  // steps: of k in a tile
  int32_t x_rows = 0;  // fetched: m in eights, since rows beyond x take longer to fill than to fetch
};

// A stage holds kPanels panels of 64 columns: those of w, then those of x.
template <int kUnits_, int kPanels_, int kStages_>
struct TileForm {
  static constexpr int kUnits = kUnits_, kPanels = kPanels_, kStages = kStages_;
  static constexpr int kRows = 8 * kUnits;
  static constexpr int kWBytes = kRows * kPanelBytes, kXBytes = kMaxWideRows * kPanelBytes;  // of a panel
  static constexpr int kX = kPanels * kWBytes, kStageBytes = kPanels * (kWBytes + kXBytes);
  static constexpr int kBatch = kUnits % 4 == 0 ? 4 : kUnits % 2 == 0 ? 2 : 1;  // units written at once
  static constexpr int kSums = kStages * kStageBytes, kSumsBytes = kBatch * kWarpgroup * 16;
  static constexpr int kBarriers = kSums + kSumsBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kRows <= 256);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class F>
struct TileProducer {
  const CUtensorMap *w, *x;
  uint32_t shared;
  int steps, skew;  // skew: the step that a tile begins with
  int tile, tiles, stage_bytes;
  TileRing<F::kStages> ring;
  int step = 0;
  EvictFirst once = evict_first();

  __device__ void run() {
    const int first = tile;
    int early = 0;
    for (; early < F::kStages && tile < tiles; ++early, advance()) {
      ring.full(early).arrive_expecting(stage_bytes);
      copy_w(early);
    }
    const int reached = tile, reached_step = step;
    wait_for_previous_kernel();
    let_next_kernel_start();
    tile = first, step = 0;
    for (int i = 0; i < early; ++i, advance()) copy_x(i);
    tile = reached, step = reached_step;
    for (; tile < tiles; advance(), ring.next()) {
      ring.empty(ring.stage).wait(ring.round);
      ring.full(ring.stage).arrive_expecting(stage_bytes);
      copy_w(ring.stage);
      copy_x(ring.stage);
    }
  }

  __device__ void advance() {
    if (++step < steps) return;
    step = 0;
    tile += static_cast<int>(gridDim.x);
  }
  __device__ int column(int panel) const {
    const int at = step + skew < steps ? step + skew : step + skew - steps;
    return (at * F::kPanels + panel) * kMapColumns;
  }
  __device__ void copy_w(int stage) const {
#pragma unroll
    for (int panel = 0; panel < F::kPanels; ++panel)
      copy_box_once(shared + stage * F::kStageBytes + panel * F::kWBytes, w, column(panel), tile * F::kRows,
                    ring.full(stage), once);
  }
  __device__ void copy_x(int stage) const {
#pragma unroll
    for (int panel = 0; panel < F::kPanels; ++panel)
      copy_box(shared + stage * F::kStageBytes + F::kX + panel * F::kXBytes, x, column(panel), 0,
               ring.full(stage));
  }
};

// d += 64 rows of a times the rows of b from kAt units on: the largest pieces that wgmma takes of them.
template <class T, int kUnits, int kAt = 0>
__device__ inline void multiply_pieces(float (&d)[kUnits][4], uint64_t a, uint32_t b, bool accumulate) {
  constexpr int kLeft = kUnits - kAt;
  constexpr int kPiece = kLeft >= 16 ? 16 : kLeft >= 8 ? 8 : kLeft >= 4 ? 4 : kLeft >= 2 ? 2 : 1;
  wgmma_rows<T>(reinterpret_cast<float(&)[kPiece][4]>(d[kAt]), a,
                operand_descriptor(b + kAt * 8 * kPanelBytes, 0), accumulate);
  if constexpr (kLeft > kPiece) multiply_pieces<T, kUnits, kAt + kPiece>(d, a, b, accumulate);
}

template <class T, class F>
struct TileConsumer {
  const Product& p;
  uint32_t shared;
  int steps, tile, tiles;
  TileRing<F::kStages> ring;
  int lane = threadIdx.x % kWarp;
  float sums[F::kUnits][4];

  __device__ void run() {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (; tile < tiles; tile += static_cast<int>(gridDim.x)) {
      multiply_stages(*this, ring, steps);
      write();
    }
  }

  __device__ void release(int stage) const {
    if (lane == 0) ring.empty(stage).arrive();
  }

  __device__ void multiply_stage(bool accumulate) {
    const uint32_t at = shared + ring.stage * F::kStageBytes;
    wgmma_fence();
#pragma unroll
    for (int k16 = 0; k16 < F::kPanels * 4; ++k16) {
      const uint32_t panel = k16 / 4, in_panel = k16 % 4 * 32;
      multiply_pieces<T, F::kUnits>(sums, operand_descriptor(at + F::kX + panel * F::kXBytes + in_panel, 0),
                                    at + panel * F::kWBytes + in_panel, k16 > 0 || accumulate);
    }
    wgmma_commit();
  }

  // Sums go through shared memory, each thread's own, a batch of units at a time: so one short piece of code writes
  // them all. Written from registers it is one piece a unit, 56 KB for 28, run once and fetched from afar: 30 us.
  __device__ void write() const {
    const Shared<float4> own =
        (dynamic_shared() + F::kSums).template as<float4>() + static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int from = 0; from < F::kUnits; from += F::kBatch) {
      keep(own, from);
      p.gated ? write_gated(own, from) : write_plain(own, from);
    }
  }
  template <int kFrom = 0>
  __device__ void keep(Shared<float4> own, int from) const {
    if (from == kFrom) {
#pragma unroll
      for (int i = 0; i < F::kBatch; ++i) {
        const float(&s)[4] = sums[kFrom + i];
        own[i * kWarpgroup] = make_float4(s[0], s[1], s[2], s[3]);
      }
    } else if constexpr (kFrom + F::kBatch < F::kUnits) {
      keep<kFrom + F::kBatch>(own, from);
    }
  }

  // A unit's sums of a thread: rows lane / 4 (first two) and lane / 4 + 8 of the warp's 16 of x, columns 2 (lane % 4)
  // and the next.
  __device__ int first_m() const { return static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4; }
  __device__ int first_n(int unit) const { return tile * F::kRows + unit * 8 + lane % 4 * 2; }

  __device__ void write_plain(Shared<float4> own, int from) const {
    float2 before[F::kBatch][2];  // all loads of the residual stream before the first store
#pragma unroll
    for (int i = 0; i < 2 * F::kBatch; ++i)
      before[i / 2][i % 2] = before_pair<T>(p, first_m() + i % 2 * 8, first_n(from + i / 2));
#pragma unroll
    for (int i = 0; i < F::kBatch; ++i) {
      const float4 s = own[i * kWarpgroup];
      put_pair<T>(p, first_m(), first_n(from + i), make_float2(s.x, s.y), before[i][0]);
      put_pair<T>(p, first_m() + 8, first_n(from + i), make_float2(s.z, s.w), before[i][1]);
    }
  }
  // Units alternate: gate rows, up rows.
  __device__ void write_gated(Shared<float4> own, int from) const {
    if constexpr (F::kUnits % 2 == 0) {
#pragma unroll
      for (int i = 0; i < F::kBatch; i += 2) {
        const float4 gate = own[i * kWarpgroup], up = own[(i + 1) * kWarpgroup];
        put_gated_pair<T>(p, first_m(), first_n(from + i), make_float2(gate.x, gate.y),
                          make_float2(up.x, up.y));
        put_gated_pair<T>(p, first_m() + 8, first_n(from + i), make_float2(gate.z, gate.w),
                          make_float2(up.z, up.w));
      }
    }
  }
};

template <class T, class F>
__device__ inline void run_tiles(const TileParams& a, const CUtensorMap* w, const CUtensorMap* x) {
  const uint32_t shared = dynamic_shared().address();
  const TileRing<F::kStages> ring{shared + F::kBarriers};
  if (threadIdx.x == kWarpgroup) {
    prefetch_map(w);
    prefetch_map(x);
    for (int s = 0; s < F::kStages; ++s) {
      ring.full(s).init(1);
      ring.empty(s).init(kWarpgroup / kWarp);
    }
    fence_barrier_init();
  }
  sync_threads();
  const auto block = static_cast<int>(blockIdx.x);
  if (threadIdx.x < kWarpgroup) {
    TileConsumer<T, F>{a.p, shared, a.steps, block, a.tiles, ring}.run();
  } else if (threadIdx.x == kWarpgroup) {
    // Blocks begin at different columns: all rows are a multiple of some KB apart.
    const int skew = block * a.steps / static_cast<int>(gridDim.x);
    const int stage_bytes = F::kPanels * (F::kWBytes + a.x_rows * kPanelBytes);
    TileProducer<F>{w, x, shared, a.steps, skew, block, a.tiles, stage_bytes, ring}.run();
  } else {
    wait_for_previous_kernel();
    let_next_kernel_start();
  }
}

#endif  // sm_90a

template <class T, class F>
__global__ void __launch_bounds__(kTileThreads, 1)
    wide_tiles_sm90(const __grid_constant__ TileParams a, const __grid_constant__ CUtensorMap w,
                    const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_tiles<T, F>(a, &w, &x);
#else
  __trap();  // as in attention/prefill_sm90.cu
#endif
}

// ---- host ----
constexpr int kUnitChoices[] = {1, 2, 4, 6, 8, 12, 14, 16};
constexpr double kL2OverMemory = 2.5;  // rates of reading, H100
constexpr double kRowsATile = 6;       // what a tile costs besides its rows, in rows

// How many units a tile has so that the busiest block is done first; of equals the largest tile.
int units_of(const Product& p, int blocks) {
  int best = 0;
  double least = 0;
  for (const int units : kUnitChoices) {
    if (p.gated && units % 2 != 0) continue;
    const double rows = 8 * units;
    const double tile = std::max(rows, (rows + p.m) / kL2OverMemory) + kRowsATile;
    const double time = ceil_div(ceil_div(p.n, 8 * units), blocks) * tile;
    if (best == 0 || time <= least) best = units, least = time;
  }
  return best;
}

template <class T, class F>
void launch_tiles(const Target& target, const Product& p, int blocks) {
  const TileParams params{
      .p = p,
      .tiles = ceil_div(p.n, F::kRows),
      .steps = static_cast<int32_t>(ceil_div<int64_t>(p.w_stride, F::kPanels * kMapColumns)),
      .x_rows = ceil_div(p.m, 8) * 8};
  const MapOfRows w{
      .data = p.w, .rows = p.n, .columns = p.w_stride, .stride = p.w_stride, .box_rows = F::kRows},
      x{.data = p.x, .rows = p.m, .columns = p.k, .stride = p.k, .box_rows = params.x_rows};
  launch<wide_tiles_sm90<T, F>>({.grid = as_grid(std::min(blocks, params.tiles)),
                                 .block = kTileThreads,
                                 .shared_bytes = F::kBytes,
                                 .stream = target.stream,
                                 .dependent = true,
                                 .carveout = carveout_of(p.m)},
                                params, w.encode(target.activations), x.encode(target.activations));
}

// ---- choices, by measurements on an H100 ----
constexpr int kRingBytes = 208 * 1024, kPanels = 2;

template <int kUnits>
using FormOf = TileForm<kUnits, kPanels, kRingBytes / (kPanels * (8 * kUnits + kMaxWideRows) * kPanelBytes)>;

template <class T>
void launch_for_units(const Target& target, const Product& p) {
  const int blocks = target.multiprocessors;
  switch (units_of(p, blocks)) {
    case 1:
      return launch_tiles<T, FormOf<1>>(target, p, blocks);
    case 2:
      return launch_tiles<T, FormOf<2>>(target, p, blocks);
    case 4:
      return launch_tiles<T, FormOf<4>>(target, p, blocks);
    case 6:
      return launch_tiles<T, FormOf<6>>(target, p, blocks);
    case 8:
      return launch_tiles<T, FormOf<8>>(target, p, blocks);
    case 12:
      return launch_tiles<T, FormOf<12>>(target, p, blocks);
    case 14:
      return launch_tiles<T, FormOf<14>>(target, p, blocks);
    default:
      return launch_tiles<T, FormOf<16>>(target, p, blocks);
  }
}

}  // namespace

bool wide_sm90_takes(const Target& target, const Product& p) {
  return target.compute_capability == 90 && p.k % kChunk == 0;
}

void wide_gemm_sm90(const Target& target, const Product& p) {
  target.activations == DType::kBF16 ? launch_for_units<bf16>(target, p) : launch_for_units<f16>(target, p);
}

}  // namespace quire::QUIRE_SIDE
