// Carries out the policies that choose victims by attention scores (TOVA, H2O) where the executor's memory is a card's: the
// decisions of retention_runner.h, made by the device (kernels/retention.h). The host keeps where a sequence's state lies, and says
// per step which sequences are in which phase; it reads nothing back but dumps, so no step waits for it.
//
// A step: begin() says what the step needs; its arrays go to the device with the others; before_forward() makes
// the cuts planned after a prompt and finds each row's slots; after_layer() takes in a layer's side outputs;
// end() hands states on to forked samples, fork() on to beams. Steps without such a sequence pay nothing; steps of rows behind
// prompts alone are captured like any other decode step. All of it lies in memory that is allocated at the start: side outputs for as many
// slots as the cache has, which no plan's lists exceed together, and the region in which the scheduler gives each request its part
// (policy_memory.h). Only dumps, which are for debugging, may ask for more; where there is none their sequence fails alone. Executor
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/retention.h"
#include "src/device/stream_device.h"
#include "src/execute/step_result.h"
#include "src/model/step_arrays.h"
#include "src/policy/policy_spec.h"
#include "src/schedule/batch_plan.h"

namespace quire {

// What is sized at the start; all 0 where no policy that goes by scores may be asked for.
struct RetentionRoom {
  int64_t rows = 0;         // to which a step may be padded
  int64_t slots = 0;        // live slots of all lists of a step
  int64_t state_bytes = 0;  // of the region that plans name parts of
};

// Host arrays of a step for DeviceStep to send; empty where no sequence of the step goes by scores.
struct RetentionArrays {
  std::span<const RetentionItem> items;
  std::span<const int32_t> item_of_row;        // [rows]
  std::span<const int64_t> row_logits_start;   // [num_sequences]
  std::span<const int64_t> column_sums_start;  // [num_sequences]
  std::span<const int32_t>
      cut_blocks;  // the lists that are cut before the step, as they were, one after another
};

// The same on the device.
struct PlacedRetention {
  const RetentionItem* items = nullptr;
  const int32_t* item_of_row = nullptr;
  const int64_t* row_logits_start = nullptr;
  const int64_t* column_sums_start = nullptr;
  const int32_t* cut_blocks = nullptr;
};

// The positions of a list set on their way to the host: read once the step is over.
struct QueuedDump {
  std::vector<SequenceId> sequences;  // who report them
  int32_t lists_per_layer = 1, room = 0, length = 0;
  DeviceBuffer back;  // pinned: positions, then free slots, of all lists; empty while all lists lie in order
};

class DeviceRetention {
 public:
  DeviceRetention(StreamDevice& device, Kernels& kernels, const KvLayout& layout, char* arena,
                  int32_t num_q_heads);

  Status reserve(const RetentionRoom& room);
  // Beside room.state_bytes.
  static int64_t reserved_bytes(const RetentionRoom& room, const KvLayout& layout, int32_t num_q_heads);
  // Device memory that each slot of the cache asks for beside it.
  static int64_t bytes_of_slot(int32_t num_q_heads) { return int64_t{num_q_heads} * 2 * 4; }

  void forget(std::span<const SequenceId> sequences);
  // Queues the copies. kInternal: as begin().
  Status fork(std::span<const PolicyFork> forks);
  // max_rows: to which the step may be padded. kInternal: the plan does not fit what was kept or reserved.
  Status begin(const BatchPlan& plan, int64_t max_rows);
  bool active() const { return !items_.empty(); }
  // Whether a graph of other such steps can run it: rows behind prompts, no list to be cut.
  bool may_be_captured() const { return items_.empty() || (cuts_.empty() && !in_prompts_); }
  RetentionArrays arrays() const;

  // Where the step was sent; queues cuts and slots, and asks the forward pass for side outputs.
  // num_items: as many as there is room for in what was sent.
  void before_forward(const PlacedRetention& placed, int32_t num_items, StepArrays& arrays);
  void after_layer(int32_t layer);
  // What is wrong with one sequence goes to `failures`.
  void end(const BatchPlan& plan, std::vector<QueuedDump>& dumps, std::vector<SequenceFailure>& failures);
  // Once the step has run. The dump's memory is used again.
  void report(QueuedDump dump, std::vector<SequenceKvDump>& out);

 private:
  struct State {         // of one sequence: [num_layers, lists] lists of `room` slots
    RetentionItem item;  // pointers into states_memory_, sizes; what a step changes is filled in each time
    int64_t bytes = 0;   // from item.positions on: positions, free slots, scores
    int32_t place = 0;   // among the lists of its request's samples or beams
  };
  struct Cut {
    int32_t sequence = 0;     // of the step
    int32_t first_block = 0;  // among cut_blocks
    const State* state = nullptr;
    int64_t count = 0;
  };

  Result<State*> state_of(const PlannedSequence& s);
  Result<State> new_state(const PlannedSequence& s);
  Status check_cut(const PlannedSequence& s, const RetentionItem& item) const;
  Status add_item(const PlannedSequence& s, int32_t index, int64_t first_row);
  void want_side_outputs(const PlannedSequence& s, const RetentionItem& item);
  Status check_room(int64_t rows) const;
  void place_lists(State& state, char* at) const;
  Status copy_state(SequenceId source, SequenceId target, int32_t place);
  Status fork_samples(const PlannedSequence& s);
  Status dump(const PlannedSequence& s, QueuedDump& dump);
  Result<DeviceBuffer> take_pinned(int64_t bytes);
  int64_t num_lists(const State& state) const { return int64_t{layout_.num_layers} * state.item.lists; }

  StreamDevice& device_;
  Kernels& kernels_;
  KvLayout layout_;
  char* arena_;
  int32_t num_q_heads_;
  std::unordered_map<uint64_t, State> states_;

  // Of the step in hand.
  std::vector<RetentionItem> items_;
  std::vector<int32_t> item_of_row_, cut_blocks_;
  std::vector<int64_t> row_logits_start_, column_sums_start_;
  std::vector<Cut> cuts_;
  int64_t logits_floats_ = 0, sums_floats_ = 0;
  bool decodes_ = false, in_prompts_ = false;
  RetentionScoresParams scores_;
  DeviceBuffer lse_, row_logits_, column_sums_, slots_;
  DeviceBuffer states_memory_;
  std::vector<DeviceBuffer> pinned_;  // of dumps that were reported
};

}  // namespace quire
