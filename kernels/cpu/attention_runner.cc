#include "kernels/cpu/attention_runner.h"

#include <algorithm>

#include "kernels/op_checks.h"

namespace quire::cpu {
namespace {

// A call with fewer (block, kv head) pieces than this per thread is also cut along the lists.
constexpr int64_t kPiecesPerThread = 4;
// Partials beyond this are not worth their writes: such a call has pieces enough to keep the threads busy.
constexpr int64_t kMaxPartialBytes = 64 << 20;

int64_t group_of(const AttentionParams& p) {
  return p.num_q_heads / p.num_kv_heads;
}

}  // namespace

Status AttentionRunner::reserve(Device& device, int64_t max_rows, int64_t max_sequences, int32_t max_q_heads,
                                int32_t max_head_dim, int32_t max_length) {
  const int64_t splits = max_length / kSplitSlots + 1;
  // Any group size up to all heads over one kv head may come.
  thread_floats_ = std::max(attention_scratch_floats(1, max_head_dim),
                            attention_scratch_floats(max_q_heads, max_head_dim));
  const int64_t queries = std::max<int64_t>(kBlockQueries, max_q_heads);
  const int64_t most_partials =
      pool_.threads() * kPiecesPerThread * queries * splits * partial_floats(max_head_dim);
  partial_floats_ = std::min<int64_t>(most_partials, kMaxPartialBytes / static_cast<int64_t>(sizeof(float)));
  const auto allocate = [&](DeviceBuffer& buffer, int64_t floats, const char* what) -> Status {
    Result<DeviceBuffer> made = device.allocate(floats * static_cast<int64_t>(sizeof(float)), what);
    if (!made) return made.error();
    buffer = std::move(*made);
    return ok();
  };
  if (Status s = allocate(scratch_, thread_floats_ * pool_.threads(), "attention scratch"); !s) return s;
  if (Status s = allocate(partials_, partial_floats_, "attention partials"); !s) return s;
  if (Status s = allocate(log_totals_, max_rows * max_q_heads, "attention log totals"); !s) return s;
  blocks_.reserve(static_cast<size_t>(max_rows));  // a block has at least one row
  max_rows_ = max_rows, max_sequences_ = max_sequences, max_q_heads_ = max_q_heads, max_length_ = max_length;
  return ok();
}

void AttentionRunner::run(const AttentionParams& p) {
  check_at_least("attention rows reserved", max_rows_, p.rows);
  check_at_least("attention q heads reserved", max_q_heads_, p.num_q_heads);
  check_at_least("attention scratch reserved, floats", thread_floats_,
                 attention_scratch_floats(group_of(p), p.head_dim));
  cut_rows(p);
  const int64_t pieces = static_cast<int64_t>(blocks_.size()) * p.num_kv_heads;
  const int64_t units =
      pieces < kPiecesPerThread * pool_.threads() && pool_.threads() > 1 ? lay_out_partials(p) : 0;
  if (units > pieces) {
    run_by_splits(p, units);
  } else {
    run_whole(p);
  }
  if (p.column_sums != nullptr) run_column_sums(p);
}

void AttentionRunner::cut_rows(const AttentionParams& p) {
  blocks_.clear();
  const int32_t step = static_cast<int32_t>(block_queries(group_of(p)) / group_of(p));
  for (int32_t s = 0; s < p.num_sequences; ++s) {
    const int32_t rows = p.query_start[s + 1] - p.query_start[s];
    int32_t longest = 0, shortest = INT32_MAX;
    for (int64_t h = 0; h < (p.head_length_stride == 0 ? 1 : p.num_kv_heads); ++h) {
      const int32_t length = p.lengths[s * p.length_stride + h * p.head_length_stride];
      longest = std::max(longest, length);
      shortest = std::min(shortest, length);
    }
    for (int32_t first = 0; first < rows; first += step) {
      const int32_t last = std::min(rows, first + step);
      const int64_t window = window_of(p, s);
      const bool from_start = window == 0 || has_sinks(p, s);
      const int64_t begin = from_start ? 0 : std::max<int64_t>(0, shortest - rows + first - window + 1);
      const int64_t end = std::max(0, longest - rows + last);
      blocks_.push_back({.sequence = s,
                         .first_row = first,
                         .last_row = last,
                         .first_split = static_cast<int32_t>(begin / kSplitSlots),
                         .last_split = static_cast<int32_t>((end + kSplitSlots - 1) / kSplitSlots),
                         .first_unit = 0,
                         .first_partial = 0});
    }
  }
}

// Numbers the (block, kv head, split) units; 0 if their partials do not fit.
int64_t AttentionRunner::lay_out_partials(const AttentionParams& p) {
  int64_t units = 0, floats = 0;
  for (RowBlock& block : blocks_) {
    block.first_unit = units;
    block.first_partial = floats;
    const int64_t splits = block.last_split - block.first_split;
    units += splits * p.num_kv_heads;
    floats += splits * p.num_q_heads * (block.last_row - block.first_row) * partial_floats(p.head_dim);
  }
  return floats <= partial_floats_ ? units : 0;
}

float* AttentionRunner::partials_of(const AttentionParams& p, const RowBlock& block, int64_t kv_head) const {
  const int64_t queries = group_of(p) * (block.last_row - block.first_row);
  const int64_t splits = block.last_split - block.first_split;
  return partials_.as<float>() + block.first_partial +
         kv_head * splits * queries * partial_floats(p.head_dim);
}

AttentionPiece AttentionRunner::piece_of(const AttentionParams& p, const RowBlock& block, int64_t kv_head,
                                         int thread) const {
  return {.p = &p,
          .activations = activations_,
          .sequence = block.sequence,
          .kv_head = kv_head,
          .first_row = block.first_row,
          .last_row = block.last_row,
          .first_split = block.first_split,
          .last_split = block.last_split,
          .scratch = scratch_.as<float>() + thread * thread_floats_,
          .log_totals = p.column_sums == nullptr ? nullptr : log_totals_.as<float>()};
}

void AttentionRunner::run_whole(const AttentionParams& p) {
  pool_.run(static_cast<int64_t>(blocks_.size()) * p.num_kv_heads, [&](int64_t unit, int thread) {
    const RowBlock& block = blocks_[static_cast<size_t>(unit / p.num_kv_heads)];
    ops_.attend(piece_of(p, block, unit % p.num_kv_heads, thread));
  });
}

void AttentionRunner::run_by_splits(const AttentionParams& p, int64_t units) {
  pool_.run(units, [&](int64_t unit, int thread) {
    const auto after =
        std::upper_bound(blocks_.begin(), blocks_.end(), unit,
                         [](int64_t u, const RowBlock& block) { return u < block.first_unit; });
    const RowBlock& block = *(after - 1);
    const int64_t splits = block.last_split - block.first_split, local = unit - block.first_unit;
    AttentionPiece piece = piece_of(p, block, local / splits, thread);
    piece.partials = partials_of(p, block, piece.kv_head);
    piece.partials_split = block.first_split;
    piece.first_split = block.first_split + local % splits;
    piece.last_split = piece.first_split + 1;
    ops_.attend(piece);
  });
  pool_.run(static_cast<int64_t>(blocks_.size()) * p.num_kv_heads, [&](int64_t unit, int thread) {
    const RowBlock& block = blocks_[static_cast<size_t>(unit / p.num_kv_heads)];
    AttentionPiece piece = piece_of(p, block, unit % p.num_kv_heads, thread);
    piece.partials = partials_of(p, block, piece.kv_head);
    piece.partials_split = block.first_split;
    ops_.merge_partials(piece);
  });
}

// A second reading of K once every row's total is known: one unit a (sequence, kv head, split), all its rows
// in order.
void AttentionRunner::run_column_sums(const AttentionParams& p) {
  const int64_t splits = p.max_length / kSplitSlots + 1;
  pool_.run(p.num_sequences * p.num_kv_heads * splits, [&](int64_t unit, int thread) {
    const int32_t sequence = static_cast<int32_t>(unit / (p.num_kv_heads * splits));
    const int32_t rows = p.query_start[sequence + 1] - p.query_start[sequence];
    const RowBlock all{.sequence = sequence,
                       .first_row = 0,
                       .last_row = rows,
                       .first_split = static_cast<int32_t>(unit % splits),
                       .last_split = static_cast<int32_t>(unit % splits) + 1,
                       .first_unit = 0,
                       .first_partial = 0};
    ops_.add_column_sums(piece_of(p, all, unit / splits % p.num_kv_heads, thread));
  });
}

}  // namespace quire::cpu
