// What stands between a request that has just come and its first token. A lower bound, since a deadline is refused by
// it: what is cached is not computed, what the request shares with others is computed once, and of other tenants at
// its rank nobody knows who comes first.
#include <algorithm>

#include "src/schedule/scheduler.h"

namespace quire {
namespace {

// Prompt tokens of `other` from `first` on that are not of the group's prompt too.
int64_t tokens_beyond(const SequenceGroup& group, const Sequence& other, int32_t first) {
  const bool may_share =
      group.reads_prefix() && group.ns == other.group->ns && other.group->fills_shared_prefix();
  if (may_share && first < other.num_prompt_tokens) {
    const std::vector<TokenId>& own = group.sequences.front()->tokens;
    const size_t most = std::min(own.size(), static_cast<size_t>(other.num_prompt_tokens));
    const auto parted =
        std::mismatch(own.begin(), own.begin() + static_cast<ptrdiff_t>(most), other.tokens.begin());
    first = std::max(first, static_cast<int32_t>(parted.first - own.begin()));
  }
  return std::max(0, other.num_prompt_tokens - first);
}

bool comes_before(const SequenceGroup& other, const SequenceGroup& group) {
  const bool goes = other.state == GroupState::kWaiting && !other.paused && !other.aside && &other != &group;
  return goes && (other.rank() < group.rank() || (other.rank() == group.rank() &&
                                                  other.tenant == group.tenant && other.order < group.order));
}

}  // namespace

// How much of a waiting prompt is cached is known of those that were looked up.
WorkAhead Scheduler::work_ahead(const SequenceGroup& group) const {
  const Sequence& own = *group.sequences.front();
  WorkAhead work;
  const int32_t cached = !group.reads_prefix()
                             ? 0
                             : std::max(cache_.lookup(group.ns, own.tokens),
                                        cache_.lookup_below(group.ns, own.tokens, CacheTier::kDisk));
  work.own = std::max(1, own.num_prompt_tokens - cached);
  for (const Sequence* r : running_)
    if (!r->group->paused) work.running += tokens_beyond(group, *r, r->num_planned + r->tail.length());
  for (const auto& [id, other] : groups_)
    if (comes_before(*other, group) && other->looked_up_in > 0)
      work.waiting += tokens_beyond(group, *other->sequences.front(), other->cached_seen);
  return work;
}

}  // namespace quire
