// BatchPlan -> the arrays of one step on the host, checked against every limit, so that a plan that breaks
// one fails its step and no kernel ever reads or writes out of bounds. Executor thread; sized once for
// the rows and sequences of a step, so building one allocates only where its block tables are larger than any
// before, and where slots are spread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "quire/result.h"
#include "src/model/step_arrays.h"
#include "src/schedule/batch_plan.h"

namespace quire {

struct StepLimits {
  int64_t max_rows = 0;
  int32_t max_sequences = 0;
  int32_t max_context_tokens = 0;
  int32_t block_tokens = 0;
  int32_t num_blocks = 0;
  int32_t vocab_size = 0;
};

// Logits rows that one sequence of the plan asked for: its last row for samples, all its rows for prompt
// logprobs.
struct WantedLogits {
  const PlannedSequence* sequence = nullptr;
  int64_t first = 0;  // among the step's logits rows
  int64_t count = 0;
};

// A row whose id is what was sampled for `sequence` one step before.
struct SampledRow {
  int64_t row = 0;
  SequenceId sequence{};
};

// Whether a step's block tables are copied into its arrays, or the executor keeps them on its device (table_deltas.h).
enum class StepTables : uint8_t { kCopied, kKeptElsewhere };

class HostStep {
 public:
  explicit HostStep(const StepLimits& limits, StepTables tables = StepTables::kCopied);

  // Arrays and counts of `plan`, which must outlive their use. Ids of sampled_rows() are 0 until set_id(). Where tables are kept
  // elsewhere there is no block_table, and of a table only those entries are checked that the step's rows are written to.
  Status build(const BatchPlan& plan);
  void set_id(int64_t row, TokenId id) { ids_[static_cast<size_t>(row)] = id; }
  // Gives every layer and head a slot of its own for each row, at first the list's next one; for lists whose layers and heads lie
  // in different order.
  void spread_slots(int32_t num_layers, int32_t num_kv_heads);
  // Where the one row of a sequence goes in one layer and head.
  void set_slot(const PlannedSequence& s, int64_t row, int32_t layer, int32_t head, int32_t list_slot);

  // Pointers into this object: device pointers where the device is the CPU, sources of copies elsewhere.
  StepArrays arrays() const;
  std::span<const WantedLogits> wanted_logits() const { return wanted_; }
  std::span<const SampledRow> sampled_rows() const { return sampled_rows_; }
  int64_t num_samples() const { return num_samples_; }

 private:
  Status check_sequence(const PlannedSequence& s) const;
  Status check_blocks(const PlannedSequence& s, int64_t length) const;
  Status check_cut(const PlannedSequence& s) const;
  Status check_ids(const PlannedSequence& s) const;
  void add_rows(const PlannedSequence& s);
  void add_list(const PlannedSequence& s, int64_t length);
  void copy_table(const PlannedSequence& s, int64_t length);
  void add_logits(const PlannedSequence& s, int64_t first_row);
  void add_window(const PlannedSequence& s);
  int64_t slot_in(const PlannedSequence& s, int64_t list_slot) const;
  void clear(const BatchPlan& plan);

  StepLimits limits_;
  StepTables tables_;
  std::vector<int32_t> ids_, positions_, query_start_, lengths_, block_table_, logits_rows_;
  std::vector<int32_t> windows_, sink_slots_, sink_positions_;
  std::vector<int64_t> slots_;
  std::vector<WantedLogits> wanted_;
  std::vector<SampledRow> sampled_rows_;
  int64_t table_stride_ = 0, num_samples_ = 0, slot_stride_ = 1, slot_layer_stride_ = 0;
  int32_t max_rows_ = 0, max_length_ = 0;
  bool has_windows_ = false, has_sinks_ = false, overwrites_ = false;
};

// Block copies in calls of which none reads what it writes (the contract of Kernels::copy_blocks): a copy
// that depends on an earlier one begins the next call. Blocks outside [0, num_blocks) are an Error.
class CopyGroups {
 public:
  explicit CopyGroups(int32_t num_blocks);
  Status build(std::span<const BlockCopy> copies);
  // [count][2] source, target; group i is pairs [ends[i - 1], ends[i]).
  std::span<const int32_t> pairs() const { return pairs_; }
  std::span<const int64_t> ends() const { return ends_; }
  // A call for each group. placed: pairs() where the device reads them.
  void run(Kernels& kernels, char* arena, int64_t block_bytes, const int32_t* placed) const;

 private:
  void begin_group();

  std::vector<uint32_t> read_in_, written_in_;  // by block: the group that last read / wrote it
  uint32_t group_ = 0;
  std::vector<int32_t> pairs_;
  std::vector<int64_t> ends_;
};

}  // namespace quire
