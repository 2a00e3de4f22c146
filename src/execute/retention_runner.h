// Carries out the policies that choose victims by attention scores (TOVA, H2O) where the executor's memory is the host's: keeps which token
// lies in which slot of every layer and head, the scores, and decides after each layer's attention. Decisions: policy/retention.h.
//
// A step: begin() makes the cuts planned after a prompt and says where each row goes; after_layer() is called by the forward pass
// while the side outputs of that layer stand; end() hands states on to forked samples and reports dumps; fork() hands them on to beams.
// Where the host has no memory for what one sequence keeps, that sequence fails and is left out until it leaves; its rows run on, and
// what they give is nobody's. Executor thread.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"
#include "src/execute/host_step.h"
#include "src/execute/step_result.h"
#include "src/policy/retention.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class RetentionRunner {
 public:
  // layout: of all layers; arena: base of the block pool, host memory.
  RetentionRunner(Kernels& kernels, const KvLayout& layout, char* arena, int32_t num_q_heads);

  void forget(std::span<const SequenceId> sequences);
  Status fork(std::span<const PolicyFork> forks);
  // After HostStep::build of the same plan. An Error: the plan does not fit what was kept.
  Status begin(const BatchPlan& plan, HostStep& step);
  // Some sequence of the step needs side outputs: attach() them, and call after_layer for every layer.
  bool wants_scores() const { return wants_logits_ || wants_sums_; }
  void attach(StepArrays& arrays);
  void after_layer(int32_t layer);
  void end(const BatchPlan& plan, StepResult& result);

 private:
  // One sequence: its lists, [layer][list of the layer], all of one length.
  struct State {
    std::vector<RetentionList> lists;
    std::vector<std::vector<float>> scores;  // by list, while the prompt runs
    std::vector<std::vector<int32_t>> kept;  // by list: slots before the cut, until the step that moves them
    int32_t lists_per_layer = 1;
  };
  struct Work {  // of this step
    const PlannedSequence* sequence = nullptr;
    State* state = nullptr;
    int64_t index = 0, first_row = 0;  // among the step's sequences and rows
    bool in_prompt = false, ends_prompt = false, failed = false;
  };

  // Runs what needs memory for one sequence; false, and the sequence has failed, where there is none.
  template <class Action>
  bool guarded(SequenceId sequence, const Action& action);
  void fail(SequenceId sequence);
  bool has_failed(SequenceId sequence) const;
  void attach_buffers(StepArrays& arrays);
  void clear_sums();
  void take_layer(Work& work, int32_t layer);
  void end_sequence(const Work& work, StepResult& result);

  State& state_of(const PlannedSequence& s);
  Status begin_sequence(const PlannedSequence& s, Work& work, HostStep& step);
  Status move_kept(const PlannedSequence& s, State& state);
  void append(const PlannedSequence& s, const Work& work, HostStep& step);
  void take_prompt(const Work& work, int32_t layer);
  void take_decode(const Work& work, int32_t layer);
  void cut(const Work& work);
  // Query heads that list `list` of a layer sums over, as rows of logits or sums.
  int64_t first_head(const State& state, int64_t list) const { return list * heads_per_list(state); }
  int64_t heads_per_list(const State& state) const { return num_q_heads_ / state.lists_per_layer; }

  Kernels& kernels_;
  KvLayout layout_;
  char* arena_;
  int64_t num_q_heads_;
  std::unordered_map<uint64_t, State> states_;
  std::vector<SequenceId> failed_;  // until they leave
  std::vector<Work> works_;
  bool wants_logits_ = false, wants_sums_ = false;
  int64_t side_stride_ = 0, num_sequences_ = 0, rows_ = 0;
  std::vector<float> lse_, row_logits_, column_sums_, probabilities_;  // grown to the largest step
  std::vector<int32_t> move_slots_, move_source_, move_target_;
};

}  // namespace quire
