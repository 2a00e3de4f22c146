// What the next step runs: decodes, prompt chunks, then those outside. Blocks are reserved in one
// transaction.
#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

std::shared_ptr<const BatchPlan> Scheduler::plan(int64_t now_us, Outcome& out) {
  bool retried = false;
  // Each attempt but the last has somebody come in or give way (a few times each), a block or more of heads go, or a
  // request fail.
  int64_t attempts_left =
      4096 + 16 * int64_t{limits_.max_sequences} + cache_.num_blocks() + static_cast<int64_t>(groups_.size());
  decodes_may_wait_ = false;
  give_up_overdue(now_us);
  if (aside_epoch_ != room_epoch_ || in_flight_.empty()) come_back();
  while (num_in_flight() < kMaxStepsInFlight) {
    sweep();  // what an attempt deferred while nothing was submitted is room for the next
    check(attempts_left-- > 0, "planning ends: nobody gives way and comes back for ever");
    const Attempt result = attempt(now_us);
    if (result == Attempt::kPlanned) {
      std::shared_ptr<const BatchPlan> plan = submit();
      transfers_.write_owed(now_us);  // of the room that it leaves
      return plan;
    }
    if (result == Attempt::kAgain) continue;
    // What lists let go of in this attempt is room for the next one, before anybody has to give way.
    if (in_flight_.empty() && !idle_deferred_.empty() && !std::exchange(retried, true)) continue;
    // A victim must not be in a submitted step, and what that step or a copy under way frees may be enough:
    // wait for it.
    if (!in_flight_.empty() || transfers_.num_of_device() > 0) break;
    if (make_progress(now_us, out) || step_aside()) continue;
    // Nobody can be made to give way: those that have room run without the others, and may bring some.
    if (std::exchange(decodes_may_wait_, true)) break;
  }
  transfers_.write_owed(now_us);
  return nullptr;
}

Scheduler::Attempt Scheduler::attempt(int64_t now_us) {
  draft_.clear();
  draft_cuts_.clear();
  budget_ = limits_.max_step_tokens;
  score_slots_ = cache_.num_blocks() * block_tokens_;
  take_sibling_prefix(now_us);
  StepTransaction step = cache_.begin(now_us);
  const size_t num_running = running_.size();
  const int64_t preemptions = counters_.preemptions;
  const bool decodes_fit = plan_decodes(step);
  transfers_.set_room_is_short(decodes_wait_);
  if (decodes_fit && !decodes_wait_) {
    plan_chunks(step);
    admit(step, now_us);
  }
  for (const PlannedWork& work : draft_) work.sequence->planned_now = false;
  if (!sibling_prefix_.empty()) cache_.release(std::move(sibling_prefix_), now_us);
  sibling_prefix_of_ = SequenceId{};
  if (!decodes_fit || draft_.empty()) {
    step.rollback();
    const auto gave_way = static_cast<size_t>(counters_.preemptions - preemptions);
    return running_.size() + gave_way > num_running ? Attempt::kAgain : Attempt::kNothing;
  }
  SubmittedStep& submitted = in_flight_.emplace_back(take_step());
  step.commit(submitted.plan->copies, submitted.deferred);
  return Attempt::kPlanned;
}

bool Scheduler::add_work(StepTransaction& step, Sequence& sequence, int32_t count, bool sample) {
  if (sequence.group->traits.slides) slide(sequence);
  // Made where it stays: a copy of what has just been written field by field waits until that is in memory (2 % of a step).
  PlannedWork& work = draft_.emplace_back();
  work.sequence = &sequence;
  work.first = sequence.num_planned;
  work.count = count;
  work.sample = sample;
  work.list_before = sequence.table.length();
  if (!reserve(step, work)) {
    draft_.pop_back();
    return false;
  }
  sequence.planned_now = true;
  budget_ -= count;
  if (sequence.group->traits.row_logits) score_slots_ -= sequence.table.length();
  return true;
}

// The blocks that a work needs, all of them or none.
bool Scheduler::reserve(StepTransaction& step, PlannedWork& work) {
  Sequence& s = *work.sequence;
  if (s.group->traits.overwrites_slots && work.first >= s.num_prompt_tokens)
    return add_adaptive_work(step, s, work);
  const bool in_tail = size_.offset_of(work.list_before) != 0;
  const BlockId tail = in_tail ? s.table.blocks().back() : kNoBlock;
  if (!step.extend(s.table, work.list_before + work.count)) return false;
  work.copied = in_tail && s.table.blocks()[size_.block_of(work.list_before)] != tail;
  return true;
}

// One token to run, from which the next is sampled.
bool Scheduler::wants_decode(const Sequence& s) const {
  return s.goal() - s.num_planned == 1 && s.num_planned >= s.num_prompt_tokens &&
         s.goal() < s.group->max_total_tokens && !s.group->paused && !s.planned_now && !s.copying &&
         !waits_for_prompt(s);
}

// While a copy is under way nobody can be made to give way, and one to the host brings room when it ends: who
// finds none meanwhile waits, and those that have room run on. So it is where nobody can give way at all: samples of a
// prompt that is cut have no room all at once where what they share is held twice, and do one after the other.
bool Scheduler::decodes_may_wait() const {
  return decodes_may_wait_ || transfers_.num_of_device() > 0;
}

bool Scheduler::plan_decodes(StepTransaction& step) {
  decodes_wait_ = false;
  for (Sequence* s : running_) {
    if (!wants_decode(*s) || !has_score_room(*s, 1)) continue;
    const bool fits = s->group->is_beam ? plan_beams(step, *s->group) : add_work(step, *s, 1, true);
    if (fits) continue;
    if (s->group->is_beam || !decodes_may_wait()) return false;
    decodes_wait_ = true;
  }
  return true;
}

// Reckoned before any of them takes a block. All have lists of one length.
bool Scheduler::beams_have_room(const SequenceGroup& group) const {
  std::vector<const BlockTable*> tables;
  const Sequence* some = nullptr;
  for (const auto& s : group.sequences)
    if (!s->finished()) tables.push_back(&(some = s.get())->table);
  return blocks_for_beams(*some, tables) <= cache_.num_available();
}

int64_t Scheduler::blocks_for_beams(const Sequence& s, std::span<const BlockTable* const> tables) const {
  const int32_t kept = capacity(s.group->policy);
  if (!s.group->traits.overwrites_slots || s.table.length() <= kept)
    return cache_.blocks_for_next_slots(tables);
  if (s.num_planned > s.num_prompt_tokens) return cache_.blocks_for_overwrites(tables);
  return static_cast<int64_t>(tables.size()) * size_.blocks_for(kept + 1);
}

// Beams advance together, or wait for one that was preempted, or for room. What follows a step only the host can tell: a
// beam under way wants nothing before its commit.
bool Scheduler::plan_beams(StepTransaction& step, SequenceGroup& group) {
  for (const auto& s : group.sequences)
    if (!s->finished() && (!s->running() || !wants_decode(*s))) return true;
  if (decodes_may_wait() && !beams_have_room(group)) {
    decodes_wait_ = true;
    return true;
  }
  for (const auto& s : group.sequences)
    if (!s->finished() && !add_work(step, *s, 1, true)) return false;
  return true;
}

// Tokens to have run before a sequence decodes: all that are known, of which the last gives the next. A beam
// that comes back from preemption stops one short, since all beams sample together.
int32_t Scheduler::prefill_goal(const Sequence& s) const {
  if (s.group->is_beam && s.group->forked) return s.num_tokens() - 1;
  const bool samples = s.goal() < s.group->max_total_tokens;
  return samples || s.group->sampling->max_tokens == 0 ? s.goal() : s.num_planned;
}

void Scheduler::plan_chunks(StepTransaction& step) {
  if (draft_.size() == running_.size()) return;  // all decode, as most steps' do
  for (Sequence* s : running_)
    if (!s->group->paused && !s->copying && !s->planned_now && budget_ > 0 &&
        prefill_goal(*s) > s->num_planned && !wants_decode(*s) && !waits_for_prompt(*s))
      plan_chunk(step, *s);
}

int32_t Scheduler::tokens_with_room(const Sequence& s, int32_t want) const {
  const int64_t available = cache_.num_available();
  if (cache_.blocks_needed(s.table, s.table.length() + want) <= available) return want;
  const int64_t slack = static_cast<int64_t>(s.table.num_blocks()) * block_tokens_ - s.table.length();
  const int64_t copies = slack > 0 ? cache_.blocks_needed(s.table, s.table.length() + 1) : 0;
  if (available < copies) return 0;
  return static_cast<int32_t>(std::min<int64_t>(want, slack + (available - copies) * block_tokens_));
}

void Scheduler::plan_chunk(StepTransaction& step, Sequence& s) {
  if (s.copying) return;  // its prefix is on the way
  join_tail(s);
  const int32_t goal = s.tail_from > 0 ? s.tail_from : prefill_goal(s);
  if (s.group->traits.slides) slide(s);  // what that frees is room
  const int32_t want = std::min({goal - s.num_planned, max_chunk(s), budget_});
  const int32_t count = want > 0 ? tokens_with_room(s, want) : 0;
  if (count <= 0 || !has_score_room(s, count)) return;
  const bool last = s.num_planned + count == s.goal();
  const bool samples = last && s.goal() < s.group->max_total_tokens;
  add_work(step, s, count, samples);  // where it finds no room after all, the sequence waits
}

}  // namespace quire
