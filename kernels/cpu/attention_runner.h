// How an attention op is cut among threads. Only speed depends on it (see tile_attention.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace quire::cpu {

class AttentionRunner {
 public:
  AttentionRunner(const OpTable& ops, ThreadPool& pool, DType activations)
      : ops_(ops), pool_(pool), activations_(activations) {}

  // Once, before the first run: scratch_bytes(limits). RESOURCE_EXHAUSTED where the device has no memory for them.
  Status reserve(Device& device, const ScratchLimits& limits);
  int64_t scratch_bytes(const ScratchLimits& limits) const;
  // Within the limits that were reserved for; checks nothing that Kernels::attention has checked.
  void run(const AttentionParams& p);

 private:
  // Rows of a sequence that share their readings of K and V.
  struct RowBlock {
    int32_t sequence, first_row, last_row;
    int32_t first_split, last_split;  // that any of its heads' lists has for these rows
    int32_t heads;                    // kv heads that a piece takes together
    int64_t first_unit;               // of (kv heads, splits), where a block is cut by splits
    int64_t first_partial;            // float offset

    int64_t splits() const { return last_split - first_split; }
  };

  void cut_rows(const AttentionParams& p);
  int32_t heads_together(const AttentionParams& p, int64_t rows) const;
  bool pieces_are_enough(const AttentionParams& p) const;
  bool lay_out_partials(const AttentionParams& p);
  int64_t number_units(const AttentionParams& p, int64_t unit_splits);
  AttentionPiece piece_of(const AttentionParams& p, const RowBlock& block, int64_t kv_head, int64_t heads,
                          int thread) const;
  void run_whole(const AttentionParams& p);
  void run_by_splits(const AttentionParams& p);
  void merge_splits(const AttentionParams& p);
  const RowBlock& block_of(int64_t unit) const;
  void run_column_sums(const AttentionParams& p);

  const OpTable& ops_;
  ThreadPool& pool_;
  DType activations_;
  // Of a thread, of all calls' partials, and of the totals of column sums.
  struct Floats {
    int64_t thread = 0, partials = 0, log_totals = 0;
  };
  Floats floats_of(const ScratchLimits& limits) const;

  int64_t max_rows_ = 0, max_q_heads_ = 0, thread_floats_ = 0, partial_floats_ = 0;
  DeviceBuffer scratch_, partials_, log_totals_;
  std::vector<RowBlock> blocks_;
};

}  // namespace quire::cpu
