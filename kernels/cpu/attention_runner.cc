#include "kernels/cpu/attention_runner.h"

#include <algorithm>

#include "kernels/op_checks.h"

namespace quire::cpu {
namespace {

// A call with fewer pieces than this per thread, or with one that is longer than a thread's share by as much,
// is also cut along the lists.
constexpr int64_t kPiecesPerThread = 4;
// K and V of a tile for all heads of a piece. A few queries read them strip by strip (V::kReadsStrips, blocks of whole strips), the
// longer the pieces of memory the better; others read a tile head by head, whose lines a second-level cache of 1 MiB should still hold when the last head comes.
constexpr int64_t kMaxTileBytes = 1 << 20;
// Partials beyond this are not worth their writes: such a call has pieces enough to keep the threads busy.
constexpr int64_t kMaxPartialBytes = 64 << 20;

int64_t group_of(const AttentionParams& p) {
  return p.num_q_heads / p.num_kv_heads;
}

// At least one: a row that sees nothing is written too.
int64_t parts_of(int64_t count, int64_t part) {
  return std::max<int64_t>(1, (count + part - 1) / part);
}

}  // namespace

AttentionRunner::Floats AttentionRunner::floats_of(const ScratchLimits& l) const {
  const int64_t splits = l.max_length / kSplitSlots + 1;
  const int64_t queries = std::max<int64_t>(kBlockQueries, l.max_q_heads);
  const int64_t most_partials =
      pool_.threads() * kPiecesPerThread * queries * splits * partial_floats(l.max_head_dim);
  // Any group size up to all heads over one kv head may come.
  return {.thread = std::max(attention_scratch_floats(1, l.max_head_dim),
                             attention_scratch_floats(l.max_q_heads, l.max_head_dim)),
          .partials = std::min(most_partials, kMaxPartialBytes / static_cast<int64_t>(sizeof(float))),
          .log_totals = l.max_rows * l.max_q_heads};
}

int64_t AttentionRunner::scratch_bytes(const ScratchLimits& limits) const {
  const Floats floats = floats_of(limits);
  return (floats.thread * pool_.threads() + floats.partials + floats.log_totals) *
         static_cast<int64_t>(sizeof(float));
}

Status AttentionRunner::reserve(Device& device, const ScratchLimits& limits) {
  const Floats floats = floats_of(limits);
  const auto allocate = [&](DeviceBuffer& buffer, int64_t count, const char* what) -> Status {
    Result<DeviceBuffer> made = device.allocate(count * static_cast<int64_t>(sizeof(float)), what);
    if (!made) return made.error();
    buffer = std::move(*made);
    return ok();
  };
  if (Status s = allocate(scratch_, floats.thread * pool_.threads(), "attention scratch"); !s) return s;
  if (Status s = allocate(partials_, floats.partials, "attention partials"); !s) return s;
  if (Status s = allocate(log_totals_, floats.log_totals, "attention log totals"); !s) return s;
  blocks_.reserve(static_cast<size_t>(limits.max_rows));  // a block has at least one row
  thread_floats_ = floats.thread, partial_floats_ = floats.partials;
  max_rows_ = limits.max_rows, max_q_heads_ = limits.max_q_heads;
  return ok();
}

void AttentionRunner::run(const AttentionParams& p) {
  check_at_least("attention rows reserved", max_rows_, p.rows);
  check_at_least("attention q heads reserved", max_q_heads_, p.num_q_heads);
  check_at_least("attention scratch reserved, floats", thread_floats_,
                 attention_scratch_floats(group_of(p), p.head_dim));
  cut_rows(p);
  if (pool_.threads() > 1 && !pieces_are_enough(p) && lay_out_partials(p)) {
    run_by_splits(p);
    merge_splits(p);
  } else {
    run_whole(p);
  }
  if (p.column_sums != nullptr) run_column_sums(p);
}

// Heads that share a list are read together as long as their queries fit into the scratch and a few queries
// leave the memory as the bound.
int32_t AttentionRunner::heads_together(const AttentionParams& p, int64_t rows) const {
  if (p.head_table_stride != 0 || p.head_length_stride != 0) return 1;
  const int64_t by_queries =
      kFewQueries / (rows * group_of(p)) > 0 ? block_queries(group_of(p)) / (rows * group_of(p)) : 1;
  const int64_t by_bytes = kMaxTileBytes / (2 * kTileSlots * p.layout.token_bytes());
  return static_cast<int32_t>(std::clamp<int64_t>(std::min(by_queries, by_bytes), 1, p.num_kv_heads));
}

bool AttentionRunner::pieces_are_enough(const AttentionParams& p) const {
  int64_t pieces = 0, longest = 0, all = 0;
  for (const RowBlock& block : blocks_) {
    const int64_t parts = parts_of(p.num_kv_heads, block.heads);
    pieces += parts;
    longest = std::max(longest, block.splits() * block.heads);
    all += block.splits() * p.num_kv_heads;
  }
  return pieces >= kPiecesPerThread * pool_.threads() && longest * pool_.threads() * 2 <= all;
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
                         .heads = heads_together(p, last - first),
                         .first_unit = 0,
                         .first_partial = 0});
    }
  }
}

// False if they do not fit.
bool AttentionRunner::lay_out_partials(const AttentionParams& p) {
  int64_t floats = 0;
  for (RowBlock& block : blocks_) {
    block.first_partial = floats;
    floats +=
        block.splits() * p.num_q_heads * (block.last_row - block.first_row) * partial_floats(p.head_dim);
  }
  return floats <= partial_floats_;
}

// Numbers the units of `unit_splits` splits each; their count.
int64_t AttentionRunner::number_units(const AttentionParams& p, int64_t unit_splits) {
  int64_t units = 0;
  for (RowBlock& block : blocks_) {
    block.first_unit = units;
    units += parts_of(p.num_kv_heads, block.heads) * parts_of(block.splits(), unit_splits);
  }
  return units;
}

AttentionPiece AttentionRunner::piece_of(const AttentionParams& p, const RowBlock& block, int64_t kv_head,
                                         int64_t heads, int thread) const {
  const int64_t head_floats = group_of(p) * (block.last_row - block.first_row) * partial_floats(p.head_dim);
  return {.p = &p,
          .activations = activations_,
          .sequence = block.sequence,
          .kv_head = kv_head,
          .num_kv_heads = heads,
          .first_row = block.first_row,
          .last_row = block.last_row,
          .first_split = block.first_split,
          .last_split = block.last_split,
          .scratch = scratch_.as<float>() + thread * thread_floats_,
          .partials = partials_.as<float>() + block.first_partial + kv_head * head_floats,
          .partials_split = block.first_split,
          .log_totals = p.column_sums == nullptr ? nullptr : log_totals_.as<float>()};
}

// `unit` as number_units() counted them.
const AttentionRunner::RowBlock& AttentionRunner::block_of(int64_t unit) const {
  const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), unit,
                                      [](int64_t u, const RowBlock& block) { return u < block.first_unit; });
  return *(after - 1);
}

void AttentionRunner::run_whole(const AttentionParams& p) {
  pool_.run(number_units(p, p.max_length / kSplitSlots + 1), [&](int64_t unit, int thread) {
    const RowBlock& block = block_of(unit);
    const int64_t kv_head = (unit - block.first_unit) * block.heads;
    AttentionPiece piece =
        piece_of(p, block, kv_head, std::min<int64_t>(block.heads, p.num_kv_heads - kv_head), thread);
    piece.partials = nullptr;
    ops_.attend(piece);
  });
}

// Units as long as leaves enough of them; heads apart where even single splits of all heads are too few.
void AttentionRunner::run_by_splits(const AttentionParams& p) {
  const int64_t wanted = kPiecesPerThread * pool_.threads();
  int64_t units = number_units(p, 1);
  for (int32_t most = p.num_kv_heads / 2; units < wanted && most > 0; most /= 2) {
    for (RowBlock& block : blocks_) block.heads = std::min(block.heads, most);
    units = number_units(p, 1);
  }
  const int64_t unit_splits = std::max<int64_t>(1, units / wanted);
  pool_.run(number_units(p, unit_splits), [&](int64_t unit, int thread) {
    const RowBlock& block = block_of(unit);
    const int64_t parts = parts_of(block.splits(), unit_splits), local = unit - block.first_unit;
    const int64_t kv_head = local / parts * block.heads;
    AttentionPiece piece =
        piece_of(p, block, kv_head, std::min<int64_t>(block.heads, p.num_kv_heads - kv_head), thread);
    piece.first_split = block.first_split + local % parts * unit_splits;
    piece.last_split = std::min<int64_t>(block.last_split, piece.first_split + unit_splits);
    ops_.attend(piece);
  });
}

void AttentionRunner::merge_splits(const AttentionParams& p) {
  pool_.run(static_cast<int64_t>(blocks_.size()) * p.num_kv_heads, [&](int64_t unit, int thread) {
    const RowBlock& block = blocks_[static_cast<size_t>(unit / p.num_kv_heads)];
    ops_.merge_partials(piece_of(p, block, unit % p.num_kv_heads, 1, thread));
  });
}

// A second reading of K once every row's total is known: one unit a (sequence, kv head, split), all its rows
// in order.
void AttentionRunner::run_column_sums(const AttentionParams& p) {
  const int64_t splits = p.max_length / kSplitSlots + 1;
  pool_.run(int64_t{p.num_sequences} * p.num_kv_heads * splits, [&](int64_t unit, int thread) {
    const int32_t sequence = static_cast<int32_t>(unit / (p.num_kv_heads * splits));
    const int32_t rows = p.query_start[sequence + 1] - p.query_start[sequence];
    const RowBlock all{.sequence = sequence,
                       .first_row = 0,
                       .last_row = rows,
                       .first_split = static_cast<int32_t>(unit % splits),
                       .last_split = static_cast<int32_t>(unit % splits) + 1,
                       .heads = 1,
                       .first_unit = 0,
                       .first_partial = 0};
    ops_.add_column_sums(piece_of(p, all, unit / splits % p.num_kv_heads, 1, thread));
  });
}

}  // namespace quire::cpu
