// Invariant 12: who may stand still. Reckoned from what lists hold and need, and not by the scheduler's own sums.
#include <fmt/format.h>

#include <algorithm>

#include "src/engine/engine_core.h"
#include "src/engine/invariants.h"

namespace quire {
namespace {

// It would keep other tokens if it ran again.
bool has_to_keep(const SequenceGroup& group) {
  return group.paused && !group.traits.recompute_safe;
}

// With so many free blocks a sequence goes on, or comes in: whatever it shares, and whatever it has to copy.
int64_t blocks_enough(const Sequence& s, BlockSize size) {
  if (s.running()) return 2;
  return std::max<int64_t>(size.blocks_for(s.num_tokens() + 1), s.swapped.num_blocks()) + 2;
}

int64_t blocks_enough(const SequenceGroup& group, BlockSize size) {
  int64_t blocks = 0;
  for (const auto& s : group.sequences)
    if (!s->finished()) blocks += blocks_enough(*s, size);
  if (group.forked || group.num_slots() == 1) return blocks;
  // Those that are still to fork take a tail each, under a window a list.
  return group.traits.drops_tokens ? blocks * group.num_slots() : blocks + group.num_slots();
}

// With what it holds, for room. Beams that came in by halves do not: they hold it in vain.
bool waits_for_room(const SequenceGroup& group) {
  const auto is_out = [](const auto& s) { return s->state == SequenceState::kPreempted; };
  return !group.paused && !(group.is_beam && std::ranges::any_of(group.sequences, is_out));
}

// What a reader that has stopped was given of the policies' memory it keeps, on the host too.
bool keeps_policy_memory(const SequenceGroup* group) {
  return group->state == GroupState::kAdmitted && group->paused && group->policy_memory >= 0;
}

}  // namespace

// Those who could not give way again need all their bound beside the readers', and are left out; so are those outside while
// somebody waits inside for want of room, with what it holds.
std::optional<std::string> check_standing(const EngineCore& core) {
  const Scheduler& scheduler = core.scheduler();
  const std::vector<const SequenceGroup*> groups = scheduler.groups();
  bool kept = false, waits_inside = false;
  int32_t slots = scheduler.limits().max_sequences;
  int64_t standing = 0;
  size_t aside = 0;
  const bool memory_is_kept = std::ranges::any_of(groups, keeps_policy_memory);
  for (const SequenceGroup* group : groups) {
    if (group->state == GroupState::kEnded) continue;
    standing += group->paused || (group->waits_for_memory && memory_is_kept) ? 0 : 1;
    aside += group->aside ? 1 : 0;
    if (!group->some_run()) continue;
    kept = kept || has_to_keep(*group);
    waits_inside = waits_inside || waits_for_room(*group);
    slots -= group->slots_in_use();
  }
  if (standing > 0 && !kept)
    return fmt::format("invariant 12: {} requests stand still, and no paused one has to keep what it has",
                       standing);
  const int64_t available = scheduler.cache().num_available();
  for (const SequenceGroup* group : groups) {
    const bool could = group->state != GroupState::kEnded && !group->paused && group->traits.recompute_safe;
    if (!could || aside >= Scheduler::kMaxAside || group->parked_on != nullptr) continue;
    if (waits_inside && !group->some_run()) continue;
    const int32_t has = group->some_run() ? group->slots_in_use() : 0;
    const int64_t blocks = blocks_enough(*group, scheduler.cache().block_size());
    if (blocks > available || group->slots_wanted() > slots + has) continue;
    return fmt::format(
        "invariant 12: request {} stands still beside readers that keep what they have; it has {} of {} "
        "slots, and "
        "{} blocks are free, of which {} are enough for it",
        group->request, group->slots_wanted(), slots + has, available, blocks);
  }
  return {};
}

}  // namespace quire
