// What KV policies change in planning: windows let go of blocks that no row will see again; TOVA and H2O cut their list
// after the prompt and then overwrite a victim's slot with each token. Which token goes, only the executor knows: the lists of a
// sequence's layers and heads differ in content and never in length, so one block table serves them all.
#include <algorithm>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

// Blocks before the window of the next row to run, sinks apart, are dropped. Steps under way may still read them: they are deferred.
void Scheduler::slide(Sequence& s) {
  const PolicySpec& policy = s.group->policy;
  const int32_t sink_blocks = size_.blocks_for(policy.sinks);
  const int32_t first_seen = s.table.next_position() - sliding_window(policy) + 1;
  const int32_t dropped = (s.table.next_position() - s.table.length()) / block_tokens_;
  const int32_t count = first_seen / block_tokens_ - sink_blocks - dropped;
  if (first_seen <= 0 || count <= 0) return;
  cache_.drop_blocks(s.table, sink_blocks, count, deferred_now());
  counters_.dropped_tokens += count * block_tokens_;
}

// One token of a sequence whose list is cut after its prompt, appended to until it is full, and overwritten from then on.
bool Scheduler::add_adaptive_work(StepTransaction& step, Sequence& s, PlannedWork& work) {
  check(work.count == 1, "a sequence under a policy that overwrites slots decodes one token a step");
  BlockTable& table = s.table;
  const int32_t kept = capacity(s.group->policy);
  if (work.first == s.num_prompt_tokens && table.length() > kept) {
    std::vector<BlockId> source;
    if (!step.cut(table, kept, kept + 1, source)) return false;
    work.cut = static_cast<int32_t>(draft_cuts_.size());
    work.list_before = kept;
    draft_cuts_.push_back(std::move(source));
    return true;
  }
  if (table.length() <= kept) return step.extend(table, table.length() + 1);
  work.overwrites = true;
  return step.overwrite(table);
}

// The prompt's blocks are published before they are cut away or slide out. A window that has slid already, in a prompt of several
// chunks, has no whole prefix left to wait for.
bool Scheduler::waits_for_prompt(const Sequence& s) const {
  const bool publishes = s.group->share_prefix && s.table.next_position() == s.table.length();
  return s.group->traits.drops_tokens && publishes && s.num_planned == s.num_prompt_tokens &&
         s.num_computed < s.num_prompt_tokens;
}

// Only slots that are functions of their tokens, pristine ones, are published (src/policy/README.md), and only as a path from the first
// token on. Where the prompt alone is pristine, its whole blocks: the tail goes on with tokens that are not.
int32_t Scheduler::publishable(const Sequence& s, int32_t num_tokens) const {
  const bool whole = s.table.next_position() == s.table.length();
  if (!s.group->traits.drops_tokens) return num_tokens;
  if (!whole || s.list_cut) return 0;
  if (s.group->traits.cuts_after_prompt)
    return std::min(num_tokens, s.num_prompt_tokens / block_tokens_ * block_tokens_);
  return s.finished() ? num_tokens : std::min(num_tokens, most_shared_tokens(*s.group));
}

// What a sliding list has of the tree while it runs. Its blocks stay there after it has let go of them, until it lets go of the last
// one below: so many that they and its bound fit into the cache together, or it could be the one that finds no room alone. All that
// there will ever be, where that fits. Samples have what they share of the prompt once.
int32_t Scheduler::most_shared_tokens(const SequenceGroup& group) const {
  const int32_t all = group.max_total_tokens;
  const int64_t samples = group.num_slots();
  if (!group.traits.slides || samples * size_.blocks_for(all) <= cache_.num_blocks()) return all;
  const int64_t prompt = group.num_prompt_tokens();
  const int64_t chunk = std::min(limits_.max_prefill_chunk_tokens, limits_.max_step_tokens);
  const int64_t bound = peak_blocks(group.policy, prompt, all - prompt, samples, chunk, block_tokens_);
  const int64_t shared = prompt / block_tokens_, most = 1 + std::max<int64_t>(0, cache_.num_blocks() - bound);
  const int64_t blocks = most <= shared ? most : shared + (most - shared) / samples;
  return static_cast<int32_t>(std::min<int64_t>(all, blocks * block_tokens_));
}

// All that a sequence under a policy may still take until it has so many tokens, or to its end where it goes by scores. What windows
// drop comes back to them, so their list's bound is enough. Of a list on the host the table has what stayed here, if anything, and the
// rest is not run again.
int64_t Scheduler::policy_blocks_to_come(const Sequence& s, const BlockTable& table, int32_t tokens) const {
  const SequenceGroup& group = *s.group;
  if (group.traits.cuts_after_prompt) return scored_blocks_to_come(s, table);
  const int32_t swapped = s.swapped.empty() ? 0 : s.swapped_computed;
  const int64_t to_run = std::max(1, s.goal() - std::max(swapped, table.next_position()));
  const int64_t chunk = std::min<int64_t>(to_run, max_chunk(s));
  const int64_t list = list_blocks(group.policy, tokens, chunk, block_tokens_);
  const int64_t samples = group.forked ? 1 : group.num_slots();
  return std::max<int64_t>(0, list - table.num_blocks()) + (samples - 1) * list + 1;
}

int64_t Scheduler::scored_blocks_to_come(const Sequence& s, const BlockTable& table) const {
  const SequenceGroup& group = *s.group;
  const int64_t list = list_blocks(group.policy, group.max_total_tokens, 0, block_tokens_);
  const int64_t rest_of_list = std::max<int64_t>(0, list - table.num_blocks());
  const bool overwrites = table.next_position() > table.length();  // from now on
  if (s.list_cut || overwrites) return rest_of_list + cache_.blocks_for_overwrite(table);
  const int64_t samples = group.forked ? 1 : group.num_slots();
  const int64_t prompt = size_.blocks_for(s.num_prompt_tokens);
  const int64_t rest_of_prompt = std::max<int64_t>(0, prompt - table.num_blocks());
  if (cuts_prompt(group.policy, s.num_prompt_tokens))
    return (s.num_planned < s.num_prompt_tokens ? rest_of_prompt : 0) + samples * list;
  // Beams that append share what they have said too: what they hold together now is copied when it is overwritten.
  const bool fills = group.max_total_tokens - 1 > capacity(group.policy);
  if (group.is_beam && group.forked)
    return rest_of_list + 1 + (fills ? cache_.blocks_for_overwrite(table) : 0);
  // Appended to until it is full. Its prompt's full blocks may be found or shared: copied when they are overwritten.
  const bool shares = group.share_prefix || group.num_slots() > 1;
  const int64_t copies =
      shares ? overwrite_copies(group.policy, s.num_prompt_tokens, group.max_total_tokens, block_tokens_) : 0;
  if (samples > 1) return rest_of_prompt + samples * (list - s.num_prompt_tokens / block_tokens_ + copies);
  return rest_of_list + copies + 1;
}

int32_t Scheduler::max_chunk(const Sequence& s) const {
  const int32_t most =
      s.group->wants_prompt_logprobs() ? limits_.max_logprob_chunk_tokens : limits_.max_prefill_chunk_tokens;
  return static_cast<int32_t>(
      most_chunk_tokens(s.group->policy, s.num_prompt_tokens, std::min(most, limits_.max_step_tokens)));
}

// ---- memory beside the cache ----

int64_t Scheduler::policy_memory_of(const SequenceGroup& group) const {
  if (limits_.policy_memory.num_layers == 0) return 0;
  return policy_request_bytes(group.policy, group.num_prompt_tokens(), group.max_total_tokens,
                              group.num_slots(), limits_.policy_memory);
}

bool Scheduler::waits_for_policy_memory(const SequenceGroup& group) const {
  const int64_t bytes = policy_memory_of(group);
  return bytes > 0 && group.policy_memory < 0 && !policy_memory_.has_room(bytes);
}

// Those who need none pass by; those who do pass nobody that waits for it at their own rank or a better one.
bool Scheduler::park_for_policy_memory(SequenceGroup& group) {
  const int64_t bytes = policy_memory_of(group);
  if (bytes == 0 || group.policy_memory >= 0) return false;
  const auto stands_before = [&](const SequenceGroup* waiter) { return waiter->rank() <= group.rank(); };
  if (policy_memory_.has_room(bytes) && std::ranges::none_of(memory_waiters_, stands_before)) return false;
  queue_.step_out(group);
  group.parked = group.waits_for_memory = true;
  memory_waiters_.push_back(&group);
  return true;
}

void Scheduler::take_policy_memory(SequenceGroup& group) {
  const int64_t bytes = policy_memory_of(group);
  if (bytes == 0 || group.policy_memory >= 0) return;
  const std::optional<int64_t> offset = policy_memory_.take(bytes);
  check(offset.has_value(), "who is admitted finds the policy memory that it was not parked for");
  group.policy_memory = *offset;
}

// The next plan's leaves name whatever the group had there, and a device does in order what it is given.
void Scheduler::give_back_policy_memory(SequenceGroup& group) {
  if (group.policy_memory < 0) return;
  policy_memory_.give_back(group.policy_memory, policy_memory_of(group));
  group.policy_memory = -1;
  wake_memory_waiters();
}

// All of them stand in line again, and the queue's order says who is asked first.
void Scheduler::wake_memory_waiters() {
  for (SequenceGroup* waiter : memory_waiters_) {
    waiter->waits_for_memory = waiter->parked = false;
    queue_.push(*waiter);
  }
  memory_waiters_.clear();
}

// Those who wait longer than priorities count stand before the others from now on.
void Scheduler::promote_memory_waiters(int64_t arrived_by_us) {
  bool changed = false;
  for (SequenceGroup* waiter : memory_waiters_) {
    if (waiter->overdue || waiter->times.arrival_us > arrived_by_us) continue;
    queue_.promote_parked(*waiter);
    changed = true;
  }
  if (changed) wake_memory_waiters();
}

// It stays parked: its request ends, or its reader has stopped. What is free may be enough for whoever waits behind it.
void Scheduler::leave_memory_waiters(SequenceGroup& group) {
  if (!group.waits_for_memory) return;
  std::erase(memory_waiters_, &group);
  group.waits_for_memory = false;
  wake_memory_waiters();
}

// Executors have room for the scores of as many slots as the cache has. Lists that share blocks may have more together: who finds no
// room waits for the next step.
bool Scheduler::has_score_room(const Sequence& s, int32_t count) const {
  if (!s.group->traits.row_logits) return true;
  int64_t length = s.table.length() + count;
  if (s.num_planned >= s.num_prompt_tokens)
    length = std::min<int64_t>(length, list_room(s.group->policy, s.group->max_total_tokens));
  return length <= score_slots_;
}

void Scheduler::commit_dumps(SubmittedStep& step, StepView& result) {
  for (StepView::Dump& dump : result.dumps)
    for (Sequence* s : step.named)
      if (s->id == dump.sequence) s->kv_dump = std::move(dump.positions);
}

}  // namespace quire
