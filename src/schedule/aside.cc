// Who steps aside. Nobody is overtaken for want of room or of slots while others run, who bring some. But where only
// readers that have stopped run, and keep what they have, what they leave over may be too little for whoever is next and
// enough for those behind: it lets them pass until room is given back, and stands in line again then.
#include <algorithm>

#include "src/schedule/scheduler.h"

namespace quire {

// In admit()'s order.
Sequence* Scheduler::first_outside() const {
  Sequence* back = first_preempted();
  SequenceGroup* next = next_waiting();
  if (back != nullptr && (next == nullptr || back->group->rank() <= next->rank())) return back;
  return next == nullptr ? nullptr : next->sequences.front().get();
}

// Beams that run while others of theirs are outside do nothing but wait for those.
bool Scheduler::only_stopped_run(const SequenceGroup* outside) const {
  const auto stands = [&](const Sequence* r) {
    return r->group->paused || (r->group == outside && outside->is_beam);
  };
  return !running_.empty() && std::ranges::all_of(running_, stands);
}

// It could not give way again: were its reader to stop too, and so on with the next, those who stepped aside would wait for
// ever.
bool Scheduler::must_not_pass(const SequenceGroup& group) const {
  return !aside_.empty() && !group.traits.recompute_safe;
}

// With nothing to plan, no step and no copy under way, and nobody who gives way.
bool Scheduler::step_aside() {
  Sequence* blocked = aside_.size() < kMaxAside ? first_outside() : nullptr;
  if (blocked == nullptr || !only_stopped_run(blocked->group)) return false;
  SequenceGroup& group = *blocked->group;
  if (group.state == GroupState::kWaiting) {
    queue_.step_out(group);
    group.parked = true;
  }
  group.aside = true;
  aside_.push_back(&group);
  aside_epoch_ = room_epoch_;
  return true;
}

void Scheduler::come_back() {
  if (only_stopped_run()) blocked_ = SequenceId{};  // nobody gives room back: it is tried again each time
  for (SequenceGroup* group : aside_) {
    group->aside = false;
    if (group->state != GroupState::kWaiting) continue;
    group->parked = group->paused;
    if (!group->parked) queue_.push(*group);
  }
  aside_.clear();
  aside_epoch_ = room_epoch_;
}

}  // namespace quire
