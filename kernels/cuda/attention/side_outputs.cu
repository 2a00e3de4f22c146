// What retention asks of a prefill, as passes of their own over the keys: the forward kernels stay free of
// them.
//
// column_sums[sequence][query head][slot] += sum over this call's rows of the slot's probability, after
// the rows' LSE is known: exact in any chunking, because a causal row's LSE is final when its chunk has run.
// A block works on 64 slots of one list and one query head, against all rows that see them; it owns the
// slots' sums, so there are no atomics and a second run gives the same bits. Bound: tensor cores (half of the
// forward's operations) for 16-bit types; the plain kernels beneath, for float32 and unusual head sizes, by
// their loads.
//
// row_logits of the last row of each sequence of several rows (decode.cu and plain.cu write their own). A
// block works on 128 slots and one query head; bound: reading K once a query head, half of what a decode step
// of the list reads with as many KV heads.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/paged_kv.h"
#include "kernels/cuda/dispatch.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kSumWarps = 4;
constexpr int kSumSlots = 64;
constexpr int kLogitSlots = 128;

struct ColumnSumParams {
  AttentionView view;  // .lse is set
  float* sums;
  int64_t stride;
  const int64_t* start;  // of each sequence, in the stride's place; < 0: not wanted
};

// Block (sequence and query head, tile of slots), and what both kernels derive from it.
struct SumTask {
  int sequence, head, q_head, first_slot, length, rows, query_row, window;

  __device__ explicit SumTask(const AttentionView& v)
      : sequence(blockIdx.x / v.num_q_heads),
        head(blockIdx.x % v.num_q_heads / v.group),
        q_head(blockIdx.x % v.num_q_heads),
        first_slot(blockIdx.y * kSumSlots),
        length(length_of(v, sequence, head)),
        query_row(load(v.query_start + sequence)),
        window(window_of(v, sequence)) {
    rows = load(v.query_start + sequence + 1) - query_row;
    if (window == 0) window = length;  // every row sees from the first slot on
  }
  __device__ bool is_empty() const { return rows == 0 || first_slot >= length; }
  __device__ int index_of(int row) const { return length - rows + row; }
  __device__ bool sees(const AttentionView& v, int row, int slot) const {
    const int index = index_of(row);
    return row < rows && slot <= index &&
           (slot > index - window || (v.q_sink != nullptr && slot < sinks_of(v, sequence)));
  }
  // log2 of the row's whole sum, the sink's share included.
  __device__ float log2_total(const AttentionView& v, int row) const {
    const float lse = load(v.lse + int64_t{query_row + min(row, rows - 1)} * v.num_q_heads + q_head) * kLog2e;
    if (v.sinks == nullptr) return lse;
    const float sink = load(v.sinks + q_head) * kLog2e, most = fmaxf(lse, sink);
    return most + log2_approx(exp2_approx(lse - most) + exp2_approx(sink - most));
  }
  __device__ float* sum_of(const ColumnSumParams& a, int slot) const {
    if (a.start != nullptr) return a.sums + load(a.start + sequence) + int64_t{q_head} * length + slot;
    return a.sums + (int64_t{sequence} * a.view.num_q_heads + q_head) * a.stride + slot;
  }
};

// Whether somebody asked for the sums of this block's sequence.
__device__ inline bool is_wanted(const ColumnSumParams& a) {
  return a.start == nullptr || load(a.start + blockIdx.x / a.view.num_q_heads) >= 0;
}

template <class T, int kDim>
struct ColumnSums {
  using Layout = TileLayout<kDim>;
  static constexpr int kSteps = kDim / 16, kColumns = kSumSlots / 8,
                       kTileBytes = kSumSlots * Layout::kRowBytes;
  static constexpr int kSharedBytes = kTileBytes + kSumWarps * kSumSlots * 4;

  const ColumnSumParams& a;
  const AttentionView& v;
  const SumTask task;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Shared<char> keys = dynamic_shared();
  float sums[kColumns][2] = {};

  __device__ explicit ColumnSums(const ColumnSumParams& params)
      : a(params), v(params.view), task(params.view) {}

  __device__ void run() {
    if (task.is_empty()) return;
    fetch_keys();
    const int sink_slots = v.q_sink != nullptr ? load(v.sink_slots + task.sequence) : 0;
    const int first_row =
        max(0, task.first_slot - task.index_of(0)) / 16 * 16;  // earlier rows see none of the slots
    for (int row = first_row + warp * 16; row < task.rows; row += kSumWarps * 16) {
      float s[kColumns][4] = {};
      multiply(v.q, row, s);
      if (task.first_slot < sink_slots) {
        float from_sink[kColumns][4] = {};
        multiply(v.q_sink, row, from_sink);
        for (int n = 0; n < kColumns; ++n)
          for (int i = 0; i < 4; ++i)
            if (slot_of(n, i) < sink_slots) s[n][i] = from_sink[n][i];
      }
      add_rows(row, s);
    }
    write();
  }

  __device__ int slot_of(int n, int i) const { return task.first_slot + n * 8 + 2 * t + i % 2; }

  __device__ void fetch_keys() {
    const int32_t* table = table_of(v, task.sequence, task.head);
    for (int chunk = threadIdx.x; chunk < kSumSlots * Layout::kChunks; chunk += kSumWarps * kWarp) {
      const int row = chunk / Layout::kChunks, column = chunk % Layout::kChunks, slot = task.first_slot + row;
      const bool valid = slot < task.length;
      const int32_t block = valid ? load(table + (slot >> v.block_shift)) : 0;
      const char* source =
          tile_of(v, block, task.head) + (slot & ((1 << v.block_shift) - 1)) * (kDim * 2) + column * 16;
      cp_async16_or_zero(keys + Layout::offset(row, column), source, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    sync_threads();
  }

  __device__ void multiply(const void* query, int first_row, float (&s)[kColumns][4]) {
    const T* from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      from[i] = static_cast<const T*>(query) +
                (task.query_row + min(first_row + g + i * 8, task.rows - 1)) * v.q_stride +
                task.q_head * kDim + 2 * t;
    const int keys_offset = Layout::offset((lane & 7) + (lane & 16 ? 8 : 0), lane >> 3 & 1);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        q[i] = load(reinterpret_cast<const uint32_t*>(from[i % 2] + k * 16 + i / 2 * 8));
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        uint32_t x[4];
        ldmatrix_x4(x, keys + (Layout::advance(keys_offset, k) + n * 16 * Layout::kRowBytes));
        const uint32_t low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
        mma_16816<T>(s[2 * n], q, low);
        mma_16816<T>(s[2 * n + 1], q, high);
      }
    }
  }

  __device__ void add_rows(int first_row, const float (&s)[kColumns][4]) {
    const float total[2] = {task.log2_total(v, first_row + g), task.log2_total(v, first_row + g + 8)};
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (task.sees(v, first_row + g + i / 2 * 8, slot_of(n, i)))
          sums[n][i % 2] += exp2_approx(log2_logit(v, s[n][i]) - total[i / 2]);
  }

  __device__ void write() {
    const Shared<float> of_warps = (keys + kTileBytes).template as<float>();
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = sums[n][i];
#pragma unroll
        for (int m = 4; m < kWarp; m *= 2) x += shfl_xor(x, m);
        if (g == 0) of_warps[warp * kSumSlots + n * 8 + 2 * t + i] = x;
      }
    sync_threads();
    const int slot = threadIdx.x;
    if (slot >= kSumSlots || task.first_slot + slot >= task.length) return;
    float x = 0;
    for (int w = 0; w < kSumWarps; ++w) x += of_warps[w * kSumSlots + slot];
    float* target = task.sum_of(a, task.first_slot + slot);
    store(target, load(target) + x);
  }
};

// Three blocks a multiprocessor; of head size 256 two, or registers spill on sm_80.
template <class T, int kDim>
__global__ void __launch_bounds__(kSumWarps* kWarp, kDim <= 128 ? 3 : 2)
    column_sums(const __grid_constant__ ColumnSumParams params) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (is_wanted(params)) ColumnSums<T, kDim>(params).run();
}

// A thread a slot.
template <class Act, class Kv>
__global__ void __launch_bounds__(kSumSlots) plain_column_sums(const __grid_constant__ ColumnSumParams a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const AttentionView& v = a.view;
  const SumTask task(v);
  const int slot = task.first_slot + static_cast<int>(threadIdx.x);
  if (!is_wanted(a) || task.is_empty() || slot >= task.length) return;
  const int32_t block = load(table_of(v, task.sequence, task.head) + (slot >> v.block_shift));
  const Kv* key = reinterpret_cast<const Kv*>(tile_of(v, block, task.head)) +
                  (slot & ((1 << v.block_shift) - 1)) * v.head_dim;
  const bool is_sink = v.q_sink != nullptr && slot < load(v.sink_slots + task.sequence);
  float sum = 0;
  for (int row = max(0, slot - task.index_of(0)); row < task.rows; ++row) {
    if (!task.sees(v, row, slot)) continue;
    const Act* q = static_cast<const Act*>(is_sink ? v.q_sink : v.q) + (task.query_row + row) * v.q_stride +
                   int64_t{task.q_head} * v.head_dim;
    float dot = 0;
    for (int d = 0; d < v.head_dim; ++d) dot += to_f32(load(q + d)) * to_f32(load(key + d));
    sum += exp2_approx(log2_logit(v, dot) - task.log2_total(v, row));
  }
  float* target = task.sum_of(a, slot);
  store(target, load(target) + sum);
}

// A thread a slot: its key by 16-byte loads against the query in shared memory.
template <class T>
__global__ void __launch_bounds__(kLogitSlots, 8) last_row_logits(const __grid_constant__ AttentionView v) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int q_head = blockIdx.x % v.num_q_heads, head = q_head / v.group,
            sequence = blockIdx.x / v.num_q_heads;
  const int slot = blockIdx.y * kLogitSlots + threadIdx.x, length = length_of(v, sequence, head);
  const int end_row = load(v.query_start + sequence + 1), rows = end_row - load(v.query_start + sequence);
  if (rows <= 1 || static_cast<int>(blockIdx.y) * kLogitSlots >= length) return;
  const Shared<float> q = dynamic_shared<float>(), q_sink = q + v.head_dim;
  const int64_t at = (end_row - 1) * v.q_stride + int64_t{q_head} * v.head_dim;
  const int sink_slots = sinks_of(v, sequence), window = window_of(v, sequence);
  for (int d = threadIdx.x; d < v.head_dim; d += kLogitSlots) {
    q[d] = to_f32(load(static_cast<const T*>(v.q) + at + d));
    if (sink_slots > 0) q_sink[d] = to_f32(load(static_cast<const T*>(v.q_sink) + at + d));
  }
  sync_threads();
  float* logits = row_logits_of(v, sequence, q_head, length);
  if (logits == nullptr || slot >= length || (window > 0 && slot < length - window && slot >= sink_slots))
    return;
  const int32_t block = load(table_of(v, sequence, head) + (slot >> v.block_shift));
  const char* key = tile_of(v, block, head) + (slot & ((1 << v.block_shift) - 1)) * (v.head_dim * 2);
  const Shared<float> query = slot < sink_slots ? q_sink : q;
  float dot = 0;
  for (int d = 0; d < v.head_dim; d += 8) {
    const uint4 chunk = load(reinterpret_cast<const uint4*>(key + d * 2));
    const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 k = unpack2<T>(pairs[i]);
      dot += query[d + 2 * i] * k.x + query[d + 2 * i + 1] * k.y;
    }
  }
  store(logits + slot, log2_logit(v, dot) * kLn2);
}

template <class T, int kDim>
void launch_sums(const LaunchConfig& config, const ColumnSumParams& params) {
  LaunchConfig c = config;
  c.block = dim3(kSumWarps * kWarp);
  c.shared_bytes = ColumnSums<T, kDim>::kSharedBytes;
  launch<column_sums<T, kDim>>(c, params);
}

template <class T>
void launch_for_dim(const LaunchConfig& config, const ColumnSumParams& params) {
  switch (params.view.head_dim) {
    case 64:
      return launch_sums<T, 64>(config, params);
    case 80:
      return launch_sums<T, 80>(config, params);
    case 96:
      return launch_sums<T, 96>(config, params);
    case 128:
      return launch_sums<T, 128>(config, params);
    case 256:
      return launch_sums<T, 256>(config, params);
    default:
      launch<plain_column_sums<T, T>>(config, params);
  }
}

}  // namespace

void launch_column_sums(const AttentionContext& context, DType activations, const AttentionParams& p) {
  ColumnSumParams params{.view = view_of(p),
                         .sums = p.column_sums,
                         .stride = p.column_sums_stride,
                         .start = p.column_sums_start};
  if (params.view.lse == nullptr) params.view.lse = context.scratch.lse;
  const LaunchConfig config{
      .grid = {as_grid(int64_t{p.num_sequences} * p.num_q_heads), as_grid(ceil_div(p.max_length, kSumSlots))},
      .block = dim3(kSumSlots),
      .stream = context.stream,
      .dependent = true};
  const DType kv = p.layout.dtype;
  if (activations == DType::kBF16 && kv == DType::kBF16) return launch_for_dim<bf16>(config, params);
  if (activations == DType::kF16 && kv == DType::kF16) return launch_for_dim<f16>(config, params);
  if (kv == DType::kF32) return launch<plain_column_sums<float, float>>(config, params);
  if (kv == DType::kBF16) return launch<plain_column_sums<float, bf16>>(config, params);
  launch<plain_column_sums<float, f16>>(config, params);
}

void launch_last_row_logits(const AttentionContext& context, const AttentionParams& p) {
  const LaunchConfig config{.grid = {as_grid(int64_t{p.num_sequences} * p.num_q_heads),
                                     as_grid(ceil_div(p.max_length, kLogitSlots))},
                            .block = dim3(kLogitSlots),
                            .shared_bytes = 2 * p.head_dim * 4,
                            .stream = context.stream,
                            .dependent = true};
  if (p.layout.dtype == DType::kBF16) return launch<last_row_logits<bf16>>(config, view_of(p));
  launch<last_row_logits<f16>>(config, view_of(p));
}

}  // namespace quire::QUIRE_SIDE
