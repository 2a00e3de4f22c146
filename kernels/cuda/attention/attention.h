// Attention over paged lists on the CUDA side and, through the shim, on the host. Which kernels run:
// - sequences of one query row: decode.cu (tensor cores, split over the grid, merged in the kernel);
// - of several: prefill.cu (tensor cores, flash tiles), or prefill_sm90.cu on Hopper at head sizes 64, 128;
// - shared prefixes: prefill's kernel over the members of each node, then decode over what is left;
// - float32 values, or a head size without a tensor-core kernel: plain.cu;
// - column sums, and row logits of a prefill: side_outputs.cu, after any of them;
// - partial results by segments of the list: partials.cu, likewise.
// One caller, the executor thread. Nothing here allocates or reads device memory; the caller owns the scratch.
#pragma once

#include "kernels/cuda/attention/prefix_partials.h"
#include "kernels/cuda/portable.h"
#include "kernels/kernels.h"

namespace quire::QUIRE_SIDE {

struct AttentionMachine {
  int multiprocessors = 1;
  int shared_bytes_per_block = 227 * 1024;  // the opt-in limit
  int compute_capability = 80;              // whose kernels run: DeviceFacts::kernel_capability
};

// Choices that a card's measurements make; README.md has the runs behind the defaults.
struct DecodeTuning {
  int warps = 8;
  int stages = 3;
  int min_tiles = 8;
  bool aligned = true;  // work_split.h
  int blocks_per_multiprocessor = 1;
  int unit_cost = 8;        // decode.h
  bool split_first = true;  // decode.h
};
// Of many lists that begin with a shared prefix, which another kernel has read: a unit is short and waits for the prefix's results
// too, so two small blocks a multiprocessor wait apart.
inline constexpr DecodeTuning kTailTuning = {.warps = 4, .stages = 2, .blocks_per_multiprocessor = 2};

struct AttentionScratch {
  float* partials = nullptr;
  int64_t partial_floats = 0;
  int32_t* counters = nullptr;  // zero when handed over; kernels leave them zero
  int64_t num_counters = 0;
  float* prefix_partials = nullptr;
  int64_t prefix_floats = 0;
  void* plan = nullptr;  // of decode, for a call without one
  float* lse = nullptr;  // [max_rows, max_q_heads], for column sums when the caller did not ask for LSE
  int64_t lse_floats = 0;
};

struct AttentionContext {
  void* stream = nullptr;
  AttentionMachine machine;
  DecodeTuning decode;
  AttentionScratch scratch;
  DecodeTuning tails = kTailTuning;
};

// Scratch for any call within these sizes: its bytes, and its parts in memory of so many bytes, aligned to
// 256. The caller zeroes the counters once.
struct AttentionScratchNeed {
  int64_t partial_floats = 0, num_counters = 0, prefix_floats = 0, lse_floats = 0, plan_bytes = 0;
  int64_t bytes() const;
  AttentionScratch place(void* memory) const;
};
AttentionScratchNeed attention_scratch_need(const AttentionMachine& machine, const DecodeTuning& tuning,
                                            int64_t max_rows, int64_t max_sequences, int32_t max_q_heads,
                                            int32_t max_head_dim);

// Kernels::prefix_splits() of this machine and scratch.
int32_t prefix_splits(const AttentionContext& context, DType activations, const PrefixCounts& shared,
                      int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim);

// Kernels::attention_plan_bytes() and plan_attention().
int64_t attention_plan_bytes(const AttentionMachine& machine, const DecodeTuning& tuning,
                             int64_t max_sequences, int32_t max_q_heads);
void plan_attention(const AttentionContext& context, DType activations, const AttentionParams& p);

// The whole op. `activations`: dtype of q and out.
void attention(const AttentionContext& context, DType activations, const AttentionParams& p);

// ---- its parts ----
int64_t decode_partial_floats(int grid, int head_dim);
void plan_decode_attention(const AttentionContext& context, const AttentionParams& p);
void launch_decode_attention(const AttentionContext& context, const AttentionParams& p,
                             const PrefixPartials& prefix);
void launch_prefill_attention(const AttentionContext& context, const AttentionParams& p);
void launch_prefix_attention(const AttentionContext& context, const AttentionParams& p);
void launch_plain_attention(const AttentionContext& context, DType activations, const AttentionParams& p);
void launch_last_row_logits(const AttentionContext& context,
                            const AttentionParams& p);  // of sequences of several rows
void launch_attention_partials(const AttentionContext& context, DType activations, const AttentionParams& p);
void launch_column_sums(const AttentionContext& context, DType activations, const AttentionParams& p);

}  // namespace quire::QUIRE_SIDE
