// A request's ways in and out: add, pause, finish, end; and who holds what until the last step that names it
// has run.
#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

Scheduler::Scheduler(const ScheduleLimits& limits, KvCache& cache, QueueBudget& queue_budget)
    : limits_(limits),
      cache_(cache),
      queue_budget_(queue_budget),
      block_tokens_(cache.block_tokens()),
      size_(cache.block_size()),
      transfers_(cache, limits.costs),
      policy_memory_(limits.policy_memory.bytes),
      reserve_ratio_(limits.reserve.least) {
  in_flight_.reserve(kMaxStepsInFlight);
  check(limits.max_step_tokens >= limits.max_sequences, "a step has a token for every running sequence");
  check(limits.max_sequences > 0 && limits.max_prefill_chunk_tokens > 0, "limits are positive");
}

// Ends with the engine; what its tables hold is the cache's business no more.
Scheduler::~Scheduler() = default;

SequenceGroup* Scheduler::find_group(RequestId request) {
  const auto it = groups_.find(request);
  return it == groups_.end() ? nullptr : it->second.get();
}

const SequenceGroup* Scheduler::find(RequestId request) const {
  const auto it = groups_.find(request);
  return it == groups_.end() ? nullptr : it->second.get();
}

void Scheduler::add(std::unique_ptr<SequenceGroup> group) {
  SequenceGroup& g = *group;
  const bool is_new = groups_.emplace(g.request, std::move(group)).second;
  check(is_new, "a request is added once");
  ++num_waiting_;
  if (limits_.look_ahead > 0) look_up(g, g.times.arrival_us);
  if (g.reads_prefix())
    g.below_seen = cache_.lookup_below(g.ns, g.sequences.front()->tokens, CacheTier::kDisk);
  queue_.enter(g);
  queue_.push(g);
}

void Scheduler::set_paused(RequestId request, bool paused, int64_t now_us) {
  SequenceGroup* group = find_group(request);
  if (group == nullptr || group->state == GroupState::kEnded || group->paused == paused) return;
  group->paused = paused;
  group->times.paused_us = now_us;
  if (group->state == GroupState::kAdmitted) {
    ++room_epoch_;  // who runs beside them says what those outside need to come in
    if (paused)
      for (const auto& s : group->sequences) unpark_waiters(*s, true);
    return;
  }
  if (paused && !group->parked) {
    queue_.step_out(*group);
    group->parked = true;
  } else if (paused) {
    leave_memory_waiters(*group);
  } else if (!paused && group->parked && group->parked_on == nullptr && !group->aside) {
    group->parked = false;
    queue_.push(*group);
  }
}

void Scheduler::leave_waiting(SequenceGroup& group) {
  check(group.state == GroupState::kWaiting, "a request leaves the queue once");
  if (!group.parked) queue_.erase(group);
  if (Sequence* leader = group.parked_on; leader != nullptr) {
    std::erase_if(leader->waiters, [&](const PrefixWaiter& w) { return w.group == &group; });
    if (leader->finished()) transfers_.stop_unwanted();
  }
  leave_memory_waiters(group);
  group.parked = false;
  group.parked_on = nullptr;
  --num_waiting_;
  queue_.end_wait(group);
  queue_budget_.give_back(group.num_prompt_tokens());
}

void Scheduler::unpark_waiters(Sequence& sequence, bool all) {
  if (sequence.waiters.empty()) return;
  std::erase_if(sequence.waiters, [&](const PrefixWaiter& w) {
    if (!all && sequence.num_published < w.until_published) return false;
    w.group->parked_on = nullptr;
    w.group->parked = w.group->paused;
    if (!w.group->parked) queue_.push(*w.group);
    return true;
  });
}

void Scheduler::insert_running(Sequence& sequence) {
  const auto before = [](const Sequence* a, const Sequence* b) { return runs_before(*a, *b); };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, before), &sequence);
  sequence.state = SequenceState::kRunning;
}

Sequence& Scheduler::fork(Sequence& source) {
  SequenceGroup& group = *source.group;
  if (spare_beams_.empty()) spare_beams_.push_back(std::make_unique<Sequence>());
  Sequence& s = *group.sequences.emplace_back(std::move(spare_beams_.back()));
  spare_beams_.pop_back();
  s.id = next_sequence_id();
  s.group = &group;
  s.index = group.next_index++;
  s.seed = seed_of_sample(source.seed, s.index);
  s.tokens.reserve(source.tokens.capacity());  // it goes on as its source would have
  s.tokens = source.tokens;
  s.num_prompt_tokens = source.num_prompt_tokens;
  s.table = cache_.fork(source.table);
  s.num_planned = source.num_planned;
  s.num_computed = source.num_computed;
  s.num_published = source.num_published;
  s.list_cut = source.list_cut;
  s.sum_logprob = source.sum_logprob;
  s.beam_logprobs.reserve(source.beam_logprobs.capacity());
  s.beam_logprobs = source.beam_logprobs;
  s.beam_tops = source.beam_tops;
  insert_running(s);
  return s;
}

std::vector<BlockId>& Scheduler::deferred_now() {
  return in_flight_.empty() ? idle_deferred_ : in_flight_.back().deferred;
}

void Scheduler::publish(Sequence& sequence, int32_t num_tokens, int64_t now_us) {
  if (!sequence.group->share_prefix) return;
  num_tokens = publishable(sequence, num_tokens);
  if (num_tokens <= sequence.num_published) return;
  const Retention retention = retention_of(sequence, now_us);
  forks_.clear();
  if (sequence.num_published < sequence.num_prompt_tokens)  // they share no more than that
    for (const auto& s : sequence.group->sequences)
      if (s.get() != &sequence) forks_.push_back(&s->table);
  cache_.publish(sequence.group->ns, sequence.tokens, sequence.table, num_tokens, retention, now_us,
                 deferred_now(), forks_);
  sequence.num_published = num_tokens;
}

void Scheduler::retire(Sequence& sequence, int64_t now_us) {
  check(sequence.finished() && sequence.num_in_flight == 0, "a retired sequence is finished and in no step");
  if (!sequence.group->is_beam)
    publish(sequence, std::min(sequence.num_computed, sequence.num_tokens()), now_us);
  // At each step some beams are dropped, and what is to be written is their prompt.
  const auto has_ended = [](const auto& s) { return s->finished(); };
  if (!sequence.group->is_beam || std::ranges::all_of(sequence.group->sequences, has_ended))
    write_behind(sequence, now_us);
  unpark_waiters(sequence, true);
  cache_.release(std::move(sequence.table), now_us);
  lose_tail(sequence);
  cache_.discard(std::move(sequence.swapped));
  if (sequence.joined || sequence.group->traits.overwrites_slots) leaves_.push_back(sequence.id);
  sequence.joined = false;
  std::erase_if(policy_forks_, [&](const PolicyFork& fork) { return fork.target == sequence.id; });
  ++room_epoch_;
}

void Scheduler::drop(Sequence& sequence, int64_t now_us) {
  if (sequence.running()) {
    std::erase(running_, &sequence);
    ++room_epoch_;  // nothing more is kept free for it
  }
  if (sequence.state == SequenceState::kPreempted) std::erase(preempted_, &sequence);
  sequence.state = SequenceState::kFinished;
  // Who waits for a prefix that is on its way whole still gets it.
  if (!sequence.copying) unpark_waiters(sequence, true);
  if (sequence.copying || sequence.tail_comes) transfers_.stop_unwanted();
  if (sequence.num_in_flight == 0) retire(sequence, now_us);
}

namespace {

// What lies on the host counts: it need not be computed again.
int32_t computed(const Sequence& s) {
  return std::max(s.num_computed, s.swapped_computed);
}

}  // namespace

void Scheduler::finish(Sequence& sequence, FinishReason reason, int64_t now_us, Outcome& out,
                       std::optional<TokenId> stop_token) {
  SequenceGroup& group = *sequence.group;
  measure(group);
  sequence.finish = reason;
  SequenceEnd& end = out.ends.emplace_back();
  end.request = group.request;
  end.index = sequence.index;
  end.finish = reason;
  end.stop_token = stop_token;
  end.num_computed = computed(sequence);
  end.kv_dump = std::move(sequence.kv_dump);
  drop(sequence, now_us);
  const bool done = std::all_of(group.sequences.begin(), group.sequences.end(),
                                [](const auto& s) { return s->finished(); });
  if (done) close_group(group, reason, now_us, out);
}

void Scheduler::end_group(SequenceGroup& group, FinishReason reason, const std::optional<Error>& error,
                          int64_t now_us, Outcome& out) {
  if (group.state == GroupState::kWaiting) leave_waiting(group);
  measure(group);
  const auto report = [&](int32_t index, const Sequence& s) {
    SequenceEnd& end = out.ends.emplace_back();
    end.request = group.request;
    end.index = index;
    end.finish = reason;
    end.error = error;
    end.num_computed = computed(s);
    end.kv_dump = s.kv_dump;
  };
  const bool by_sequence = group.forked && !group.is_beam;
  if (!by_sequence)
    for (int32_t i = 0; i < group.num_reported(); ++i) report(i, *group.sequences.front());
  for (const auto& s : group.sequences) {
    if (s->finished()) continue;
    if (by_sequence) report(s->index, *s);
    s->finish = reason;
    drop(*s, now_us);
  }
  close_group(group, reason, now_us, out);
}

namespace {

double ms_since(int64_t start_us, int64_t then_us) {
  return then_us < 0
             ? -1
             : static_cast<double>(then_us - start_us) / 1e3;  // times 1e-3 would tell 87.58200000000001
}

}  // namespace

void Scheduler::close_group(SequenceGroup& group, FinishReason reason, int64_t now_us, Outcome& out) {
  RequestEnd& end = out.request_ends.emplace_back();
  end.request = group.request;
  end.finish = reason;
  end.prompt_tokens = group.num_prompt_tokens();
  end.cached_tokens = group.cached_tokens;
  end.output_tokens = group.num_output_tokens;
  end.kv = group.kv;
  end.kv.prefill_mode = prefill_mode_of(group.policy);
  end.timings.queued_ms = ms_since(group.times.arrival_us, group.times.first_step_us);
  end.timings.first_token_ms = ms_since(group.times.arrival_us, group.times.first_token_us);
  end.timings.total_ms = ms_since(group.times.arrival_us, now_us);
  group.state = GroupState::kEnded;
  if (group.aside) std::erase(aside_, &group);
  queue_.leave(group);
  ended_.push_back(&group);
}

void Scheduler::sweep() {
  std::erase_if(ended_, [&](SequenceGroup* group) {
    for (const auto& s : group->sequences)
      if (s->num_in_flight > 0) return false;
    give_back_policy_memory(*group);
    check(std::ranges::find(aside_, group) == aside_.end(), "who is gone stands nowhere aside");
    cache_.close_namespace(group->ns);
    groups_.erase(group->request);
    return true;
  });
  if (!in_flight_.empty() || idle_deferred_.empty()) return;
  give_back(idle_deferred_);
  idle_deferred_.clear();
}

// Among them may be what windows dropped and cuts left: room that whoever was blocked did not have.
void Scheduler::give_back(std::span<const BlockId> deferred) {
  if (deferred.empty()) return;
  cache_.release_deferred(deferred);
  ++room_epoch_;
}

bool Scheduler::end(RequestId request, FinishReason reason, std::optional<Error> error, int64_t now_us,
                    Outcome& out) {
  SequenceGroup* group = find_group(request);
  if (group == nullptr || group->state == GroupState::kEnded) return false;
  end_group(*group, reason, error, now_us, out);
  sweep();
  return true;
}

void Scheduler::stop(RequestId request, int32_t index, int64_t now_us, Outcome& out) {
  SequenceGroup* group = find_group(request);
  if (group == nullptr || group->state != GroupState::kAdmitted || group->is_beam) return;
  for (const auto& s : group->sequences)
    if (s->index == index && !s->finished() && s->num_output_tokens() > 0) {
      finish(*s, FinishReason::kStop, now_us, out);
      break;
    }
  sweep();
}

std::vector<const BlockTable*> Scheduler::tables() const {
  std::vector<const BlockTable*> all;
  for (const auto& [id, group] : groups_)
    for (const auto& s : group->sequences)
      for (const BlockTable* table : {&s->table, &s->tail})
        if (!table->empty()) all.push_back(table);
  transfers_.append_tables(all);
  return all;
}

std::vector<BlockId> Scheduler::deferred() const {
  std::vector<BlockId> all = idle_deferred_;
  for (const SubmittedStep& step : in_flight_)
    all.insert(all.end(), step.deferred.begin(), step.deferred.end());
  transfers_.append_deferred(all);
  return all;
}

std::vector<const SequenceGroup*> Scheduler::groups() const {
  std::vector<const SequenceGroup*> all;
  for (const auto& [id, group] : groups_) all.push_back(group.get());
  return all;
}

}  // namespace quire
