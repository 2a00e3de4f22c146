// A request inside the engine: its n samples or beams, admitted, forked, preempted and ended as its kind
// wants. Made when the engine thread takes the request, owned by the scheduler from then on.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "quire/request.h"
#include "src/cache/namespaces.h"
#include "src/policy/policy_spec.h"
#include "src/request/sequence.h"

namespace quire {

inline constexpr int64_t kNoDeadline = std::numeric_limits<int64_t>::max();

struct TenantShare;

// A finished beam: what it generated and its score = sum of logprobs / length ^ length_penalty.
struct BeamHypothesis {
  std::vector<TokenId> tokens;  // output only, the ending id included
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::kLength;
  double score = 0;
  KvDump kv_dump;  // as Sequence::kv_dump
};

enum class GroupState : uint8_t { kWaiting, kAdmitted, kEnded };

// When things happened to a request; us of the engine's clock, -1 = not yet.
struct GroupTimes {
  int64_t arrival_us = 0, first_step_us = -1, first_token_us = -1;
  int64_t paused_us = -1;  // or went on
};

// What every step reads of every request comes first, so that it lies in few cache lines.
struct SequenceGroup {
  RequestId request = 0;
  std::shared_ptr<const SamplingParams> sampling;
  TenantShare* share = nullptr;  // the tenant's counter where it waits or was let in, while queued or running
  double paid = 0;               // to that counter
  int32_t max_total_tokens = 0;  // prompt + output
  int32_t num_output_tokens = 0;  // committed, over all sequences
  GroupState state = GroupState::kWaiting;
  bool paused = false;
  // Waiting, but outside the queue: paused, or until another has computed its prefix or given back policy memory or room.
  bool parked = false;
  bool forked = false;  // the samples exist (n > 1), or the beams have started
  bool is_beam = false;
  bool share_prefix = true;      // publish its prefix; reads_prefix(): take others'
  bool prompt_reported = false;  // its logprobs are told, or were not asked for
  bool dump_kv = false;
  PolicySpec policy;
  PolicyTraits traits;         // of policy
  int64_t policy_memory = -1;  // its part begins there (policy_memory.h); -1: it has none
  std::vector<TokenId>
      end_ids;  // ids that end a sequence: end-of-sequence unless ignored, and stop_token_ids; sorted
  GroupTimes times;
  std::vector<std::unique_ptr<Sequence>> sequences;  // [0] runs the prompt; beams come and go
  NamespaceId ns{};

  int32_t priority = 0;
  bool overdue = false;    // has waited so long that its priority counts no more; set while none of it runs
  uint64_t queued_in = 0;  // the queue's event that put it in line last
  int32_t times_overtaken = 0;  // by later ones of its tenant that had more of their prompt cached
  int32_t cached_seen = 0;      // of its prompt, when it was last looked up, in the draft of this step:
  uint64_t looked_up_in = 0;
  int32_t below_seen = 0;         // of its prompt, in the tiers below the device when it came
  uint64_t order = 0;             // of arrival
  Sequence* parked_on = nullptr;  // the sequence that computes its prefix
  bool waits_for_memory = false;  // parked until somebody's policy memory is given back
  bool aside = false;     // parked or passed over beside readers that have stopped: Scheduler::step_aside
  bool took_all = false;  // there was for it when it came in: for nobody was anything kept free
  int32_t next_index = 0;
  int32_t cached_tokens = 0;  // of the prompt, from the prefix cache
  int64_t deadline_us = kNoDeadline;
  std::string tenant;
  std::vector<TokenId> eos_token_ids;
  KvRetention retention;  // of what it publishes
  KvUsage kv;
  std::vector<BeamHypothesis> finished_beams;  // best first, at most beam_width
  std::vector<TokenLogprob> prompt_logprobs;   // by position; filled while the prompt runs

  // Lowest runs first.
  int32_t rank() const { return overdue ? std::numeric_limits<int32_t>::min() : priority; }
  bool reads_prefix() const { return share_prefix && traits.prefix != PrefixRule::kNone; }
  // What it publishes of its prompt is what full attention gives: any policy may read it.
  bool fills_shared_prefix() const { return share_prefix && traits.prefix != PrefixRule::kOwnPolicy; }
  int32_t num_slots() const { return sampling->num_sequences(); }  // running at once, at most
  // Slots that all of it takes while it runs, and those that it has if any of it runs. Beams, and samples that are still to fork,
  // count as many as there will be.
  int32_t slots_wanted() const;
  int32_t slots_in_use() const;
  bool some_run() const;
  int32_t num_reported() const {
    return is_beam ? sampling->n : num_slots();
  }  // sequence ends that delivery gets
  int32_t num_prompt_tokens() const { return sequences.front()->num_prompt_tokens; }
  bool wants_prompt_logprobs() const { return !prompt_reported; }
};

// Fewest come first: rank, then arrival.
inline bool runs_before(const SequenceGroup& a, const SequenceGroup& b) {
  return a.rank() != b.rank() ? a.rank() < b.rank() : a.order < b.order;
}
inline bool runs_before(const Sequence& a, const Sequence& b) {
  if (a.group == b.group) return a.index < b.index;
  return runs_before(*a.group, *b.group);
}

// What the engine core makes of a request that has passed the door.
struct GroupSetup {
  RequestId request = 0;
  std::shared_ptr<const SamplingParams> sampling;
  std::vector<TokenId> prompt;
  std::vector<TokenId> eos_token_ids;
  std::string tenant;
  int32_t priority = 0;
  uint64_t order = 0;
  int64_t arrival_us = 0;
  int64_t deadline_us = kNoDeadline;
  NamespaceId ns{};
  bool share_prefix = true;
  PolicySpec policy;
  bool dump_kv = false;
  KvRetention retention;
  uint64_t seed = 0;  // resolved; sample i draws from a seed derived from it and i
  SequenceId first_sequence{};
};
std::unique_ptr<SequenceGroup> make_group(GroupSetup setup);

// Sample 0 keeps the request's seed, so that n = 1 and the first of n > 1 draw alike.
uint64_t seed_of_sample(uint64_t seed, int32_t index);

}  // namespace quire
