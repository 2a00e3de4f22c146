// Preemption that keeps what was computed: a sequence's blocks go to host memory and come back as they were.
// Sampler and policy states stay in the executor meanwhile, so that what follows is what would have followed.
// A copy under way counts as a submitted step does (num_in_flight): nothing of its sequence is given back
// before its end is told by transferred().
#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

// Beams share blocks and sample together: one that came back alone could do nothing but hold room.
bool Scheduler::can_swap(const Sequence& s) const {
  return limits_.preemption_mode != PreemptionMode::kRecompute && !s.group->is_beam() && !s.table.empty() &&
         s.table.num_blocks() <= cache_.swap_pool().num_free();
}

void Scheduler::swap_out(Sequence& s) {
  std::vector<TierCopy> copies;
  check(cache_.swap_out(s.table, s.swapped, copies), "the host has the room that it was asked for");
  s.swapped_computed = s.num_computed;
  s.num_planned = s.num_computed = s.num_published = 0;
  transfers_.swap_out(s, std::move(copies));
  ++counters_.swap_outs;
}

// A place among the running ones, from now on if all its blocks are still on the device, else once they are
// there.
bool Scheduler::bring_back(Sequence& s, int64_t now_us) {
  BlockTable table = cache_.swap_in_what_stayed(s.swapped, now_us);
  const int32_t stayed = table.length() / block_tokens_ * block_tokens_;
  std::vector<TierCopy> copies;
  s.num_planned = s.num_computed = s.swapped_computed;
  if (!make_room_for(s, table, now_us) || !cache_.swap_in_the_rest(s.swapped, table, now_us, copies)) {
    s.num_planned = s.num_computed = 0;
    cache_.release(std::move(table), now_us);
    blocked_ = s.id;
    blocked_epoch_ = room_epoch_;
    return false;
  }
  s.num_published = s.group->share_prefix ? stayed : 0;
  s.table = std::move(table);
  ++counters_.swap_ins;
  if (copies.empty())
    cache_.discard(std::move(s.swapped));
  else
    transfers_.swap_in(s, std::move(copies));
  return true;
}

std::vector<BlockTransfer> Scheduler::take_transfers() {
  return transfers_.take_new();
}

void Scheduler::transferred(const TransferEnd& end, int64_t now_us, Outcome& out) {
  const TierTransfers::Ended ended = transfers_.end(end, now_us);
  ++room_epoch_;
  if (ended.sequence == nullptr) return sweep();
  Sequence& s = *ended.sequence;
  s.group->cached_tokens += static_cast<int32_t>(ended.hit_tokens);
  counters_.cached_tokens += ended.hit_tokens;
  // Of what did not arrive nothing is published.
  if (!end.status && ended.direction == TransferDirection::kToDevice) s.num_computed = 0;
  if (s.num_in_flight == 0 && s.finished()) {
    retire(s, now_us);
  } else if (!end.status) {
    // Without what was lost the rest of its prefix can be had: it asks again. What failed otherwise would again.
    s.skips_tiers = s.skips_tiers || (ended.is_fetch && ended.blocks_lost == 0);
    if (!ended.is_fetch) ++counters_.swap_failures;
    lose_swapped(s, end.status.error(), now_us, out);
  } else if (ended.direction == TransferDirection::kToDevice) {
    cache_.discard(std::move(s.swapped));
  }
  sweep();
}

// What was copied is lost. It is computed again where that gives the same; else the request cannot go on.
void Scheduler::lose_swapped(Sequence& s, const Error& error, int64_t now_us, Outcome& out) {
  const bool nothing_ran = s.running() && s.swapped.empty();  // it was to start behind a tier's prefix
  if (!s.group->traits.recompute_safe && !nothing_ran)
    return end_group(*s.group, FinishReason::kFailed, error, now_us, out);
  if (s.running()) {
    cache_.release(std::move(s.table), now_us);
    unpark_waiters(s, true);
    leave_running(s);
  }
  forget_computed(s);
}

// It will run from the start: its states in the executor, and what the host has of it, are of no use.
void Scheduler::forget_computed(Sequence& s) {
  cache_.discard(std::move(s.swapped));
  s.num_planned = s.num_computed = s.num_published = s.swapped_computed = 0;
  if (s.joined) leaves_.push_back(s.id);
  s.joined = false;
  ++room_epoch_;
}

std::vector<const SwappedList*> Scheduler::swapped() const {
  std::vector<const SwappedList*> all;
  for (const auto& [id, group] : groups_)
    for (const auto& s : group->sequences)
      if (!s->swapped.empty()) all.push_back(&s->swapped);
  return all;
}

}  // namespace quire
