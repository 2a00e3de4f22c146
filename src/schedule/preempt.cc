// What happens when nothing can run and nothing is under way: somebody gives way, or the request that cannot
// run even alone fails. By recompute: the blocks go back (published, so they may still be there), and prompt
// and output are run again later. By swap: they go to the host (swap.cc). Only ever called with no step
// submitted and no copy under way, so no victim is in one.
#include <algorithm>
#include <limits>
#include <tuple>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

// The request that wants to run, first in order, and found no blocks or no slot.
SequenceGroup* Scheduler::someone_blocked() const {
  for (const Sequence* s : running_)
    if (!s->group->paused && !s->copying && (wants_decode(*s) || prefill_goal(*s) > s->num_planned))
      return s->group;
  if (const Sequence* back = first_preempted()) return back->group;
  return next_waiting();
}

// None: its policy would keep other tokens if it ran again, and the host has no room for it. Admission has
// reserved all that it will need.
std::optional<Scheduler::Means> Scheduler::cheapest_means(const Sequence& s) const {
  const bool may_recompute = s.group->traits.recompute_safe;
  if (!can_swap(s)) return may_recompute ? std::optional(Means::kRecompute) : std::nullopt;
  const int64_t bytes = s.table.num_blocks() * cache_.spec().groups.front().block_bytes();
  const bool is_cheaper =
      swap_cost_us(limits_.costs, bytes) <= recompute_cost_us(limits_.costs, s.num_computed);
  const bool swaps = !may_recompute || limits_.preemption_mode == PreemptionMode::kSwap || is_cheaper;
  return swaps ? Means::kSwap : Means::kRecompute;
}

// Of the blocks that nobody else holds: a sequence that shares all it has gives no room.
double Scheduler::cost_per_block_freed(const Sequence& s) const {
  const auto freed = std::count_if(s.table.blocks().begin(), s.table.blocks().end(),
                                   [&](BlockId b) { return cache_.num_holders(b) == 1; });
  if (freed == 0) return std::numeric_limits<double>::infinity();
  const int64_t bytes = s.table.num_blocks() * cache_.spec().groups.front().block_bytes();
  const double us = *cheapest_means(s) == Means::kSwap ? swap_cost_us(limits_.costs, bytes)
                                                       : recompute_cost_us(limits_.costs, s.num_computed);
  return us / static_cast<double>(freed);
}

bool Scheduler::is_first(const Sequence& s) const {
  return &s == running_.front() || (s.group->is_beam() && s.group == running_.front()->group);
}

// Paused ones first (their reader does not keep up), then of the lowest priority whoever gave way least
// often, of these the cheapest for what it frees, of equals the latest arrived, last sample. The first in
// order only if there is no other: so it always comes to its end, and nobody gives way twice before all
// others of its priority once.
Sequence* Scheduler::victim() const {
  for (auto s = running_.rbegin(); s != running_.rend(); ++s)
    if ((*s)->group->paused && cheapest_means(**s)) return *s;
  Sequence* best = nullptr;
  std::tuple<int32_t, double> least;
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    Sequence* s = *it;
    if (!cheapest_means(*s)) continue;
    if (best != nullptr && (is_first(*s) || s->group->rank() != best->group->rank())) break;
    const std::tuple key(s->num_preempted, cost_per_block_freed(*s));
    if (best != nullptr && key >= least) continue;
    best = s;
    least = key;
  }
  return best;
}

// One sequence, or one request's beams, which give way together: nobody is left to take the blocks from.
bool Scheduler::is_alone(const Sequence& s) const {
  const auto same = [&](const Sequence* r) { return r == &s || (s.group->is_beam() && r->group == s.group); };
  return std::all_of(running_.begin(), running_.end(), same);
}

bool Scheduler::make_progress(int64_t now_us, Outcome& out) {
  SequenceGroup* blocked = someone_blocked();
  if (blocked == nullptr) return false;
  // Nobody's blocks would help: those that have it go on, or are paused.
  if (blocked->state == GroupState::kWaiting && waits_for_policy_memory(*blocked)) return false;
  Sequence* v = victim();
  if (v == nullptr && !running_.empty()) return false;  // they are paused, and keep what they have
  if (v == nullptr || (is_alone(*v) && v->group == blocked)) {
    end_group(
        *blocked, FinishReason::kFailed,
        error(Code::kResourceExhausted, fmt::format("the request cannot run even alone: it needs more than "
                                                    "the cache's {} blocks of {} tokens (kv_cache_bytes)",
                                                    cache_.num_blocks(), block_tokens_)),
        now_us, out);
    return true;
  }
  if (v->group->is_beam()) {
    const std::vector<Sequence*> all = running_;
    for (Sequence* s : all)
      if (s->group == v->group) preempt(*s, now_us);
  } else {
    preempt(*v, now_us);
  }
  reserve_ratio_ = std::min(1.0, reserve_ratio_ + limits_.reserve.rise);
  return true;
}

void Scheduler::preempt(Sequence& s, int64_t now_us) {
  check(s.num_in_flight == 0 && s.num_pending == 0, "a victim is in no submitted step");
  const Means means = *cheapest_means(s);
  const int32_t computed = std::min(s.num_computed, s.num_tokens());
  measure(*s.group);
  unpark_waiters(s, true);
  leave_running(s);
  ++s.num_preempted;
  ++counters_.preemptions;
  if (means == Means::kSwap) {
    // The tail stays its own: published, it would take a copy to go on.
    publish(s, computed / block_tokens_ * block_tokens_, now_us);
    return swap_out(s);
  }
  publish(s, computed, now_us);
  write_behind(s, now_us);
  cache_.release(std::move(s.table), now_us);
  forget_computed(s);
}

void Scheduler::leave_running(Sequence& s) {
  std::erase(running_, &s);
  s.state = SequenceState::kPreempted;
  const auto before = [](const Sequence* a, const Sequence* b) { return runs_before(*a, *b); };
  preempted_.insert(std::upper_bound(preempted_.begin(), preempted_.end(), &s, before), &s);
}

}  // namespace quire
