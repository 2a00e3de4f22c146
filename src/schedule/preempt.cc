// What happens when nothing can run and nothing is under way: somebody gives way, or the request that cannot
// run even alone fails. Preemption is by recompute: the blocks go back (published, so they may still be
// there), and prompt and output are run again later. Only ever called with no step submitted, so no victim is
// in one.
#include <algorithm>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

// The request that wants to run, first in order, and found no blocks or no slot.
SequenceGroup* Scheduler::someone_blocked() const {
  for (const Sequence* s : running_)
    if (!s->group->paused && (wants_decode(*s) || prefill_goal(*s) > s->num_planned)) return s->group;
  if (const Sequence* back = first_preempted()) return back->group;
  return next_waiting();
}

// Paused ones first (their reader does not keep up), then the lowest priority, latest arrived, last sample. Never one whose policy
// would keep other tokens if it ran again: admission has reserved all that it will need.
Sequence* Scheduler::victim() const {
  Sequence* last = nullptr;
  for (auto s = running_.rbegin(); s != running_.rend(); ++s) {
    if (!(*s)->group->traits.recompute_safe) continue;
    if ((*s)->group->paused) return *s;
    if (last == nullptr) last = *s;
  }
  return last;
}

// One sequence, or one request's beams, which give way together: nobody is left to take the blocks from.
bool Scheduler::is_alone(const Sequence& s) const {
  const auto same = [&](const Sequence* r) { return r == &s || (s.group->is_beam() && r->group == s.group); };
  return std::all_of(running_.begin(), running_.end(), same);
}

bool Scheduler::make_progress(int64_t now_us, Outcome& out) {
  SequenceGroup* blocked = someone_blocked();
  if (blocked == nullptr) return false;
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
  measure(*s.group);
  unpark_waiters(s, true);
  publish(s, std::min(s.num_computed, s.num_tokens()), now_us);
  cache_.release(std::move(s.table), now_us);
  s.num_planned = s.num_computed = s.num_published = 0;
  if (s.joined) leaves_.push_back(s.id);
  s.joined = false;
  std::erase(running_, &s);
  s.state = SequenceState::kPreempted;
  const auto before = [](const Sequence* a, const Sequence* b) { return runs_before(*a, *b); };
  preempted_.insert(std::upper_bound(preempted_.begin(), preempted_.end(), &s, before), &s);
  ++room_epoch_;
  ++counters_.preemptions;
}

}  // namespace quire
