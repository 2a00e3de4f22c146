// Prefill attention on mma.sync, for every card: sequences of several rows, causal from where their list
// already reaches.
//
// What a block of 4 warps works on: 128 packed query rows (64 at head size 256) of one kv head, against the
// slots they see in tiles of 64 (48 at head size 128, 32 there in a cascade and at 256). A warp holds 32 (16)
// rows: two row tiles share each K and V fragment, which halves the reads of shared memory, the second bound
// after the tensor cores. V of a tile arrives while its dot products are made, the next K while its values
// are summed. Bound: tensor cores, 4 * rows * slots * head_dim operations a head; mma.sync reaches about half
// of what wgmma does on Hopper (prefill_sm90.cu), all of it on Ampere and Ada.
//
// The same kernel is the cascade's first phase: rows are one row of each sequence that shares a prefix,
// results stay partial.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/flash_tile.h"
#include "kernels/cuda/attention/prefill_sm90.h"
#include "kernels/cuda/attention/task_finder.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kFlashWarps = 4;
constexpr int kFlashThreads = kFlashWarps * kWarp;

// Slots a tile. What ptxas has no registers for on 8.6 and 8.9 alone is halved there; the host, which asks for shared memory, has the larger.
__device__ __host__ constexpr int flash_slots(int dim, bool cascade) {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
  if (dim == 96 && !cascade) return 32;
  if (dim == 256 && cascade) return 16;
#endif
  return dim < 128 ? 64 : dim == 128 && !cascade ? 48 : 32;
}

template <class T, int kDim, bool kCascade>
struct Flash {
  using Layout = TileLayout<kDim>;
  static constexpr int kTiles = kDim <= 128 ? 2 : 1;  // of 16 rows a warp
  static constexpr int kRows = kFlashWarps * kTiles * 16;
  // Slots of a K or V tile: as many as registers hold without spilling.
  static constexpr int kSlots = flash_slots(kDim, kCascade);
  static constexpr int kColumns = kSlots / 8;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kTileBytes = kSlots * Layout::kRowBytes;
  static constexpr int kQueryBytes = kRows * Layout::kRowBytes;
  static constexpr int kSharedBytes = kQueryBytes + 2 * kTileBytes;
  static constexpr int kGranules = kSlots / 8;  // 8 slots always lie in one block

  const FlashParams& a;
  const AttentionView& v;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Shared<char> q = dynamic_shared(), k_tile = q + kQueryBytes, v_tile = k_tile + kTileBytes;
  FlashTask task;
  int first_row;      // packed, of this warp
  int32_t block_ids;  // lane l: the block of the l-th granule of the tile being fetched (K) or used (V)
  FlashRows<kTiles> rows;
  float values[kTiles][kDim / 8][4];

  __device__ explicit Flash(const FlashParams& params) : a(params), v(params.view) {}

  // Heads of a tile of rows one after another: with all tiles of a head first a chunk of 512 rows at 8192 takes 459 us,
  // not 360 (H100). At head size 256 there is no register left for the division.
  static constexpr bool kHeadsAlongY = kDim > 128;

  __device__ void run() {
    const int split = kCascade ? blockIdx.z : 0;
    int entry = 0, tile = 0;
    const bool has_work = TaskFinder<kRows, kCascade>(a).find(
        kHeadsAlongY ? blockIdx.x : blockIdx.x / v.num_kv_heads, entry, tile);
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (!has_work) return;
    task = make_task<kRows, kCascade>(a, entry, tile, kHeadsAlongY ? blockIdx.y : blockIdx.x % v.num_kv_heads,
                                      split);
    first_row = task.first_row + warp * kTiles * 16;
    rows.reset();
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        values[m][n][0] = values[m][n][1] = values[m][n][2] = values[m][n][3] = 0;
    // The sinks' slots against the second rotation of the queries (q_sink), the others against the first.
    const int sink_end = kCascade ? 0 : min(task.end, sinks_of(v, task.sequence));
    for (int begin = sink_end > 0 ? 0 : task.begin; begin < task.end;) {
      const bool is_sink = begin < sink_end;
      const int end = is_sink ? sink_end : task.end;
      go_through(is_sink ? v.q_sink : v.q, begin, end);
      begin = is_sink ? max(end, first_in_window(v, task)) : end;
    }
    write(split);
  }

  // All slots [begin, end) against one rotation of the queries. Whoever comes after may overwrite queries and
  // K, whose last use is before the last barrier; V is overwritten after the next one.
  __device__ void go_through(const void* query, int begin, int end) {
    fetch_query(query);
    int slot = begin / kSlots * kSlots;
    load_block_ids(slot);
    fetch(k_tile, slot, 0);
    cp_async_commit();
    for (; slot < end; slot += kSlots) {
      cp_async_wait<0>();
      sync_threads();  // K has come; V of the tile before is used up
      fetch(v_tile, slot, v.v_offset);
      cp_async_commit();
      FlashScores<kTiles, kColumns> scores;
      multiply_keys(scores);
      cp_async_wait<0>();
      sync_threads();  // V has come; K is used up
      if (slot + kSlots < end) {
        load_block_ids(slot + kSlots);
        fetch(k_tile, slot + kSlots, 0);
        cp_async_commit();
      }
      weigh(scores, slot, begin, end);
      add_values(scores);
    }
  }

  __device__ void fetch_query(const void* source) {
    for (int chunk = threadIdx.x; chunk < kRows * Layout::kChunks; chunk += kFlashThreads) {
      const int row = chunk / Layout::kChunks, column = chunk % Layout::kChunks,
                packed = task.first_row + row;
      const bool valid = packed < task.rows;
      const T* from = static_cast<const T*>(source);
      if (valid)
        from += query_row_of<kCascade>(a, task, packed) * v.q_stride +
                (task.head * v.group + packed % v.group) * kDim + column * 8;
      cp_async16_or_zero(q + Layout::offset(row, column), from, valid);
    }
  }

  __device__ void load_block_ids(int slot) {
    const int at = slot + lane * 8;
    block_ids = 0;
    if (lane < kGranules && at < task.length)
      block_ids = load(table_of(v, task.sequence, task.head) + (at >> v.block_shift));
  }

  __device__ void fetch(Shared<char> target, int slot, int64_t offset) {
#pragma unroll 2
    for (int i = 0; i < kSlots * Layout::kChunks / kFlashThreads; ++i) {
      const int chunk = i * kFlashThreads + static_cast<int>(threadIdx.x), row = chunk / Layout::kChunks,
                column = chunk % Layout::kChunks;
      const int32_t block = shfl(block_ids, row / 8);
      const int in_block = (slot + row) & ((1 << v.block_shift) - 1);
      const char* source = tile_of(v, block, task.head) + offset + in_block * (kDim * 2) + column * 16;
      cp_async16_or_zero(target + Layout::offset(row, column), source, slot + row < task.length);
    }
  }

  __device__ void multiply_keys(FlashScores<kTiles, kColumns>& scores) {
    const int query_offset = Layout::offset(warp * kTiles * 16 + (lane & 15), lane >> 4);
    const int keys_offset = Layout::offset((lane & 7) + (lane & 16 ? 8 : 0), lane >> 3 & 1);
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        scores.s[m][n][0] = scores.s[m][n][1] = scores.s[m][n][2] = scores.s[m][n][3] = 0;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t query[kTiles][4];
      const int query_at = Layout::advance(query_offset, k), keys_at = Layout::advance(keys_offset, k);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) ldmatrix_x4(query[m], q + (query_at + m * 16 * Layout::kRowBytes));
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        uint32_t keys[4];
        ldmatrix_x4(keys, k_tile + (keys_at + n * 16 * Layout::kRowBytes));
        const uint32_t low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          mma_16816<T>(scores.s[m][2 * n], query[m], low);
          mma_16816<T>(scores.s[m][2 * n + 1], query[m], high);
        }
      }
    }
  }

  __device__ void weigh(FlashScores<kTiles, kColumns>& scores, int slot, int begin, int end) {
    scores.cap(v);
    const int least = task.index_of_row0 + task.first_row / v.group;  // the last slot that the first row sees
    const bool all_seen =
        slot >= begin && slot + kSlots <= end && (kCascade || slot + kSlots - 1 <= least) && !has_windows(v);
    if (!all_seen) scores.template mask<kCascade>(a, task, first_row, slot, begin, end);
    float factor[kTiles][2];
    if (!scores.softmax(v.scale * kLog2e, rows, factor)) return;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) values[m][n][i] *= factor[m][i / 2];
  }

  __device__ void add_values(const FlashScores<kTiles, kColumns>& scores) {
    const int values_offset = Layout::offset(lane & 15, lane >> 4);
#pragma unroll
    for (int k = 0; k < kColumns / 2; ++k) {
      uint32_t p[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) probabilities_as_a<T>(scores.s[m], k, p[m]);
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t x[4];
        ldmatrix_x4_trans(x, v_tile + (Layout::advance(values_offset, n) + k * 16 * Layout::kRowBytes));
        const uint32_t low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          mma_16816<T>(values[m][2 * n], p[m], low);
          mma_16816<T>(values[m][2 * n + 1], p[m], high);
        }
      }
    }
  }

  __device__ void write(int split) {
    FlashEpilogue<T, kDim, kCascade> epilogue{a, task};
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      epilogue.write(first_row + m * 16, rows.largest[m], rows.sum[m], values[m], split,
                     q + (warp * kTiles + m) * 16 * Layout::kRowBytes);
  }
};

template <class T, int kDim, bool kCascade>
__global__ void __launch_bounds__(kFlashThreads) flash_attention(const __grid_constant__ FlashParams params) {
  Flash<T, kDim, kCascade>(params).run();
}

// At most so many tiles have rows: the device finds out which.
template <int kRows>
unsigned most_tiles(int64_t rows, int64_t entries, int group) {
  return static_cast<unsigned>(rows * group / kRows + entries);
}

template <class T, int kDim, bool kCascade>
void launch_flash(void* stream, const FlashParams& params, int64_t rows, int64_t entries) {
  using F = Flash<T, kDim, kCascade>;
  const unsigned tiles = most_tiles<F::kRows>(rows, entries, params.view.group);
  launch<flash_attention<T, kDim, kCascade>>(
      {.grid = F::kHeadsAlongY ? dim3(tiles, params.view.num_kv_heads, kCascade ? params.splits : 1)
                               : dim3(tiles * params.view.num_kv_heads, 1, kCascade ? params.splits : 1),
       .block = dim3(kFlashThreads),
       .shared_bytes = F::kSharedBytes,
       .stream = stream,
       .dependent = true},
      params);
}

template <class T, bool kCascade>
void launch_for_dim(void* stream, const FlashParams& params, int64_t rows, int64_t entries) {
  switch (params.view.head_dim) {
    case 64:
      return launch_flash<T, 64, kCascade>(stream, params, rows, entries);
    case 80:
      return launch_flash<T, 80, kCascade>(stream, params, rows, entries);
    case 96:
      return launch_flash<T, 96, kCascade>(stream, params, rows, entries);
    case 128:
      return launch_flash<T, 128, kCascade>(stream, params, rows, entries);
    case 256:
      return launch_flash<T, 256, kCascade>(stream, params, rows, entries);
    default:
      check(false, "prefill attention: head_dim has no tensor-core kernel");
  }
}

template <bool kCascade>
void launch_flash_attention(const AttentionContext& context, const FlashParams& params, DType dtype,
                            int64_t rows, int64_t entries) {
  if (sm90_takes(context.machine, params)) return launch_flash_sm90(context, params, dtype, rows, entries);
  if (dtype == DType::kBF16) return launch_for_dim<bf16, kCascade>(context.stream, params, rows, entries);
  launch_for_dim<f16, kCascade>(context.stream, params, rows, entries);
}

}  // namespace

void launch_prefill_attention(const AttentionContext& context, const AttentionParams& p) {
  const int64_t entries = std::min<int64_t>(p.num_sequences, p.rows / 2);  // with two rows or more
  launch_flash_attention<false>(context, {.view = view_of(p)}, p.layout.dtype, p.rows, entries);
}

void launch_prefix_attention(const AttentionContext& context, const AttentionParams& p) {
  const SharedPrefixes& shared = p.prefixes;
  launch_flash_attention<true>(context,
                               {.view = view_of(p),
                                .node_sequence_start = shared.node_sequence_start,
                                .node_sequences = shared.node_sequences,
                                .node_slots = shared.node_slots,
                                .partials = context.scratch.prefix_partials,
                                .num_nodes = shared.num_nodes,
                                .splits = shared.num_splits,
                                .early_fetch = p.early_fetch},
                               p.layout.dtype, shared.num_members, shared.num_nodes);
}

}  // namespace quire::QUIRE_SIDE
