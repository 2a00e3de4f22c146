// What a step must bring of its block tables where those of the step before lie on the device already: the entries that are new or other,
// and from which row the rest is taken. Rows stand in the plan's order, so a sequence may change its row from step to step.
//
// The basis is PlannedSequence::num_unchanged_blocks, and what is known of the step before: a sequence that was not in it, or whose
// table was changed (copy-on-write, a cut, a swap, blocks computed again), brings its entries whole. Executor thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "quire/result.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class TableDeltas {
 public:
  TableDeltas(int32_t block_tokens, int32_t num_blocks)
      : block_tokens_(block_tokens), num_blocks_(num_blocks) {}

  // Takes in every plan, in order. kInternal: an entry that would be brought is no block of the cache; all is forgotten then.
  Status build(const BatchPlan& plan);
  // The tables on the device are not those of the plan built last.
  void forget() { known_.clear(); }

  // Of the plan built last.
  std::span<const TableRow> rows() const { return rows_; }
  std::span<const int32_t> entries() const { return entries_; }

 private:
  struct Known {  // a row on the device
    uint64_t sequence = 0;
    int32_t count = 0;  // entries
  };
  int32_t row_of(uint64_t sequence);
  Status add_row(const PlannedSequence& s);
  Status add_entries(const PlannedSequence& s, TableRow& row);

  int32_t block_tokens_, num_blocks_;
  std::vector<Known> known_, next_;                        // of the step before; of the one in hand
  std::vector<std::pair<uint64_t, int32_t>> by_sequence_;  // known_, sorted, where looked for in vain nearby
  size_t near_ = 0;                                        // row behind the one found last
  std::vector<TableRow> rows_;
  std::vector<int32_t> entries_;
};

}  // namespace quire
