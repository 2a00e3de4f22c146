// Preemption that keeps what was computed: a sequence's blocks go to host memory and come back as they were.
// Sampler and policy states stay in the executor meanwhile, so that what follows is what would have followed.
// A copy under way counts as a submitted step does (num_in_flight): nothing of its sequence is given back
// before its end is told by transferred().
#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {

// What gives way and comes back with a sequence: those of its request that are in the same state. They share blocks, and
// beams sample together: one that came back alone could do nothing but hold room.
std::vector<Sequence*> Scheduler::together_with(Sequence& s) const {
  std::vector<Sequence*> all;
  for (const auto& sibling : s.group->sequences)
    if (sibling->state == s.state && sibling->swapped.empty() == s.swapped.empty() &&
        sibling->copying == s.copying)
      all.push_back(sibling.get());
  return all;
}

bool Scheduler::can_swap(std::span<Sequence* const> victims, int64_t num_blocks) const {
  const auto has_blocks = [](const Sequence* s) { return !s->table.empty(); };
  return limits_.preemption_mode != PreemptionMode::kRecompute && std::ranges::all_of(victims, has_blocks) &&
         num_blocks <= cache_.swap_pool().num_free();
}

void Scheduler::swap_out(std::span<Sequence* const> victims) {
  std::vector<const BlockTable*> tables;
  std::vector<SwappedList*> lists;
  for (Sequence* s : victims) {
    tables.push_back(&s->table);
    lists.push_back(&s->swapped);
  }
  std::vector<TierCopy> copies;
  check(cache_.swap_out(tables, lists, copies), "the host has the room that it was asked for");
  for (Sequence* s : victims) {
    s->swapped_computed = s->num_computed;
    s->num_planned = s->num_computed = s->num_published = 0;
    lose_tail(*s);
    ++counters_.swap_outs;
  }
  transfers_.swap_out(victims, std::move(copies));
}

// Places among the running ones, from now on if all their blocks are still on the device, else once they are
// there.
bool Scheduler::bring_back(std::span<Sequence* const> all, int64_t now_us) {
  std::vector<const SwappedList*> lists;
  std::vector<BlockTable> tables;
  for (Sequence* s : all) {
    lists.push_back(&s->swapped);
    tables.push_back(cache_.swap_in_what_stayed(s->swapped, now_us));
    s->num_planned = s->num_computed = s->swapped_computed;
  }
  std::vector<int32_t> stayed;
  for (const BlockTable& table : tables) stayed.push_back(table.length() / block_tokens_ * block_tokens_);
  std::vector<TierCopy> copies;
  const int64_t missing = make_room_for(all, blocks_to_bring_back(all, lists, tables), now_us);
  if (missing > 0 || !cache_.swap_in_the_rest(lists, tables, now_us, copies)) {
    for (Sequence* s : all) s->num_planned = s->num_computed = 0;
    for (BlockTable& table : tables) cache_.release(std::move(table), now_us);
    keep_out(all, std::max<int64_t>(1, missing));
    return false;
  }
  for (size_t i = 0; i < all.size(); ++i) {
    all[i]->num_published = all[i]->group->share_prefix ? stayed[i] : 0;
    cache_.count_use(tables[i], now_us);
    all[i]->table = std::move(tables[i]);
    if (copies.empty()) cache_.discard(std::move(all[i]->swapped));
    ++counters_.swap_ins;
  }
  if (!copies.empty()) transfers_.swap_in(all, std::move(copies));
  return true;
}

// What is shared on the host comes back once; beyond that each takes what it will take.
int64_t Scheduler::blocks_to_bring_back(std::span<Sequence* const> all,
                                        std::span<const SwappedList* const> lists,
                                        std::span<const BlockTable> tables) const {
  int64_t blocks = KvCache::blocks_to_swap_in(lists, tables);
  for (size_t i = 0; i < all.size(); ++i) {
    const int64_t missing = lists[i]->num_blocks() - tables[i].num_blocks();
    blocks += std::max<int64_t>(0, blocks_to_start(*all[i], tables[i]) - missing);
  }
  return blocks;
}

std::vector<BlockTransfer> Scheduler::take_transfers() {
  return transfers_.take_new();
}

void Scheduler::transferred(const TransferEnd& end, int64_t now_us, Outcome& out) {
  const TierTransfers::Ended ended = transfers_.end(end, now_us);
  ++room_epoch_;
  if (!ended.sequences.empty()) {
    ended.sequences.front()->group->cached_tokens += static_cast<int32_t>(ended.hit_tokens);
    counters_.cached_tokens += ended.hit_tokens;
  }
  // Those that have ended meanwhile go first: a failure below may end more, and those go by themselves.
  for (Sequence* s : ended.sequences) {
    // Of what did not arrive nothing is published.
    if (!end.status && ended.direction == TransferDirection::kToDevice && !ended.is_tail) s->num_computed = 0;
    if (s->finished() && s->num_in_flight == 0) retire(*s, now_us);
  }
  for (Sequence* s : ended.sequences)
    if (!s->finished()) take_in(*s, ended, end, now_us, out);
  sweep();
}

// Computing would have been quicker, or will be: what it had on the device is where it goes on.
void Scheduler::give_up_overdue(int64_t now_us) {
  if (now_us < transfers_.next_overdue_us()) return;
  for (Sequence* s : transfers_.give_up_overdue(now_us)) {
    s->skips_tiers = true;
    if (s->num_planned > s->table.length()) {  // it waited for all of it
      s->num_planned = s->num_computed = s->table.length();
      s->num_published = std::min(s->num_published, s->num_computed);
    }
    if (s->finished() && s->num_in_flight == 0) retire(*s, now_us);
  }
}

void Scheduler::take_in(Sequence& s, const TierTransfers::Ended& ended, const TransferEnd& end,
                        int64_t now_us, Outcome& out) {
  if (!end.status) {
    // Without what was lost the rest of its prefix can be had: it asks again. What failed otherwise would again.
    s.skips_tiers = s.skips_tiers || (ended.is_fetch && ended.blocks_lost == 0);
    if (ended.is_tail) return lose_tail(s);
    if (!ended.is_fetch) ++counters_.swap_failures;
    lose_swapped(s, end.status.error(), now_us, out);
  } else if (ended.direction == TransferDirection::kToDevice) {
    cache_.discard(std::move(s.swapped));
    // A beam runs no step of its own before its siblings have come, and they share what is published: one that was lost on
    // the way, and runs its prompt again, has it from those that were not.
    if ((ended.is_fetch && !ended.is_tail) || s.group->is_beam) publish_computed(s, now_us);
  }
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
  lose_tail(s);
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
