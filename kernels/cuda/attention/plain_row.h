// One (row, query head) of attention by one warp, without tensor cores: 32 slots at a time, a slot a lane for the logits, a stride of
// dimensions a lane for the values. plain.cu lets it see its whole list, partials.cu one segment at a time.
#pragma once

#include "kernels/cuda/attention/paged_kv.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kPlainWarps = 4;
inline constexpr int kPlainMaxDim = 256;
inline constexpr int kDimsPerLane = kPlainMaxDim / kWarp;

template <class Act, class Kv>
struct PlainRow {
  const AttentionView& v;
  int lane, sequence, row, q_head, head, length, index;
  Shared<float> q, q_sink, p;     // [head_dim], [head_dim], [32]
  int sink_slots = 0, first = 0;  // slots from `first` on are within the window
  SoftmaxState state = {};
  float values[kDimsPerLane] = {};

  __device__ PlainRow(const AttentionView& view, int64_t task, Shared<float> shared)
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
    sink_slots = sinks_of(v, sequence);
    const int window = window_of(v, sequence);
    first = window > 0 ? max(0, index + 1 - window) : 0;
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
  __device__ void load_queries() {
    load_query(v.q, q);
    if (sink_slots > 0) load_query(v.q_sink, q_sink);
    sync_warp();
  }

  __device__ const Kv* key(int slot) const {
    const int32_t block = load(table_of(v, sequence, head) + (slot >> v.block_shift));
    return reinterpret_cast<const Kv*>(tile_of(v, block, head)) +
           (slot & ((1 << v.block_shift) - 1)) * v.head_dim;
  }

  __device__ float logit(int slot) const {
    const Kv* k = key(slot);
    const Shared<float> query = slot < sink_slots ? q_sink : q;
    float dot = 0;
    for (int d = 0; d < v.head_dim; ++d) dot += query[d] * to_f32(load(k + d));
    return log2_logit(v, dot);
  }

  // Takes in the slots of [begin, end) that the row sees; stores their logits by slot, where somebody wants them.
  __device__ void visit(int begin, int end, float* logits) {
    const auto sees = [&](int slot) { return slot < end && (slot >= first || slot < sink_slots); };
    for (int from = begin; from < end; from += kWarp) {
      const int slot = from + lane;
      if (!any(sees(slot))) continue;
      const float s = sees(slot) ? logit(slot) : kNegativeInfinity;
      if (logits != nullptr && sees(slot)) store(logits + slot, s * kLn2);
      add_slots(s, from, min(kWarp, end - from));
    }
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

  // This lane's dimensions.
  template <class Each>
  __device__ void for_each_value(const Each& each) const {
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) {
      const int d = i * kWarp + lane;
      if (d < v.head_dim) each(d, values[i]);
    }
  }
};

__device__ __host__ constexpr int plain_floats(int head_dim) {
  return 2 * head_dim + kWarp;
}  // of one warp

// Rows that pad a step belong to no sequence.
__device__ inline bool is_padding(const AttentionView& v, int64_t task, int64_t tasks) {
  return task >= tasks || task / v.num_q_heads >= load(v.query_start + v.num_sequences);
}

}  // namespace quire::QUIRE_SIDE
