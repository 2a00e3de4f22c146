// What happens when nothing can run and nothing is under way: somebody gives way, or the request that cannot
// run even alone fails. By recompute: the blocks go back (published, so they may still be there), and prompt
// and output are run again later. By dropping the tail: only the last blocks go back, as many as others need,
// and what stood in them is run again. By swap: all go to the host (swap.cc). For room this is called with no
// step submitted and no copy that is not overdue; for a slot (make_slots) while both may be under way. Either way no victim is in one.
//
// A head that a waiting sequence has kept is nobody's before those who run or come in need it: it is shortened
// from its end on as soon as one of them is blocked, and before anybody else gives way. So heads never hold each
// other up.
#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/schedule/scheduler.h"

namespace quire {
namespace {

bool contains(std::span<Sequence* const> sequences, const Sequence* s) {
  return std::ranges::find(sequences, s) != sequences.end();
}

bool waits_for_beams(const Sequence& s) {
  const auto is_out = [](const auto& beam) { return beam->state == SequenceState::kPreempted; };
  return s.group->is_beam && std::ranges::any_of(s.group->sequences, is_out);
}

}  // namespace

// Who wants to run, first in order, and found no blocks or no slot. A beam whose sibling is out lacks nothing: it waits.
Sequence* Scheduler::someone_blocked() const {
  for (Sequence* s : running_) {
    if (s->group->paused || s->copying) continue;
    if (prefill_goal(*s) > s->num_planned || (wants_decode(*s) && !waits_for_beams(*s))) return s;
  }
  Sequence* back = first_preempted();
  const SequenceGroup* next = next_waiting();
  if (next == nullptr || (back != nullptr && back->group->rank() <= next->rank())) return back;
  return next->sequences.front().get();
}

double Scheduler::Offer::cost_per_block() const {
  return freed == 0 ? std::numeric_limits<double>::infinity() : cost_us / static_cast<double>(freed);
}

KvCache::Holding Scheduler::held_by(std::span<Sequence* const> victims) const {
  std::vector<const BlockTable*> tables;
  for (const Sequence* s : victims) tables.push_back(&s->table);
  return cache_.held_by(tables);
}

// The prompt that they share is run once.
double Scheduler::recompute_us(std::span<Sequence* const> victims) const {
  double us = 0;
  for (const Sequence* s : victims) {
    us += recompute_cost_us(limits_.costs, s->num_computed);
    if (s != victims.front())
      us -= recompute_cost_us(limits_.costs, std::min(s->num_computed, s->num_prompt_tokens));
  }
  return us;
}

// None: its policy would keep other tokens if it ran again, and the host has no room for it. Admission has
// reserved all that it will need.
std::optional<Scheduler::Offer> Scheduler::cheapest_offer(std::span<Sequence* const> victims,
                                                          int64_t needed) const {
  const KvCache::Holding holding = held_by(victims);
  std::optional<Offer> best;
  const auto consider = [&best](const Offer& offer) {
    if (!best || offer.cost_us < best->cost_us) best = offer;
  };
  if (can_swap(victims, holding.blocks)) {
    const int64_t bytes = holding.blocks * cache_.spec().groups.front().block_bytes();
    consider({.means = Means::kSwap, .cost_us = swap_cost_us(limits_.costs, bytes), .freed = holding.freed});
    if (limits_.preemption_mode == PreemptionMode::kSwap) return best;
  }
  if (!victims.front()->group->traits.recompute_safe) return best;
  if (const std::optional<Offer> tails = offer_tails(victims, needed)) consider(*tails);
  consider({.cost_us = recompute_us(victims), .freed = holding.freed});
  return best;
}

// As few of their last blocks as free what is needed, from the last sequence on: those that others hold or read free nothing.
// Of the others only what is no whole block goes. Not of beams, which run together or not at all, nor of a list that has
// lost tokens: what is left of it is no prefix.
std::optional<Scheduler::Offer> Scheduler::offer_tails(std::span<Sequence* const> victims,
                                                       int64_t needed) const {
  Offer offer{.means = Means::kDropTail, .cost_us = limits_.costs.step_us};
  offer.kept_tokens.resize(victims.size());
  for (size_t i = victims.size(); i-- > 0;) {
    const Sequence& s = *victims[i];
    if (s.group->is_beam || s.list_cut || s.table.next_position() != s.table.length()) return {};
    const std::vector<BlockId>& blocks = s.table.blocks();
    BlockId behind = kNoBlock;
    const auto comes_free = [&](BlockId block) {
      return cache_.num_holders(block) == 1 && !cache_.is_read(block, std::exchange(behind, block));
    };
    int32_t kept = s.num_computed / block_tokens_;
    offer.freed += std::count_if(blocks.rbegin(), blocks.rend() - kept, comes_free);
    for (; kept > 0 && offer.freed < needed && comes_free(blocks[kept - 1]); --kept) ++offer.freed;
    if (kept == 0) return {};
    offer.kept_tokens[i] = kept * block_tokens_;
    offer.cost_us += recompute_cost_us(limits_.costs, s.num_computed) -
                     recompute_cost_us(limits_.costs, offer.kept_tokens[i]);
  }
  return offer.freed < needed ? std::nullopt : std::optional(offer);
}

// Tokens that are left when blocks have gone from the end of a list until `needed` of them are free, or all are
// gone that nobody reads: what stands before one that is read is no room before that has ended.
int32_t Scheduler::head_that_frees(const BlockTable& table, int64_t needed, int64_t& freed) const {
  int32_t kept = table.num_blocks();
  BlockId behind = kNoBlock;
  for (freed = 0; kept > 0 && freed < needed; --kept) {
    const BlockId block = table.blocks()[kept - 1];
    if (cache_.is_read(block, std::exchange(behind, block))) break;
    freed += cache_.num_holders(block) == 1 ? 1 : 0;
  }
  return kept * block_tokens_;
}

// What the others need beyond what there is, as admission would reckon it: with less, they would be short
// again at once.
int64_t Scheduler::blocks_needed(const Sequence& blocked, std::span<Sequence* const> victims) const {
  int64_t needed = blocked.running() ? 0 : blocks_to_come(blocked, blocked.table);
  for (const Sequence* r : running_)
    if (!contains(victims, r)) needed += blocks_to_come(*r, r->table);
  return std::max<int64_t>(1, needed - cache_.num_available());
}

// Somebody beside this request could use the room that it gives: those whose reader has stopped take none.
bool Scheduler::others_run(const SequenceGroup& group) const {
  return std::ranges::any_of(running_,
                             [&](const Sequence* r) { return r->group != &group && !r->group->paused; });
}

// All of its request, since what they share is free only once all have gone. But samples that nobody else could use the
// room of make room for each other, one by one.
std::vector<Sequence*> Scheduler::gives_way_with(Sequence& s, const Sequence& blocked) const {
  const bool in_turn = !s.group->is_beam && s.group == blocked.group && !others_run(*s.group);
  return in_turn ? std::vector<Sequence*>{&s} : together_with(s);
}

// Paused ones first (their reader does not keep up), then of the lowest priority whoever gave way least
// often, of these the cheapest for what it frees, of equals the latest arrived, last sample. The first in
// order only if there is no other: so it always comes to its end, and nobody gives way twice before all
// others of its priority once. Not those of whom nothing could be had before a copy has ended that reads it.
std::optional<Scheduler::Victim> Scheduler::choose_victim(const Sequence& blocked) const {
  const auto offer_of = [&](std::span<Sequence* const> victims) {
    std::optional<Offer> offer = cheapest_offer(victims, blocks_needed(blocked, victims));
    const bool brings_none = offer && offer->freed == 0 && transfers_.may_give_room();
    if (brings_none && held_by(victims).read > 0) offer.reset();
    return offer;
  };
  for (auto s = running_.rbegin(); s != running_.rend(); ++s) {
    if (!(*s)->group->paused) continue;
    const std::vector<Sequence*> victims = gives_way_with(**s, blocked);
    if (const std::optional<Offer> offer = offer_of(victims)) return Victim{victims, *offer};
  }
  std::optional<Victim> best;
  std::tuple<int32_t, double> least;
  std::vector<Sequence*> victims;
  for (auto s = running_.rbegin(); s != running_.rend(); ++s) {
    if (contains(victims, *s)) continue;  // its sibling stood for it
    victims = gives_way_with(**s, blocked);
    const std::optional<Offer> offer = offer_of(victims);
    if (!offer) continue;
    if (best && (contains(victims, running_.front()) || (*s)->group->rank() != best->group().rank())) break;
    const std::tuple key((*s)->num_preempted, offer->cost_per_block());
    if (best && key >= least) continue;
    best = Victim{victims, *offer};
    least = key;
  }
  return best;
}

// The last in order of those that have been paused for long, all of it in no step and no copy. Beams only give way for room.
std::optional<Scheduler::Victim> Scheduler::idle_in_slot(int64_t now_us) const {
  const auto is_named = [](const auto& s) { return s->num_in_flight > 0 || s->num_pending > 0; };
  for (auto s = running_.rbegin(); s != running_.rend(); ++s) {
    const SequenceGroup& group = *(*s)->group;
    if (!group.paused || now_us - group.times.paused_us < limits_.max_paused_slot_us || group.is_beam)
      continue;
    if (std::ranges::any_of(group.sequences, is_named)) continue;
    const std::vector<Sequence*> victims = together_with(**s);
    if (const std::optional<Offer> offer = cheapest_offer(victims, 0)) return Victim{victims, *offer};
  }
  return {};
}

// Nobody is left to take the blocks from.
bool Scheduler::are_alone(std::span<Sequence* const> victims) const {
  return std::ranges::all_of(running_, [&](const Sequence* r) { return contains(victims, r); });
}

// Nobody else would have what it gives: those that run beside it are paused, and of those outside it is the first to
// come in. It would come back to where it was, and give way again.
bool Scheduler::gives_way_to_itself(const Victim& victim, const Sequence& blocked) const {
  const std::vector<Sequence*>& victims = victim.sequences;
  const bool waits_for_it = victim.group().is_beam && blocked.group == &victim.group();
  if (!contains(victims, &blocked) && !waits_for_it) return false;
  const auto takes_none = [&](const Sequence* r) { return r->group->paused || contains(victims, r); };
  if (!std::ranges::all_of(running_, takes_none)) return false;
  const Sequence* back = first_preempted();
  const bool is_other = back != nullptr && (back->group != &victim.group() || !victim.group().is_beam);
  if (is_other && runs_before(*back, *victims.front())) return false;
  const SequenceGroup* next = next_waiting();
  return next == nullptr || victim.group().rank() <= next->rank();
}

// Samples of one request, and nobody else, that have all of their blocks together: as one that is alone. Whoever gave
// way would free nothing, and come back to the same blocks.
bool Scheduler::shares_all_it_has(const Victim& victim, const Sequence& blocked) const {
  return victim.offer.freed == 0 &&
         std::ranges::all_of(running_, [&](const Sequence* r) { return r->group == blocked.group; });
}

// What admission kept free for those that run was too little. Not so where it kept nothing, since only readers that have
// stopped ran, nor where one of these gives way to somebody outside.
bool Scheduler::was_short(const Sequence& blocked, const Victim& victim) const {
  return blocked.running() && !blocked.group->took_all && !victim.group().took_all;
}

bool Scheduler::make_progress(int64_t now_us, Outcome& out) {
  Sequence* blocked = someone_blocked();
  if (blocked == nullptr) return false;
  // Nobody's blocks would help: those that have it go on, or are paused.
  if (blocked->group->state == GroupState::kWaiting && waits_for_policy_memory(*blocked->group)) return false;
  if (shorten_heads(*blocked, blocks_needed(*blocked, {}), now_us)) return true;
  const std::optional<Victim> victim = choose_victim(*blocked);
  if (!victim && !running_.empty()) return false;  // they are paused, and keep what they have
  if (!victim || (are_alone(victim->sequences) && &victim->group() == blocked->group) ||
      shares_all_it_has(*victim, *blocked)) {
    if (transfers_.may_give_room()) return false;
    end_group(*blocked->group, FinishReason::kFailed, cannot_run_alone(), now_us, out);
    return true;
  }
  if (gives_way_to_itself(*victim, *blocked)) return false;
  if (was_short(*blocked, *victim)) reserve_ratio_ = std::min(1.0, reserve_ratio_ + limits_.reserve.rise);
  transfers_.set_room_is_short(true);  // what is given is room, and no write's
  preempt(victim->sequences, victim->offer, now_us);
  return true;
}

Error Scheduler::cannot_run_alone() const {
  Error e =
      error(Code::kResourceExhausted,
            fmt::format("the request cannot run even alone: it needs more than the cache's {} blocks of {} "
                        "tokens (kv_cache_bytes)",
                        cache_.num_blocks(), block_tokens_));
  if (const int32_t hanging = transfers_.num_hanging(); hanging > 0) {
    e.message += fmt::format(
        ", less those of the copies to or from the tiers below that have not returned ({} now)", hanging);
    e.retry_delay_ms = kLongestTierWaitUs / 1000;
  }
  return e;
}

// All of them give way before any block goes: what they share goes once. What is swapped keeps its tail to itself:
// published, it would take a copy to go on. Beams publish no more than their prompt: their branches die young.
void Scheduler::preempt(std::span<Sequence* const> victims, const Offer& offer, int64_t now_us) {
  measure(*victims.front()->group);
  for (Sequence* s : victims) {
    check(s->num_in_flight == 0 && s->num_pending == 0, "a victim is in no submitted step");
    unpark_waiters(*s, true);
    leave_running(*s);
    ++s->num_preempted;
    ++counters_.preemptions;
    const int32_t computed = std::min(s->num_computed, s->num_tokens());
    if (offer.means != Means::kSwap)
      publish(*s, computed, now_us);
    else if (!s->group->is_beam)
      publish(*s, computed / block_tokens_ * block_tokens_, now_us);
  }
  if (offer.means == Means::kSwap) return swap_out(victims);
  for (size_t i = 0; i < victims.size(); ++i) {
    Sequence* s = victims[i];
    write_behind(*s, now_us);
    if (offer.means == Means::kDropTail) {
      drop_tail(*s, offer.kept_tokens[i], now_us);
      continue;
    }
    cache_.release(std::move(s->table), now_us);
    forget_computed(*s);
  }
}

void Scheduler::drop_tail(Sequence& s, int32_t kept_tokens, int64_t now_us) {
  const int32_t published = s.num_published;
  forget_computed(s);
  s.num_published = published;
  shorten_head(s, kept_tokens, now_us);
  ++counters_.tail_drops;
}

void Scheduler::shorten_head(Sequence& s, int32_t kept_tokens, int64_t now_us) {
  cache_.release_tail(s.table, kept_tokens, now_us);
  s.num_planned = s.num_computed = kept_tokens;
  s.num_published = std::min(s.num_published, kept_tokens);
  ++room_epoch_;
}

// Not for its own request's to come in: they would be short of as much again.
bool Scheduler::head_is_room_for(const Sequence& owner, const Sequence& whom) const {
  if (owner.table.empty() || &owner == &whom) return false;
  return owner.group != whom.group || whom.running() || !others_run(*whom.group);
}

// From the end of whoever comes in last on. What is shared with another head is free once both have lost it;
// what is shared with a sibling that runs can be had from it again. False: there are no heads.
bool Scheduler::shorten_heads(const Sequence& for_whom, int64_t needed, int64_t now_us) {
  bool shortened = false;
  for (auto it = preempted_.rbegin(); it != preempted_.rend() && needed > 0; ++it) {
    Sequence& s = **it;
    if (!head_is_room_for(s, for_whom)) continue;
    int64_t freed = 0;
    const int32_t kept = head_that_frees(s.table, needed, freed);
    if (kept == s.table.length()) continue;
    shorten_head(s, kept, now_us);
    ++counters_.heads_shortened;
    needed -= freed;
    shortened = true;
  }
  return shortened;
}

void Scheduler::leave_running(Sequence& s) {
  std::erase(running_, &s);
  ++room_epoch_;  // nothing more is kept free for it
  s.state = SequenceState::kPreempted;
  const auto before = [](const Sequence* a, const Sequence* b) { return runs_before(*a, *b); };
  preempted_.insert(std::upper_bound(preempted_.begin(), preempted_.end(), &s, before), &s);
}

}  // namespace quire
