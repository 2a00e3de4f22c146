#include "kernels/cuda/attention/attention.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/cuda/attention/decode.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

bool has_tensor_core_kernel(DType activations, int32_t head_dim) {
  const bool has_dim =
      head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
  return has_dim && activations != DType::kF32;
}
bool has_tensor_core_kernel(DType activations, const AttentionParams& p) {
  return has_tensor_core_kernel(activations, p.head_dim) && activations == p.layout.dtype;
}

void check_attention(const AttentionParams& p) {
  check_op(p);
  check_equal("attention, block_tokens a power of two",
              std::has_single_bit(static_cast<uint32_t>(p.layout.block_tokens)), true);
  check_at_least("attention, block_tokens", p.layout.block_tokens, 8);
  check_equal("attention arena, alignment to 16", reinterpret_cast<uintptr_t>(p.arena) % 16, 0);
  check_equal("attention q, alignment to 16", reinterpret_cast<uintptr_t>(p.q) % 16, 0);
}

int64_t aligned(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

constexpr int kMaxPrefixSplits = 8;
constexpr int kMinSplitSlots = 256;
constexpr int kPrefixTileRows = 128;

void check_prefixes(const AttentionContext& context, const AttentionParams& p) {
  check_equal("attention prefixes, window", p.window, 0);
  check_equal("attention prefixes, head_table_stride", p.head_table_stride, 0);
  check_at_least("attention prefixes, num_splits", p.prefixes.num_splits, 1);
  check_at_least("attention scratch, prefixes", context.scratch.prefix_floats,
                 int64_t{p.prefixes.num_members} * p.prefixes.num_splits * p.num_q_heads *
                     prefix_row_floats(p.head_dim));
}

void run_decode(const AttentionContext& context, const AttentionParams& p) {
  if (p.prefixes.num_nodes == 0) return launch_decode_attention(context, p, {});
  check_prefixes(context, p);
  launch_prefix_attention(context, p);
  const PrefixPartials partials{.rows = context.scratch.prefix_partials,
                                .member_start = p.prefixes.sequence_member_start,
                                .members_of_sequence = p.prefixes.sequence_members,
                                .splits = p.prefixes.num_splits};
  launch_decode_attention(context, p, partials);
}

// Of decode, by this tuning or that of tails.
int most_blocks(const AttentionMachine& machine, const DecodeTuning& tuning) {
  return machine.multiprocessors *
         std::max(tuning.blocks_per_multiprocessor, kTailTuning.blocks_per_multiprocessor);
}

// One sequence of many rows has no list for decode.
bool has_decode(DType activations, const AttentionParams& p) {
  return has_tensor_core_kernel(activations, p) && (p.max_rows == 1 || p.num_sequences > 1);
}

}  // namespace

int64_t AttentionScratchNeed::bytes() const {
  return aligned(partial_floats * 4) + aligned(num_counters * 4) + aligned(prefix_floats * 4) +
         aligned(lse_floats * 4) + aligned(plan_bytes);
}

AttentionScratch AttentionScratchNeed::place(void* memory) const {
  char* next = static_cast<char*>(memory);
  const auto take = [&](int64_t floats) { return std::exchange(next, next + aligned(floats * 4)); };
  AttentionScratch s;
  s.partials = reinterpret_cast<float*>(take(partial_floats));
  s.partial_floats = partial_floats;
  s.counters = reinterpret_cast<int32_t*>(take(num_counters));
  s.num_counters = num_counters;
  s.prefix_partials = reinterpret_cast<float*>(take(prefix_floats));
  s.prefix_floats = prefix_floats;
  s.lse = reinterpret_cast<float*>(take(lse_floats));
  s.lse_floats = lse_floats;
  s.plan = next;
  return s;
}

AttentionScratchNeed attention_scratch_need(const AttentionMachine& machine, const DecodeTuning& tuning,
                                            int64_t max_rows, int64_t max_sequences, int32_t max_q_heads,
                                            int32_t max_head_dim) {
  return {.partial_floats = decode_partial_floats(most_blocks(machine, tuning), max_head_dim),
          .num_counters = max_sequences * max_q_heads,
          // Two nodes a sequence in four splits, or one in eight.
          .prefix_floats = kMaxPrefixSplits * max_sequences * max_q_heads * prefix_row_floats(max_head_dim),
          .lse_floats = max_rows * max_q_heads,
          .plan_bytes = attention_plan_bytes(machine, tuning, max_sequences, max_q_heads)};
}

// A list has at least one query head of its own.
int64_t attention_plan_bytes(const AttentionMachine& machine, const DecodeTuning& tuning,
                             int64_t max_sequences, int32_t max_q_heads) {
  return decode_plan_bytes(most_blocks(machine, tuning), max_sequences * max_q_heads);
}

void plan_attention(const AttentionContext& context, DType activations, const AttentionParams& p) {
  check_given("plan of attention", p.plan);
  if (p.num_sequences > 0 && has_decode(activations, p)) plan_decode_attention(context, p);
}

namespace {

// Of the first phase in so many parts, with what the second takes to fold them, in us on an H100: rounds of the card over all items
// (tiles of rows by parts, 128 slots after 128), and each part's row of every member, written once and read once.
double prefix_us(const AttentionContext& context, int64_t tiles, int64_t rows, int64_t slots, int splits) {
  constexpr double kItemUs = 3, kSlotsUs = 2.0, kRowUs = 0.00065;
  constexpr int kSlotsAtOnce = 128;
  const int64_t rounds = ceil_div(tiles * splits, int64_t{context.machine.multiprocessors});
  const int64_t steps = ceil_div(slots, int64_t{splits} * kSlotsAtOnce);
  return static_cast<double>(rounds) * (kItemUs + kSlotsUs * static_cast<double>(steps)) +
         kRowUs * static_cast<double>(rows * splits);
}

}  // namespace

// The number of parts that takes least time, none shorter than kMinSplitSlots; as many as the
// scratch holds, a power of two so that few graphs serve all batches.
int32_t prefix_splits(const AttentionContext& context, DType activations, const PrefixCounts& shared,
                      int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim) {
  if (shared.num_nodes == 0 || !has_tensor_core_kernel(activations, head_dim)) return 0;
  const int64_t by_length = std::max(1, shared.max_slots / kMinSplitSlots);
  const int64_t by_scratch = context.scratch.prefix_floats /
                             (int64_t{shared.member_room} * num_q_heads * prefix_row_floats(head_dim));
  check_at_least("attention scratch, prefixes in one part", by_scratch, 1);
  const int64_t most = std::min({by_length, by_scratch, int64_t{kMaxPrefixSplits}});
  const int64_t rows = int64_t{shared.num_members} * num_q_heads;
  const int64_t tiles =
      (ceil_div(rows / num_kv_heads, int64_t{kPrefixTileRows}) + shared.num_nodes - 1) * num_kv_heads;
  int best = 1;
  for (int splits = 2; splits <= most; splits *= 2)
    if (prefix_us(context, tiles, rows, shared.max_slots, splits) <
        prefix_us(context, tiles, rows, shared.max_slots, best))
      best = splits;
  return best;
}

void attention(const AttentionContext& context, DType activations, const AttentionParams& params) {
  if (params.rows == 0 || params.num_sequences == 0) return;
  check_attention(params);
  AttentionParams p = params;
  if (p.column_sums != nullptr && p.lse == nullptr) {
    check_at_least("attention scratch, lse", context.scratch.lse_floats, p.rows * p.num_q_heads);
    p.lse = context.scratch.lse;
  }
  if (!has_tensor_core_kernel(activations, p)) {
    launch_plain_attention(context, activations, p);
  } else {
    if (has_decode(activations, p)) run_decode(context, p);
    if (p.max_rows > 1) {
      launch_prefill_attention(context, p);
      if (p.row_logits != nullptr) launch_last_row_logits(context, p);
    }
  }
  if (p.column_sums != nullptr) launch_column_sums(context, activations, p);
  if (p.partials != nullptr) launch_attention_partials(context, activations, p);
}

}  // namespace quire::QUIRE_SIDE
