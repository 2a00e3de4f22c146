// What one step will do, as a value: made by the scheduler (pure), carried out by an executor.
// Everything an executor needs is in the plan; it never looks into sequences, cache or scheduler.
#pragma once

#include <cstdint>
#include <vector>

#include "src/base/ids.h"
#include "src/policy/policy_spec.h"
#include "src/sample/sample_types.h"

namespace quire {

struct PlannedSequence {
  SequenceId sequence{};
  int32_t first_position = 0;   // position of the first token run in this step
  std::vector<TokenId> tokens;  // ids to run; a single kSampledLastStep takes the id sampled one step before
  // live slots before this step (== first_position unless a policy dropped tokens)
  int32_t list_length_before = 0;
  std::vector<BlockId> block_table;  // blocks of the list, long enough for this step's tokens
  int32_t num_unchanged_blocks = 0;  // first blocks of the table that are as in the sequence's plan before
  // from the logits of the last row; more than one at the end of a group's shared prefill
  std::vector<PlannedSample> samples;
  // >= 0: logprobs of tokens[1..] and of next_prompt_token, with this many alternatives
  int32_t prompt_logprobs = -1;
  TokenId next_prompt_token = -1;  // the prompt token after this chunk, if the prompt goes on

  // What the sequence's KV policy wants of the step. All layers and heads share the block table; under a policy that
  // chooses its victims by scores, layers and heads differ in which token lies in which slot, and the executor keeps that.
  PolicySpec policy;
  int32_t num_prompt_tokens = 0;
  bool overwrites = false;  // the one token takes a victim's slot: the list stays as long as it is
  std::vector<BlockId>
      cut_source;  // not empty: the list was cut since the last step; these are the blocks it had, to be moved from
  // Of a policy that goes by scores: where its request's part of the policies' memory begins (policy_memory.h), slots of each list there.
  int64_t policy_memory = 0;
  int32_t list_room = 0;
  bool dump_kv = false;  // report the positions that are visible after the step
  int32_t list_length_after() const {
    return list_length_before + (overwrites ? 0 : static_cast<int32_t>(tokens.size()));
  }
};

// A beam that begins as another is, under a policy that goes by scores: with a copy of its lists and scores, in part `place` of its
// request's memory for them (policy_memory.h), which no beam that goes on has.
struct PolicyFork {
  SequenceId source{}, target{};
  int32_t place = 0;
};

struct BatchPlan {
  uint64_t step = 0;
  std::vector<BlockCopy> copies;  // before anything else of the step (copy-on-write)
  std::vector<PlannedJoin> joins;
  std::vector<SequenceId>
      leaves;  // sampler and policy states to forget, if there are any, before `sequences` run
  std::vector<PolicyFork> forks;  // after `leaves`, before `sequences` run
  std::vector<PlannedSequence> sequences;
  int64_t num_tokens() const {
    int64_t n = 0;
    for (const PlannedSequence& s : sequences) n += static_cast<int64_t>(s.tokens.size());
    return n;
  }
};

}  // namespace quire
