// One running continuation of a request, as the scheduler keeps it. Engine thread only.
//
// Positions of a sequence, in order:
//   0 .. num_computed    K and V written by committed steps
//     .. num_planned     and by submitted ones (== table.next_position())
//     .. tokens.size()   ids known on the host
//     .. goal()          and those that submitted steps are sampling
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "quire/request.h"
#include "src/base/ids.h"
#include "src/cache/block_table.h"
#include "src/cache/swapped_list.h"

namespace quire {

struct SequenceGroup;

enum class SequenceState : uint8_t {
  kWaiting,  // its group has not been admitted
  kRunning,  // holds blocks; steps may name it
  kPreempted,  // gave blocks back; what it had lies in `swapped`, or is computed again behind the head in `table`
  kFinished,  // has a reason; goes once no submitted step names it
};

// Groups that wait until a running sequence has published their common prefix, instead of computing it too.
struct PrefixWaiter {
  SequenceGroup* group = nullptr;
  int32_t until_published = 0;  // tokens
};

struct Sequence {
  SequenceId id{};
  SequenceGroup* group = nullptr;
  int32_t index = 0;  // which of the request's continuations
  SequenceState state = SequenceState::kWaiting;
  FinishReason finish = FinishReason::kNone;
  uint64_t seed = 0;

  std::vector<TokenId> tokens;  // prompt + committed output
  int32_t num_prompt_tokens = 0;
  BlockTable table;
  int32_t num_planned = 0;
  int32_t num_computed = 0;
  int32_t num_published = 0;
  int32_t num_pending = 0;    // samples of submitted steps, not committed yet
  int32_t num_in_flight = 0;  // submitted steps that name it, and the copy of its blocks that is under way
  bool joined = false;        // the executor has, or is about to get, its sampler state
  bool planned_now = false;   // by the step that is being planned
  bool list_cut = false;      // its policy's cut after the prompt has been planned
  int32_t list_place = 0;     // of a beam: which part of its request's policy memory has its lists
  bool copying = false;       // to or from a tier below; no step names it meanwhile
  // Preempted by swap: its list on the host and what was computed of it. Not empty too while it runs again
  // but waits for its blocks (copying).
  SwappedList swapped;
  int32_t swapped_computed = 0;
  // Of a prefix that comes from a tier below while what stands before it is computed: they meet at tail_from. 0: none.
  BlockTable tail;
  int32_t tail_from = 0;
  bool tail_comes = false;    // its copy is under way; no step names its blocks before they are in `table`
  bool skips_tiers = false;   // what it was to get from the tiers below did not come
  int32_t num_preempted = 0;  // times it had to give way
  KvDump kv_dump;             // after the last committed step, where asked for and only the executor knows

  double sum_logprob = 0;  // of the output, natural log
  // Of the output; of beams only, others stream theirs. Likeliest ids by token, where some are asked for.
  std::vector<float> beam_logprobs;
  std::vector<std::vector<std::pair<TokenId, float>>> beam_tops;
  std::vector<PrefixWaiter> waiters;

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  int32_t goal() const { return num_tokens() + num_pending; }
  bool running() const { return state == SequenceState::kRunning; }
  bool finished() const { return state == SequenceState::kFinished; }
};

}  // namespace quire
