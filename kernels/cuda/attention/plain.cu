// Attention without tensor cores: float32 values (a float32 model's tokens must equal the CPU's), and head
// sizes that no other kernel takes. Any number of rows, every option but column sums.
//
// What a warp works on: one (row, query head), its whole list, 32 slots at a time: a slot a lane for the
// logits, a stride of dimensions a lane for the values. Bound: the latency of its own loads; K and V are read
// once per query head. Not meant to be fast, only right: models of 16-bit types and usual head sizes never
// come here.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/paged_kv.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kPlainWarps = 4;
constexpr int kPlainMaxDim = 256;
constexpr int kDimsPerLane = kPlainMaxDim / kWarp;

template <class Act, class Kv>
struct Plain {
  const AttentionView& v;
  int lane, sequence, row, q_head, head, length, index;
  Shared<float> q, q_sink, p;  // [head_dim], [head_dim], [32]
  SoftmaxState state = {};
  float values[kDimsPerLane] = {};

  __device__ Plain(const AttentionView& view, int64_t task, Shared<float> shared)
      : v(view),
        lane(threadIdx.x % kWarp),
        row(task / view.num_q_heads),
        q_head(task % view.num_q_heads),
        head(q_head / view.group),
        q(shared),
        q_sink(shared + view.head_dim),
        p(shared + 2 * view.head_dim) {
    sequence = sequence_of(row);
    length = length_of(v, sequence, head);
    index = length - load(v.query_start + sequence + 1) + row;
  }

  // The last sequence whose first row is not past `row`: empty sequences before it have the same start.
  __device__ int sequence_of(int r) const {
    int low = 0, high = v.num_sequences;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (load(v.query_start + middle) <= r)
        low = middle;
      else
        high = middle;
    }
    return low;
  }

  __device__ void load_query(const void* source, Shared<float> target) {
    const Act* from = static_cast<const Act*>(source) + row * v.q_stride + int64_t{q_head} * v.head_dim;
    for (int d = lane; d < v.head_dim; d += kWarp) target[d] = to_f32(load(from + d));
  }

  __device__ const Kv* key(int slot) const {
    const int32_t block = load(table_of(v, sequence, head) + (slot >> v.block_shift));
    return reinterpret_cast<const Kv*>(tile_of(v, block, head)) +
           (slot & ((1 << v.block_shift) - 1)) * v.head_dim;
  }

  __device__ float logit(int slot, int sink_slots) const {
    const Kv* k = key(slot);
    const Shared<float> query = slot < sink_slots ? q_sink : q;
    float dot = 0;
    for (int d = 0; d < v.head_dim; ++d) dot += query[d] * to_f32(load(k + d));
    return log2_logit(v, dot);
  }

  __device__ void run() {
    load_query(v.q, q);
    const int sink_slots = sinks_of(v, sequence);
    if (sink_slots > 0) load_query(v.q_sink, q_sink);
    sync_warp();
    const bool last_row = v.row_logits != nullptr && row + 1 == load(v.query_start + sequence + 1);
    float* logits = last_row ? row_logits_of(v, sequence, q_head, length) : nullptr;
    const int window = window_of(v, sequence), first = window > 0 ? max(0, index + 1 - window) : 0;
    const auto sees = [&](int slot) { return slot <= index && (slot >= first || slot < sink_slots); };
    for (int from = sink_slots > 0 ? 0 : first; from <= index; from += kWarp) {
      const int slot = from + lane;
      const float s = sees(slot) ? logit(slot, sink_slots) : kNegativeInfinity;
      if (logits != nullptr && sees(slot)) store(logits + slot, s * kLn2);
      add_slots(s, from, min(kWarp, index + 1 - from));
    }
    if (index >= 0) write();
  }

  __device__ void add_slots(float s, int from, int count) {
    const float m = fmaxf(state.largest, warp_max(s));
    const float factor = rescale(state.largest, m), mine = exp2_approx(s - m);
    state = {m, state.sum * factor + warp_sum(mine)};
    p[lane] = mine;
    sync_warp();
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) values[i] *= factor;
    for (int j = 0; j < count; ++j) {
      const Kv* value =
          reinterpret_cast<const Kv*>(reinterpret_cast<const char*>(key(from + j)) + v.v_offset);
      const float weight = p[j];
#pragma unroll
      for (int i = 0; i < kDimsPerLane; ++i) {
        const int d = i * kWarp + lane;
        if (d < v.head_dim) values[i] += weight * to_f32(load(value + d));
      }
    }
    sync_warp();  // p is written again for the next slots
  }

  __device__ void write() {
    const float norm = normaliser(v, state, q_head);
    const int64_t out_row = int64_t{row} * v.num_q_heads + q_head;
    Act* out = static_cast<Act*>(v.out) + out_row * v.head_dim;
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) {
      const int d = i * kWarp + lane;
      if (d < v.head_dim) store(out + d, from_f32<Act>(values[i] * norm));
    }
    if (v.lse != nullptr && lane == 0) store(v.lse + out_row, lse_of(state));
  }
};

__device__ __host__ constexpr int plain_floats(int head_dim) {
  return 2 * head_dim + kWarp;
}  // of one warp

template <class Act, class Kv>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_attention(const __grid_constant__ AttentionView v, int64_t tasks) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warp = threadIdx.x / kWarp;
  const int64_t task = int64_t{blockIdx.x} * kPlainWarps + warp;
  if (task >= tasks || task / v.num_q_heads >= load(v.query_start + v.num_sequences))
    return;  // rows of padding
  Plain<Act, Kv>(v, task, dynamic_shared<float>() + warp * plain_floats(v.head_dim)).run();
}

template <class Act, class Kv>
void launch_plain(void* stream, const AttentionParams& p) {
  const int64_t tasks = p.rows * p.num_q_heads;
  launch<plain_attention<Act, Kv>>(
      {.grid = dim3(static_cast<unsigned>((tasks + kPlainWarps - 1) / kPlainWarps)),
       .block = dim3(kPlainWarps * kWarp),
       .shared_bytes = kPlainWarps * plain_floats(p.head_dim) * 4,
       .stream = stream,
       .dependent = true},
      view_of(p), tasks);
}

}  // namespace

void launch_plain_attention(const AttentionContext& context, DType activations, const AttentionParams& p) {
  check(p.head_dim <= kPlainMaxDim, "attention: head_dim over 256");
  const DType kv = p.layout.dtype;
  if (activations == DType::kF32 && kv == DType::kF32) return launch_plain<float, float>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kBF16) return launch_plain<float, bf16>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kF16) return launch_plain<float, f16>(context.stream, p);
  if (activations == DType::kBF16 && kv == DType::kBF16) return launch_plain<bf16, bf16>(context.stream, p);
  if (activations == DType::kF16 && kv == DType::kF16) return launch_plain<f16, f16>(context.stream, p);
  check(false, "attention: 16-bit activations need a KV cache of the same dtype");
}

}  // namespace quire::QUIRE_SIDE
