// Who comes in: by rank, and of one rank preempted sequences before the queue. Nobody overtakes the head of the queue for want of
// room, so a large request is not starved by small ones (but see aside.cc); a request whose prefix is being computed
// steps aside until it is.
#include <algorithm>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {
namespace {

constexpr int kLooksPerDraft = 4;  // a lookup of a long prompt takes as long as planning ten sequences

// Siblings come back one after the other: while one runs their prompt again, the others wait to share it with
// it.
bool waits_for_sibling(const Sequence& sequence) {
  for (const auto& s : sequence.group->sequences)
    if (s->running() && s->num_computed < s->num_prompt_tokens) return true;
  return false;
}

// A policy's list is no path from the first token on, once it has dropped some.
bool may_take_sibling_prefix(const Sequence& sequence) {
  return sequence.swapped.empty() && sequence.table.empty() && !sequence.group->share_prefix &&
         !sequence.group->traits.drops_tokens;
}

const Sequence* sibling_with_prompt(const Sequence& sequence) {
  for (const auto& s : sequence.group->sequences)
    if (s->running() && !s->copying && s->num_computed >= s->num_prompt_tokens) return s.get();
  return nullptr;
}

// Than any request does. What it publishes says so by itself; of what it finds cached it may publish no more.
bool asks_for_more(const KvRetention& retention) {
  return retention.retention_class > 0 || retention.ttl_ms || retention.cost != KvRetention().cost;
}

}  // namespace

Sequence* Scheduler::first_preempted() const {
  for (Sequence* s : preempted_)
    if (!s->group->paused && !s->group->aside && !s->copying && !waits_for_sibling(*s)) return s;
  return nullptr;
}

// Its siblings that run keep their place in the order: they end, and then it has its turn.
void Scheduler::promote_overdue(int64_t now_us) {
  const int64_t arrived_by_us = now_us - limits_.max_priority_wait_us;
  promote_memory_waiters(arrived_by_us);
  queue_.promote(arrived_by_us);
  bool changed = false;
  for (Sequence* s : preempted_) {
    SequenceGroup& group = *s->group;
    if (group.overdue || group.times.arrival_us > arrived_by_us || group.some_run()) continue;
    group.overdue = changed = true;
  }
  const auto before = [](const Sequence* a, const Sequence* b) { return runs_before(*a, *b); };
  if (changed) std::sort(preempted_.begin(), preempted_.end(), before);
}

// Those of the next tenant's line from whom the next is chosen; none where there is no choice to make.
std::span<SequenceGroup* const> Scheduler::first_in_line() const {
  SequenceGroup* head = queue_.next();
  const bool no_slot = static_cast<int32_t>(running_.size()) >= limits_.max_sequences;
  if (head == nullptr || !head->reads_prefix() || no_slot) return {};
  const std::span<SequenceGroup* const> line = queue_.line_of(*head);
  return line.first(std::min<size_t>(line.size(), 1 + limits_.look_ahead));
}

void Scheduler::look_up(SequenceGroup& group, int64_t now_us) {
  group.looked_up_in = next_step_;
  group.cached_seen = 0;
  if (!group.reads_prefix()) return;
  const std::vector<TokenId>& tokens = group.sequences.front()->tokens;
  // vLLM's rule looks at a prompt when it is admitted, and not before.
  group.cached_seen =
      limits_.whole_block_hits ? cache_.lookup(group.ns, tokens) : cache_.await(group.ns, tokens, now_us);
}

// How much of their prompts is cached changes while they wait: a few are looked up again, those whose figure is oldest.
void Scheduler::look_again(int64_t now_us) {
  const std::span<SequenceGroup* const> ahead = first_in_line();
  if (ahead.size() < 2) return;
  if (std::any_of(ahead.begin(), ahead.end(), [&](auto* g) { return is_blocked(*g->sequences.front()); }))
    return;
  const auto older = [](const auto* a, const auto* b) { return a->looked_up_in < b->looked_up_in; };
  for (int i = 0; i < kLooksPerDraft; ++i) {
    SequenceGroup* oldest = *std::min_element(ahead.begin(), ahead.end(), older);
    if (oldest->looked_up_in == next_step_) return;
    look_up(*oldest, now_us);
  }
}

// The queue's next, or of those behind it in its tenant's line the one with the most of its prompt cached: it
// costs least, and what it needs may be evicted while it waits. Nobody is overtaken more than kMaxOvertakes
// times.
SequenceGroup* Scheduler::next_waiting() const {
  const std::span<SequenceGroup* const> ahead = first_in_line();
  if (ahead.empty()) return queue_.next();
  // Who found no room is the choice until there is some: nobody overtakes for want of it.
  for (SequenceGroup* group : ahead)
    if (is_blocked(*group->sequences.front())) return group;
  SequenceGroup* best = ahead.front();
  int32_t most = best->cached_seen;
  for (size_t i = 1; i < ahead.size() && ahead[i - 1]->times_overtaken < kMaxOvertakes; ++i) {
    if (ahead[i]->cached_seen < most + block_tokens_) continue;
    best = ahead[i];
    most = best->cached_seen;
  }
  return best;
}

void Scheduler::admit(StepTransaction& step, int64_t now_us) {
  admission_blocked_ = false;
  promote_overdue(now_us);
  look_again(now_us);
  while (budget_ > 0 && !admission_blocked_) {
    Sequence* back = first_preempted();
    SequenceGroup* next = next_waiting();
    if (back != nullptr && (next == nullptr || back->group->rank() <= next->rank()))
      admission_blocked_ = !admit_preempted(step, *back, now_us);
    else if (next != nullptr)
      admission_blocked_ = !admit_waiting(step, *next, now_us);
    else
      return;
  }
}

// Of max_sequences, without those of `but`. Those of a request that are out while others of it run are to follow: they
// have slots too, unless their reader has stopped.
int32_t Scheduler::slots_used(const SequenceGroup& but) const {
  int32_t used = 0;
  const SequenceGroup* previous = &but;
  for (const Sequence* s : running_) {
    const SequenceGroup& group = *s->group;
    if (&group != previous && &group != &but)
      used += group.paused ? group.slots_in_use() : group.slots_wanted();
    previous = &group;
  }
  return used;
}

// Whoever has not read for a while gives its slots to who waits for some.
bool Scheduler::make_slots(const SequenceGroup& group, int32_t wanted, int64_t now_us) {
  while (slots_used(group) + wanted > limits_.max_sequences) {
    const std::optional<Victim> idle = idle_in_slot(now_us);
    if (!idle) return false;
    preempt(idle->sequences, idle->offer, now_us);
  }
  return true;
}

bool Scheduler::admit_preempted(StepTransaction& step, Sequence& s, int64_t now_us) {
  if (is_blocked(s)) return false;
  // One sibling's prefix is taken per draft; the next to come back gets its own with the next.
  if (may_take_sibling_prefix(s) && sibling_prefix_of_ != s.id && sibling_with_prompt(s) != nullptr)
    return false;
  const bool swapped = !s.swapped.empty();
  const std::vector<Sequence*> coming = come_in(s, now_us);
  for (Sequence* back : coming) {
    std::erase(preempted_, back);
    insert_running(*back);
  }
  if (coming.empty()) return false;
  ++room_epoch_;  // of what was kept free for it, while its siblings ran, it may have found most
  if (!swapped) plan_chunk(step, s);
  return true;
}

// It, and what of its request lies on the host too, where there is room for all of the request that are out; else nobody.
// Where nobody else could use the room its samples come in one by one.
std::vector<Sequence*> Scheduler::come_in(Sequence& s, int64_t now_us) {
  const SequenceGroup& group = *s.group;
  const bool in_turn = !group.is_beam && group.forked && !others_run(group);
  if (!make_slots(group, in_turn ? group.slots_in_use() + 1 : group.slots_wanted(), now_us)) return {};
  std::vector<Sequence*> coming{&s};
  if (s.swapped.empty()) return start(s, now_us) ? coming : std::vector<Sequence*>();
  std::vector<Sequence*> all = together_with(s);
  if (slots_used(group) + group.slots_wanted() <= limits_.max_sequences && bring_back(all, now_us))
    return all;
  return in_turn && bring_back(coming, now_us) ? coming : std::vector<Sequence*>();
}

bool Scheduler::admit_waiting(StepTransaction& step, SequenceGroup& group, int64_t now_us) {
  Sequence& s = *group.sequences.front();
  if (is_blocked(s) || must_not_pass(group) || !make_slots(group, group.num_slots(), now_us)) return false;
  if (park_on_prefix(group) || park_for_policy_memory(group)) return true;
  const std::optional<int32_t> cached = start(s, now_us);
  if (!cached) return false;
  take_policy_memory(group);
  for (SequenceGroup* overtaken : queue_.line_of(group)) {
    if (overtaken == &group) break;
    ++overtaken->times_overtaken;
  }
  queue_.admit(group);
  leave_waiting(group);
  group.state = GroupState::kAdmitted;
  group.times.first_step_us = now_us;
  group.cached_tokens = *cached;  // what is on its way counts when it is there
  counters_.prompt_tokens += s.num_prompt_tokens;
  if (group.share_prefix) counters_.prefix_query_tokens += s.num_prompt_tokens;
  counters_.cached_tokens += *cached;
  WaitingQueue::charge_prompt(group, s.num_prompt_tokens - s.num_planned - s.tail.length());
  insert_running(s);
  plan_chunk(step, s);
  return true;
}

// Gives a sequence its cached prefix, or the head that it kept if that is as long, if there is room for what it
// needs besides; if not, leaves it as it was.
std::optional<int32_t> Scheduler::start(Sequence& s, int64_t now_us) {
  BlockTable table = take_prefix(s, now_us);
  const bool from_head = !s.table.empty() && s.table.length() >= table.length();
  if (from_head) {
    cache_.release(std::move(table), now_us);
    table = std::move(s.table);
  }
  int32_t here = table.length();
  Sequence* const coming = &s;
  const int64_t missing = make_room_for({&coming, 1}, blocks_to_start(s, table), now_us);
  if (missing > 0) {
    if (from_head)
      s.table = std::move(table);
    else
      cache_.release(std::move(table), now_us);
    keep_out({&coming, 1}, missing);
    return std::nullopt;
  }
  cache_.count_use(table, now_us);
  std::optional<TierTransfers::Fetch> below = fetch_prefix(s, table, now_us);
  s.num_planned = s.num_computed = table.length();
  here = std::min(here, table.length());  // a front that is to be computed begins with a block
  const int32_t published = below ? here : table.length();
  s.num_published = s.group->share_prefix ? published / block_tokens_ * block_tokens_ : 0;
  cache_.release(std::move(s.table), now_us);  // a shorter head: the prefix holds its blocks too
  s.table = std::move(table);
  if (s.group->share_prefix && asks_for_more(s.group->retention))
    cache_.strengthen(s.table, retention_of(s, now_us));
  if (below) transfers_.start(std::move(*below), s, now_us);
  return here;
}

// Without the prefix cache a preempted sample can still share its prompt with a sibling that has it: its full
// blocks, so that no tail that the sibling writes gets a second holder. Taken before the step's transaction
// opens, which extends the sibling.
void Scheduler::take_sibling_prefix(int64_t now_us) {
  Sequence* back = first_preempted();
  if (back == nullptr || !may_take_sibling_prefix(*back) || is_blocked(*back)) return;
  const Sequence* sibling = sibling_with_prompt(*back);
  if (sibling == nullptr) return;
  const int32_t shared = std::min(back->num_prompt_tokens, back->num_tokens() - 1);
  sibling_prefix_ = cache_.fork(sibling->table);
  cache_.release_tail(sibling_prefix_, shared / block_tokens_ * block_tokens_, now_us);
  sibling_prefix_of_ = back->id;
}

BlockTable Scheduler::take_prefix(const Sequence& s, int64_t now_us) {
  if (!s.group->reads_prefix()) return s.id == sibling_prefix_of_ ? std::move(sibling_prefix_) : BlockTable();
  // At least one token is left to run: its row gives the next. (A beam's row is run later, with its
  // siblings'.)
  const int32_t most = std::min(s.num_tokens() - 1, most_shared_tokens(*s.group));
  BlockTable table = cache_.acquire_prefix(s.group->ns, s.tokens, most, now_us);
  // The block a hit ends in is copied at the first write and stays until then: one block more than without
  // the hit.
  const int32_t in_tail = table.length() % block_tokens_;
  const bool tight = cache_.num_available() <= size_.blocks_for(s.group->max_total_tokens);
  if (in_tail > 0 && (tight || limits_.whole_block_hits))
    cache_.release_tail(table, table.length() - in_tail, now_us);
  return table;
}

// Compute once: if a running sequence is about to publish more of this prompt than is cached, wait for it.
bool Scheduler::park_on_prefix(SequenceGroup& group) {
  const Sequence& s = *group.sequences.front();
  if (!group.reads_prefix()) return false;
  Sequence* leader = nullptr;
  int32_t best = 0;
  for (Sequence* r : running_) {
    // Windows let go of the blocks they have computed: nobody waits for those.
    const bool in_prompt =
        r->num_computed < r->num_prompt_tokens && r->group->fills_shared_prefix() && !r->group->paused;
    if (!in_prompt || r->group->ns != group.ns || r->tokens.front() != s.tokens.front()) continue;
    const int32_t longest = std::min(r->num_prompt_tokens, s.num_prompt_tokens - 1);
    const auto end = s.tokens.begin() + longest;
    const auto common = static_cast<int32_t>(std::mismatch(s.tokens.begin(), end, r->tokens.begin()).first -
                                             s.tokens.begin());
    // The block in which they part is worth waiting for if the leader fills it; its tail is never published
    // while it runs.
    const int32_t full = size_.whole_blocks(r->num_prompt_tokens);
    const int32_t until = std::min(size_.first_slot(size_.blocks_for(common)), full);
    if (std::min(until, common) > best && r->num_published < until) {
      leader = r;
      best = std::min(until, common);
    }
  }
  if (leader == nullptr || best < cache_.lookup(group.ns, s.tokens) + block_tokens_) return false;
  const int32_t until =
      std::min(size_.first_slot(size_.blocks_for(best)), size_.whole_blocks(leader->num_prompt_tokens));
  queue_.step_out(group);
  group.parked = true;
  group.parked_on = leader;
  leader->waiters.push_back({&group, until});
  return true;
}

}  // namespace quire
