// What every back end asks of an op's parameters before it reads a pointer. Each message names the tensor,
// the dimension and both values. Host only; a failed check is our own fault.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kernels/kernels.h"
#include "src/base/check.h"

namespace quire {

// A message is made only when a check fails: these run once per op, on the step path. Without fmt, which nvcc rejects.
inline void check_equal(std::string_view what, int64_t got, int64_t wanted,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (got != wanted) [[unlikely]]
    check_failed(std::string(what) + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted),
                 file, line);
}
inline void check_at_least(std::string_view what, int64_t got, int64_t least,
                           const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (got < least) [[unlikely]]
    check_failed(std::string(what) + ": got " + std::to_string(got) + ", at least " + std::to_string(least) +
                     " wanted",
                 file, line);
}
inline void check_given(std::string_view what, const void* pointer, const char* file = __builtin_FILE(),
                        int line = __builtin_LINE()) {
  if (pointer == nullptr) [[unlikely]]
    check_failed(std::string(what) + ": null", file, line);
}

inline void check_float_dtype(std::string_view what, DType dtype) {
  const bool is_float = dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
  if (!is_float) [[unlikely]]
    check_failed(std::string(what) + ": dtype " + std::string(name_of(dtype)) + ", f32, bf16 or f16 wanted",
                 __FILE__, __LINE__);
}

// head_alone: a block may hold one head, where every head has slots or a list of its own.
inline void check_layout(const KvLayout& layout, int32_t head_dim, int32_t num_kv_heads, bool head_alone) {
  check_float_dtype("kv layout", layout.dtype);
  check_equal("kv layout, head_dim", layout.head_dim, head_dim);
  check_at_least("kv layout, block_tokens", layout.block_tokens, 1);
  if (!head_alone || layout.num_kv_heads != 1)
    check_equal("kv layout, num_kv_heads", layout.num_kv_heads, num_kv_heads);
}

inline void check_op(const EmbedParams& p) {
  check_at_least("embed, hidden", p.hidden, 1);
  check_float_dtype("embed table", p.table_dtype);
  check_given("embed ids", p.ids);
  check_given("embed table", p.table);
  check_given("embed out", p.out);
}

inline void check_op(const AddRmsNormParams& p) {
  check_at_least("add_rms_norm, hidden", p.hidden, 1);
  check_given("add_rms_norm residual", p.residual);
  check_given("add_rms_norm weight", p.weight);
  check_given("add_rms_norm out", p.out);
}

inline void check_op(const MatmulParams& p) {
  check_given("matmul weight", p.weight);
  check_given("matmul x", p.x);
  check_given("matmul out", p.out);
}

inline void check_op(const FusedMatmulParams& p, int64_t fused_rows) {
  check_given("fused_matmul weight", p.weight);
  check_given("fused_matmul x", p.x);
  check_at_least("fused_matmul, fused_rows less m", fused_rows - p.m, 0);
  if (p.norm_weight != nullptr) check_given("fused_matmul normed", p.normed);
  check_equal("fused_matmul out given", p.out != nullptr, p.residual == nullptr);
  check_at_least("fused_matmul, of gated, residual and out_f32 at most one",
                 1 - (p.gated + (p.residual != nullptr) + p.out_f32), 0);
  if (p.gated) check_at_least("fused_matmul gated, gate_group of the weight", p.weight->gate_group, 1);
}

inline void check_op(const RopeKvWriteParams& p) {
  check_at_least("rope_kv_write, head_dim", p.head_dim, 1);
  check_at_least("rope_kv_write, head_dim less rotary_dim", p.head_dim - p.rotary_dim, 0);
  check_equal("rope_kv_write, rotary_dim modulo 2", p.rotary_dim % 2, 0);
  check_given("rope_kv_write qkv", p.qkv);
  check_equal("rope_kv_write q_sink_out given", p.q_sink_out != nullptr, p.sink_positions != nullptr);
  if (p.rotary_dim > 0) check_given("rope_kv_write positions", p.positions);
  if (p.rotary_dim > 0) check_given("rope_kv_write cos_sin", p.cos_sin);
  if (p.num_kv_heads == 0) return;  // a layer that reads another layer's K and V
  check_given("rope_kv_write slots", p.slots);
  check_given("rope_kv_write arena", p.arena);
  if (p.slot_stride != 1) check_equal("rope_kv_write, slot_stride", p.slot_stride, p.num_kv_heads);
  check_layout(p.layout, p.head_dim, p.num_kv_heads, p.slot_stride != 1);
}

inline void check_op(const AttentionParams& p) {
  check_at_least("attention, head_dim", p.head_dim, 1);
  check_at_least("attention, num_kv_heads", p.num_kv_heads, 1);
  check_equal("attention, num_q_heads modulo num_kv_heads", p.num_q_heads % p.num_kv_heads, 0);
  check_at_least("attention q, row stride", p.q_stride, static_cast<int64_t>(p.num_q_heads) * p.head_dim);
  check_given("attention q", p.q);
  check_given("attention out", p.out);
  check_given("attention query_start", p.query_start);
  check_given("attention lengths", p.lengths);
  if (p.max_length > 0) check_given("attention block_table", p.block_table);
  if (p.max_length > 0) check_given("attention arena", p.arena);
  check_layout(p.layout, p.head_dim, p.num_kv_heads, p.head_table_stride != 0);
  if (p.head_table_stride != 0)
    check_equal("attention, heads of a block where each has a list", p.layout.num_kv_heads, 1);
  check_equal("attention q_sink given", p.q_sink != nullptr, p.sink_slots != nullptr);
  const bool has_starts = p.row_logits_start != nullptr || p.column_sums_start != nullptr;
  if (has_starts)
    check_equal("attention, lists of a sequence whose side outputs have starts", p.head_table_stride, 0);
  if (p.row_logits != nullptr && p.row_logits_start == nullptr)
    check_at_least("attention row_logits, stride", p.row_logits_stride, p.max_length);
  if (p.column_sums != nullptr && p.column_sums_start == nullptr)
    check_at_least("attention column_sums, stride", p.column_sums_stride, p.max_length);
  if (p.partials == nullptr) return;
  check_at_least("attention partials, segment_slots", p.segment_slots, 1);
  check_at_least("attention partials, slots of all segments", int64_t{p.segment_slots} * p.num_segments,
                 p.max_length);
}

inline void check_op(const SiluMulParams& p) {
  check_at_least("silu_mul, width", p.width, 1);
  check_given("silu_mul gate_up", p.gate_up);
  check_given("silu_mul out", p.out);
  if (p.gate_group > 0) check_equal("silu_mul, width modulo gate_group", p.width % p.gate_group, 0);
}

inline void check_op(const BlockCopyParams& p) {
  check_at_least("copy_blocks, block_bytes", p.block_bytes, 1);
  check_given("copy_blocks arena", p.arena);
  check_given("copy_blocks pairs", p.pairs);
}

inline void check_op(const MoveSlotsParams& p) {
  check_float_dtype("move_slots", p.layout.dtype);
  check_at_least("move_slots, num_layers", p.layout.num_layers, 1);
  check_at_least("move_slots, num_kv_heads", p.layout.num_kv_heads, 1);
  check_given("move_slots arena", p.arena);
  check_given("move_slots source_blocks", p.source_blocks);
  check_given("move_slots target_blocks", p.target_blocks);
  check_given("move_slots source_slots", p.source_slots);
  check_at_least("move_slots source_slots, stride", p.source_stride, p.count);
  check_at_least("move_slots, heads_per_list", p.heads_per_list, 1);
  check_equal("move_slots, num_kv_heads modulo heads_per_list", p.layout.num_kv_heads % p.heads_per_list, 0);
}

// The parts of one weight: at least one, all of the same cols.
inline void check_parts(std::span<const HostMatrix> parts) {
  check_at_least("weight, parts", static_cast<int64_t>(parts.size()), 1);
  for (const HostMatrix& part : parts) {
    check_equal("weight part, cols", part.cols, parts[0].cols);
    check_at_least("weight part, rows", part.rows, 1);
    check_at_least("weight part, cols", part.cols, 1);
    check_float_dtype("weight part", part.dtype);
    check_given("weight part", part.data);
  }
}

}  // namespace quire
