#include "kernels/cuda/attention/attention.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

bool has_tensor_core_kernel(DType activations, const AttentionParams& p) {
  const bool head_dim =
      p.head_dim == 64 || p.head_dim == 80 || p.head_dim == 96 || p.head_dim == 128 || p.head_dim == 256;
  return head_dim && activations != DType::kF32 && activations == p.layout.dtype;
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

void check_prefixes(const AttentionParams& p) {
  check_equal("attention prefixes, window", p.window, 0);
  check_equal("attention prefixes, windows given", p.windows != nullptr, false);
  check_equal("attention prefixes, q_sink given", p.q_sink != nullptr, false);
  check_equal("attention prefixes, row_logits given", p.row_logits != nullptr, false);
  check_equal("attention prefixes, column_sums given", p.column_sums != nullptr, false);
  check_equal("attention prefixes, head_table_stride", p.head_table_stride, 0);
}

// How many parts each shared prefix is cut in, so that its tiles fill the card twice; as many as the scratch
// holds. 0: the scratch holds not even one, and every list is read by itself.
int prefix_splits(const AttentionContext& context, const AttentionParams& p) {
  const SharedPrefixes& shared = p.prefixes;
  if (shared.num_nodes == 0) return 0;
  const int64_t tiles =
      (int64_t{shared.num_members} * p.num_q_heads / p.num_kv_heads / kPrefixTileRows + shared.num_nodes) *
      p.num_kv_heads;
  const int64_t wanted = (2 * context.machine.multiprocessors + tiles - 1) / tiles;
  const int64_t by_length = std::max(1, shared.max_slots / kMinSplitSlots);
  const int64_t row_floats = int64_t{shared.num_members} * p.num_q_heads * (p.head_dim + 4);
  return static_cast<int>(
      std::min({wanted, by_length, int64_t{kMaxPrefixSplits}, context.scratch.prefix_floats / row_floats}));
}

void run_decode(const AttentionContext& context, const AttentionParams& p) {
  const int splits = prefix_splits(context, p);
  if (splits == 0) return launch_decode_attention(context, p, {}, nullptr);
  check_prefixes(p);
  launch_prefix_attention(context, p, splits);
  const PrefixPartials partials{.rows = context.scratch.prefix_partials,
                                .member_start = p.prefixes.sequence_member_start,
                                .members_of_sequence = p.prefixes.sequence_members,
                                .splits = splits};
  launch_decode_attention(context, p, partials, p.prefixes.private_start);
}

}  // namespace

int64_t AttentionScratchNeed::bytes() const {
  return aligned(partial_floats * 4) + aligned(num_counters * 4) + aligned(prefix_floats * 4) +
         aligned(lse_floats * 4);
}

AttentionScratch AttentionScratchNeed::place(void* memory) const {
  char* next = static_cast<char*>(memory);
  const auto take = [&](int64_t count) { return std::exchange(next, next + aligned(count * 4)); };
  AttentionScratch s;
  s.partials = reinterpret_cast<float*>(take(partial_floats));
  s.partial_floats = partial_floats;
  s.counters = reinterpret_cast<int32_t*>(take(num_counters));
  s.num_counters = num_counters;
  s.prefix_partials = reinterpret_cast<float*>(take(prefix_floats));
  s.prefix_floats = prefix_floats;
  s.lse = reinterpret_cast<float*>(take(lse_floats));
  s.lse_floats = lse_floats;
  return s;
}

AttentionScratchNeed attention_scratch_need(const AttentionMachine& machine, const DecodeTuning& tuning,
                                            int64_t max_rows, int64_t max_sequences, int32_t max_q_heads,
                                            int32_t max_head_dim) {
  return {.partial_floats =
              decode_partial_floats(machine.multiprocessors * tuning.blocks_per_multiprocessor, max_head_dim),
          .num_counters = max_sequences * max_q_heads,  // a unit has at least one query head
          // Two nodes a sequence in two splits, or one in four.
          .prefix_floats = 4 * max_sequences * max_q_heads * (max_head_dim + 4),
          .lse_floats = max_rows * max_q_heads};
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
    const bool one_sequence_of_many = p.max_rows > 1 && p.num_sequences == 1;
    if (!one_sequence_of_many) run_decode(context, p);
    if (p.max_rows > 1) {
      launch_prefill_attention(context, p);
      if (p.row_logits != nullptr) launch_last_row_logits(context, p);
    }
  }
  if (p.column_sums != nullptr) launch_column_sums(context, activations, p);
}

}  // namespace quire::QUIRE_SIDE
