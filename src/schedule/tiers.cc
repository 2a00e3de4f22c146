// What of a sequence goes to the tiers below, and what of a new one may come from there; the copies themselves
// are TierTransfers'.
#include <algorithm>

#include "src/schedule/scheduler.h"

namespace quire {

Retention Scheduler::retention_of(const Sequence& s, int64_t now_us) const {
  const KvRetention& asked = s.group->retention;
  return {.retention_class = asked.retention_class,
          .expiry_us = asked.ttl_ms ? now_us + *asked.ttl_ms * 1000 : kNoExpiry,
          .recompute_cost = static_cast<float>(asked.cost)};
}

void Scheduler::write_behind(Sequence& s, int64_t now_us) {
  if (cache_.below() == nullptr || s.table.empty() || !s.group->fills_shared_prefix()) return;
  transfers_.write_behind(s.group->ns, s.tokens, retention_of(s, now_us), now_us);
}

std::optional<TierTransfers::Fetch> Scheduler::fetch_prefix(const Sequence& s, BlockTable& table,
                                                            int64_t now_us) {
  const bool takes_any = s.group->reads_prefix() && s.group->traits.prefix == PrefixRule::kBlocks;
  if (cache_.below() == nullptr || !takes_any || s.skips_tiers) return std::nullopt;
  const std::span<const TokenId> wanted(s.tokens.data(), s.tokens.size() - 1);
  // What computing costs beside itself: the prompts of those that run take the card first, and each of those that wait gets it
  // so much later. Of the latter three at most, lest the disk has the queue that the card would have.
  constexpr int64_t kMostOthers = 3;
  int64_t before = 0;
  for (const Sequence* other : running_)
    if (other != &s && !other->group->paused && !other->copying)
      before += std::max(0, other->num_prompt_tokens - other->num_planned);
  const int64_t waiting =
      static_cast<int64_t>(queue_.size()) - (s.group->state == GroupState::kWaiting ? 1 : 0);
  before += std::min(waiting, kMostOthers) * (static_cast<int64_t>(wanted.size()) - table.length());
  return transfers_.fetch(s.group->ns, wanted, table, has_time_to_spare(s), before, now_us, deferred_now());
}

// To compute what a tier has: nobody else has a prompt to compute. Those who decode bear it as they bear any prompt
// beside them. Of a list that keeps all, since only that is what it would be if it came whole.
bool Scheduler::has_time_to_spare(const Sequence& s) const {
  const bool may = s.group->state == GroupState::kWaiting && !s.group->traits.drops_tokens;
  if (!may || limits_.both_ends == BothEnds::kNever) return false;
  if (limits_.both_ends == BothEnds::kAlways) return true;
  const auto is_paused = [](const Sequence* other) { return other->group->paused; };
  const auto computes_none = [&](const Sequence* other) {
    return is_paused(other) || other->copying || other->num_planned >= other->num_prompt_tokens;
  };
  return queue_.size() == 1 && std::ranges::all_of(running_, computes_none) &&
         std::ranges::all_of(preempted_, is_paused);
}

// Where all before it is computed, what came is the rest of the list.
void Scheduler::join_tail(Sequence& s) {
  if (s.tail_from == 0 || s.tail_comes || s.num_computed < s.tail_from) return;
  cache_.join(s.table, std::move(s.tail));
  s.num_planned = s.num_computed = s.table.length();
  s.tail_from = 0;
}

// Nothing of it was published: it is computed like the rest.
void Scheduler::lose_tail(Sequence& s) {
  if (s.tail_from == 0) return;
  cache_.release(std::move(s.tail), 0);
  s.tail_from = 0;
  ++room_epoch_;
}

}  // namespace quire
