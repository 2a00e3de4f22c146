// The draft as a BatchPlan. Plans are reused for their capacity: a step of 256 sequences copies their tables
// (1 KiB each at 4k tokens) and allocates nothing.
#include <algorithm>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

SubmittedStep Scheduler::take_step() {
  // The executor lets go of a plan before wait() returns its result, so a committed plan that nobody else
  // holds is ours.
  const auto free = std::find_if(spare_.begin(), spare_.end(),
                                 [](const SubmittedStep& s) { return s.plan.use_count() == 1; });
  if (free == spare_.end()) {
    SubmittedStep step;
    step.plan = std::make_shared<BatchPlan>();
    return step;
  }
  SubmittedStep step = std::move(*free);
  spare_.erase(free);
  step.plan->copies.clear();
  return step;
}

void Scheduler::recycle(SubmittedStep step) {
  step.work.clear();
  step.sampled.clear();
  step.named.clear();
  step.deferred.clear();
  if (spare_.size() >= kSparePlans) spare_.erase(spare_.begin());
  spare_.push_back(std::move(step));
}

namespace {

// A batch grows and shrinks by a few from step to step; what leaves it is put aside with its vectors.
void resize_sequences(SubmittedStep& step, size_t count) {
  std::vector<PlannedSequence>& sequences = step.plan->sequences;
  for (; sequences.size() > count; sequences.pop_back()) step.spare.push_back(std::move(sequences.back()));
  for (; sequences.size() < count && !step.spare.empty(); step.spare.pop_back())
    sequences.push_back(std::move(step.spare.back()));
  sequences.resize(count);
}

constexpr size_t kSpareJoins = 8;  // a plan; each has its sequence's whole history

void put_aside_joins(SubmittedStep& step) {
  std::vector<PlannedJoin>& joins = step.plan->joins;
  for (PlannedJoin& join : joins) {
    if (step.spare_joins.size() == kSpareJoins) break;
    join.sampling.reset();
    step.spare_joins.push_back(std::move(join));
  }
  joins.clear();
}

// Than was kept free for it, and not because it has taken that: its list is full and its own from here on, as a beam's is that has
// copied what it shared, or the chunk beside its window is the last or the next a smaller one.
bool will_take_less(const PlannedWork& work, const PlannedSequence& planned) {
  const bool has_copied = work.sequence->group->is_beam &&
                          planned.num_unchanged_blocks < static_cast<int32_t>(planned.block_table.size());
  const bool fills_no_more = work.overwrites && (work.first == work.list_before || has_copied);
  return fills_no_more || (work.sequence->group->traits.slides && work.count > 1);
}

}  // namespace

void Scheduler::name(Sequence& sequence, SubmittedStep& step) {
  ++sequence.num_in_flight;
  step.named.push_back(&sequence);
}

std::shared_ptr<const BatchPlan> Scheduler::submit() {
  SubmittedStep& step = in_flight_.back();
  BatchPlan& plan = *step.plan;
  plan.step = next_step_++;
  put_aside_joins(step);
  plan.leaves.swap(leaves_);
  leaves_.clear();
  plan.forks.swap(policy_forks_);
  policy_forks_.clear();
  step.deferred.insert(step.deferred.end(), idle_deferred_.begin(), idle_deferred_.end());
  idle_deferred_.clear();
  resize_sequences(step, draft_.size());
  step.work.swap(draft_);
  for (size_t i = 0; i < step.work.size(); ++i) {
    PlannedWork& work = step.work[i];
    fill_sequence(work, plan.sequences[i], step);
    work.sequence->num_planned = work.first + work.count;
    if (work.cut >= 0) work.sequence->list_cut = true;
    if (will_take_less(work, plan.sequences[i])) ++room_epoch_;
    count_policy_work(work);
    work.sequence->group->kv.copies_on_write += work.copied ? 1 : 0;
    if (work.sample) fill_samples(work, plan.sequences[i], step);
  }
  return step.plan;
}

void Scheduler::fill_sequence(const PlannedWork& work, PlannedSequence& planned, SubmittedStep& step) {
  Sequence& s = *work.sequence;
  planned.sequence = s.id;
  planned.first_position = work.first;
  planned.list_length_before = work.list_before;
  planned.tokens.resize(static_cast<size_t>(work.count));
  if (work.first >= s.num_tokens())
    planned.tokens.front() = kSampledLastStep;
  else if (work.count == 1)  // as most have: no call to copy one
    planned.tokens.front() = s.tokens[work.first];
  else
    std::copy_n(s.tokens.begin() + work.first, work.count, planned.tokens.begin());
  planned.block_table.assign(s.table.blocks().begin(), s.table.blocks().end());
  planned.num_unchanged_blocks = s.table.num_unchanged();
  s.table.taken();
  planned.samples.clear();
  planned.prompt_logprobs = s.group->wants_prompt_logprobs() ? s.group->sampling->prompt_logprobs : -1;
  const int32_t end = work.first + work.count;
  planned.next_prompt_token = end < s.num_prompt_tokens ? s.tokens[end] : -1;
  planned.policy = s.group->policy;
  planned.num_prompt_tokens = s.num_prompt_tokens;
  planned.policy_memory = std::max<int64_t>(s.group->policy_memory, 0);
  planned.list_room = s.group->traits.row_logits ? list_room(s.group->policy, s.group->max_total_tokens) : 0;
  planned.overwrites = work.overwrites;
  planned.cut_source.clear();
  if (work.cut >= 0) planned.cut_source = std::move(draft_cuts_[static_cast<size_t>(work.cut)]);
  planned.dump_kv = s.group->dump_kv;
  name(s, step);
}

void Scheduler::fill_samples(PlannedWork& work, PlannedSequence& planned, SubmittedStep& step) {
  Sequence& first = *work.sequence;
  SequenceGroup& group = *first.group;
  work.forks = !group.forked && !group.is_beam && group.num_slots() > 1;
  add_sample(first, planned, step);
  if (!work.forks) return;
  group.forked = true;
  ++room_epoch_;  // what they may still take is less than was kept free
  for (int32_t i = 1; i < group.num_slots(); ++i) {
    Sequence& sample = fork(first);
    name(sample, step);
    add_sample(sample, planned, step);
  }
  measure(group);
}

void Scheduler::add_sample(Sequence& s, PlannedSequence& planned, SubmittedStep& step) {
  const SequenceGroup& group = *s.group;
  PlannedSample& sample = planned.samples.emplace_back();
  sample.sequence = s.id;
  sample.position = planned.first_position + static_cast<int32_t>(planned.tokens.size());
  sample.beam = group.is_beam;
  sample.top_candidates = std::max(group.sampling->logprobs, 0);
  if (sample.beam)
    sample.top_candidates =
        std::max(sample.top_candidates, beam_candidates(group.sampling->beam_width, group.end_ids.size()));
  else
    ++s.num_pending;
  join(s, step);
  step.sampled.push_back(&s);
}

void Scheduler::join(Sequence& s, SubmittedStep& step) {
  if (s.joined) return;
  s.joined = true;
  PlannedJoin& join = step.plan->joins.emplace_back();
  if (!step.spare_joins.empty()) {
    join = std::move(step.spare_joins.back());
    step.spare_joins.pop_back();
  }
  join.sequence = s.id;
  join.sampling = s.group->sampling;
  join.seed = s.seed;
  join.history = s.tokens;
  join.num_prompt_tokens = s.num_prompt_tokens;
  join.eos_token_ids = s.group->eos_token_ids;
}

}  // namespace quire
