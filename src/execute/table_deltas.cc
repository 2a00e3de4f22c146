#include "src/execute/table_deltas.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/base/blocks_for.h"

namespace quire {
namespace {

constexpr size_t kNear = 4;  // rows looked at before all are sorted

}  // namespace

Status TableDeltas::build(const BatchPlan& plan) {
  rows_.clear();
  entries_.clear();
  next_.clear();
  by_sequence_.clear();
  near_ = 0;
  for (const PlannedSequence& s : plan.sequences)
    if (Status added = add_row(s); !added) {
      forget();
      return added;
    }
  std::swap(known_, next_);
  return ok();
}

// Where the sequence stood in the step before, or -1. Those that stay keep their order as a rule, with gaps where one has gone.
int32_t TableDeltas::row_of(uint64_t sequence) {
  for (size_t row = near_; row < std::min(near_ + kNear, known_.size()); ++row)
    if (known_[row].sequence == sequence) {
      near_ = row + 1;
      return static_cast<int32_t>(row);
    }
  if (by_sequence_.empty()) {
    for (size_t row = 0; row < known_.size(); ++row)
      by_sequence_.emplace_back(known_[row].sequence, static_cast<int32_t>(row));
    std::sort(by_sequence_.begin(), by_sequence_.end());
  }
  const auto found =
      std::lower_bound(by_sequence_.begin(), by_sequence_.end(), std::pair<uint64_t, int32_t>{sequence, 0});
  if (found == by_sequence_.end() || found->first != sequence) return -1;
  near_ = static_cast<size_t>(found->second) + 1;
  return found->second;
}

Status TableDeltas::add_row(const PlannedSequence& s) {
  const auto count = static_cast<int32_t>(blocks_for(s.list_length_after(), block_tokens_));
  const int32_t from = row_of(value(s.sequence));
  TableRow row;
  if (from >= 0) {
    row.from = from;
    row.kept = std::min({s.num_unchanged_blocks, known_[static_cast<size_t>(from)].count, count});
  }
  row.added = count - row.kept;
  next_.push_back({.sequence = value(s.sequence), .count = count});
  if (Status added = add_entries(s, row); !added) return added;
  rows_.push_back(row);
  return ok();
}

Status TableDeltas::add_entries(const PlannedSequence& s, TableRow& row) {
  row.entries = static_cast<int32_t>(entries_.size());
  for (int32_t i = row.kept; i < row.kept + row.added; ++i) {
    const int32_t block = value(s.block_table[static_cast<size_t>(i)]);
    if (block < 0 || block >= num_blocks_)
      return error(Code::kInternal, fmt::format("plan, sequence {}: block {}; the cache has {}",
                                                value(s.sequence), block, num_blocks_));
    if (row.added == 1)
      row.entries = block;
    else
      entries_.push_back(block);
  }
  return ok();
}

}  // namespace quire
