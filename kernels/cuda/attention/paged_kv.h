// How attention kernels see their lists: one struct made on the host from AttentionParams, and the maths
// every kernel shares (masks, soft cap, sinks, merging of partial results: Milakov and Gimelshein 2018,
// Online normalizer calculation for softmax, 3.1).
#pragma once

#include "kernels/cuda/portable.h"
#include "kernels/kernels.h"

namespace quire::QUIRE_SIDE {

inline constexpr float kNegativeInfinity = -__builtin_inff();

// Copies of AttentionParams' fields that kernels need, strides in bytes where they address the arena.
struct AttentionView {
  const void* q;
  const void* q_sink;
  void* out;
  const char* arena;
  const float* sinks;
  const int32_t* query_start;
  const int32_t* lengths;
  const int32_t* block_table;
  const int32_t* sink_slots;
  const int32_t* windows;
  const int32_t* private_start;  // [num_sequences] slots below are another kernel's (cascade), or null
  float* lse;
  float* row_logits;
  const int64_t* row_logits_start;
  int64_t q_stride;  // elements
  int64_t table_stride, head_table_stride;
  int64_t length_stride, head_length_stride;
  int64_t row_logits_stride;
  int64_t block_bytes;  // one block, all layers
  int64_t v_offset;     // K tile of a head to its V tile
  int64_t head_bytes;   // from a head's tile to the next head's; 0 when a list belongs to one head
  int32_t block_shift;  // log2 of tokens a block
  int32_t num_sequences, num_q_heads, num_kv_heads, group, head_dim;
  int32_t window;
  float scale, soft_cap;
};

inline AttentionView view_of(const AttentionParams& p) {
  const bool list_per_head = p.head_table_stride != 0;
  return {.q = p.q,
          .q_sink = p.q_sink,
          .out = p.out,
          .arena = p.arena,
          .sinks = p.sinks,
          .query_start = p.query_start,
          .lengths = p.lengths,
          .block_table = p.block_table,
          .sink_slots = p.sink_slots,
          .windows = p.windows,
          .private_start = nullptr,
          .lse = p.lse,
          .row_logits = p.row_logits,
          .row_logits_start = p.row_logits_start,
          .q_stride = p.q_stride,
          .table_stride = p.table_stride,
          .head_table_stride = p.head_table_stride,
          .length_stride = p.length_stride,
          .head_length_stride = p.head_length_stride,
          .row_logits_stride = p.row_logits_stride,
          .block_bytes = p.layout.block_bytes(),
          .v_offset = p.layout.kv_stride(),
          .head_bytes = list_per_head ? 0 : p.layout.head_stride(),
          .block_shift = std::countr_zero(static_cast<uint32_t>(p.layout.block_tokens)),
          .num_sequences = p.num_sequences,
          .num_q_heads = p.num_q_heads,
          .num_kv_heads = p.num_kv_heads,
          .group = p.num_q_heads / p.num_kv_heads,
          .head_dim = p.head_dim,
          .window = p.window,
          .scale = p.scale,
          .soft_cap = p.soft_cap};
}

// The smaller of the layer's window and the sequence's own; 0 = none.
__device__ inline int window_of(const AttentionView& v, int sequence) {
  const int own = v.windows == nullptr ? 0 : load(v.windows + sequence);
  return v.window == 0 || own == 0 ? max(v.window, own) : min(v.window, own);
}
__device__ inline bool has_windows(const AttentionView& v) {
  return v.window > 0 || v.windows != nullptr;
}
// Slots below are seen whatever the window, through q_sink.
__device__ inline int sinks_of(const AttentionView& v, int sequence) {
  return v.q_sink == nullptr ? 0 : load(v.sink_slots + sequence);
}

__device__ inline int length_of(const AttentionView& v, int sequence, int head) {
  return load(v.lengths + sequence * v.length_stride + head * v.head_length_stride);
}
__device__ inline const int32_t* table_of(const AttentionView& v, int sequence, int head) {
  return v.block_table + sequence * v.table_stride + head * v.head_table_stride;
}
// K tile of (block, head); the V tile lies v_offset further.
__device__ inline const char* tile_of(const AttentionView& v, int block, int head) {
  return v.arena + block * v.block_bytes + head * v.head_bytes;
}

// Where a head's row logits begin, or null if nobody wants the sequence's. length: of its list.
__device__ inline float* row_logits_of(const AttentionView& v, int sequence, int q_head, int length) {
  if (v.row_logits_start == nullptr)
    return v.row_logits + (int64_t{sequence} * v.num_q_heads + q_head) * v.row_logits_stride;
  const int64_t start = load(v.row_logits_start + sequence);
  return start < 0 ? nullptr : v.row_logits + start + int64_t{q_head} * length;
}

// From q . k to a logit in units of log2: exp2 of it is the unnormalised probability.
__device__ inline float log2_logit(const AttentionView& v, float dot) {
  const float x = dot * v.scale;
  return (v.soft_cap > 0 ? v.soft_cap * tanh_from_exp2(x / v.soft_cap) : x) * kLog2e;
}

// A running softmax of one (row, head) without its values: largest logit (log2 units) and sum of exp2(logit -
// largest).
struct SoftmaxState {
  float largest = kNegativeInfinity;
  float sum = 0;
};
// The factor that brings a part's sum and values to the common largest logit; 0 for an empty part.
__device__ inline float rescale(float part_largest, float common_largest) {
  return part_largest == kNegativeInfinity ? 0.0f : exp2_approx(part_largest - common_largest);
}
// 1 / (sum of probabilities), the share of its head's learned sink logit included.
__device__ inline float normaliser(const AttentionView& v, SoftmaxState s, int q_head) {
  if (v.sinks != nullptr) s.sum += exp2_approx(load(v.sinks + q_head) * kLog2e - s.largest);
  return reciprocal(s.sum);
}
__device__ inline float lse_of(SoftmaxState s) {
  return (s.largest + log2_approx(s.sum)) * kLn2;
}

// Tiles of 16 tokens in shared memory, stored so that the eight rows of an ldmatrix meet in no bank: 16-byte
// chunk c of row r is at c ^ (r & 7) where a row has a multiple of eight chunks; other rows are one chunk
// longer, an odd number of them.
template <int kDim>
struct TileLayout {
  static constexpr int kChunks = kDim / 8;
  static constexpr bool kXor = kChunks % 8 == 0;
  static constexpr int kRowBytes = (kXor ? kChunks : kChunks + (kChunks % 2 == 0)) * 16;
  __device__ static int offset(int row, int chunk) {
    return row * kRowBytes + ((kXor ? chunk ^ (row & 7) : chunk) << 4);
  }
  // offset(row, 2 * step + chunk) from at = offset(row, chunk), chunk < 2: one instruction where offset would
  // be a register for each step.
  __device__ static int advance(int at, int step) { return kXor ? at ^ (step << 5) : at + (step << 5); }
};

}  // namespace quire::QUIRE_SIDE
