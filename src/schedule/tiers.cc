// What of a sequence goes to the tiers below, and what of a new one may come from there; the copies themselves
// are TierTransfers'.
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
  transfers_.write_behind(s.group->ns, s.tokens, s.table, retention_of(s, now_us), now_us);
}

std::optional<TierTransfers::Fetch> Scheduler::fetch_prefix(const Sequence& s, BlockTable& table,
                                                            int64_t now_us) {
  const bool takes_any = s.group->reads_prefix() && s.group->traits.prefix == PrefixRule::kBlocks;
  if (cache_.below() == nullptr || !takes_any || s.skips_tiers) return std::nullopt;
  const std::span<const TokenId> wanted(s.tokens.data(), s.tokens.size() - 1);
  return transfers_.fetch(s.group->ns, wanted, table, now_us, deferred_now());
}

}  // namespace quire
