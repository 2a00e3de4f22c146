// The scheduler's side of the prefix cache's host tier: what a sequence leaves is copied there, and a new one
// starts behind what is found there if copying it is cheaper than computing it.
#include "src/schedule/scheduler.h"

namespace quire {

Retention Scheduler::retention_of(const Sequence& s, int64_t now_us) const {
  const KvRetention& asked = s.group->retention;
  return {.retention_class = asked.retention_class,
          .expiry_us = asked.ttl_ms ? now_us + *asked.ttl_ms * 1000 : kNoExpiry,
          .recompute_cost = static_cast<float>(asked.cost)};
}

// Ahead of eviction: when room is short the device need not wait for a copy. Not while others' are under way
// that hold a quarter of the cache: those blocks are nobody's room.
void Scheduler::write_behind(Sequence& s, int64_t now_us) {
  if (cache_.host_tier() == nullptr || s.table.empty() || s.group->traits.prefix != PrefixRule::kBlocks ||
      !s.group->share_prefix)
    return;
  int64_t under_way = 0;
  for (const UnderWay& t : transfers_)
    under_way += static_cast<int64_t>(t.deferred.size()) + t.source.num_blocks();
  if (4 * under_way > cache_.num_blocks()) return;
  std::vector<TierCopy> copies;
  std::optional<HostWrite> write = cache_.write_to_host(s.group->ns, s.tokens, s.table, now_us, copies);
  if (!write) return;
  counters_.host_writes += static_cast<int64_t>(copies.size());
  std::vector<BlockId> deferred;
  for (const TierCopy& copy : copies) deferred.push_back(copy.device);
  UnderWay& transfer = start_transfer(nullptr, TransferDirection::kToHost, std::move(copies));
  transfer.deferred = std::move(deferred);
  transfer.host_write = std::move(write);
  transfer.retention = retention_of(s, now_us);
}

std::optional<BlockTable> Scheduler::fetch_prefix(const Sequence& s, BlockTable& table, int64_t now_us,
                                                  std::vector<TierCopy>& copies) {
  if (cache_.host_tier() == nullptr || !s.group->share_prefix || s.skips_host ||
      s.group->policy.kind != RetentionKind::kKeepAll)
    return std::nullopt;
  const std::span<const TokenId> wanted(s.tokens.data(), s.tokens.size() - 1);
  const int32_t found = cache_.lookup_host(s.group->ns, wanted), here = table.length();
  if (found <= here) return std::nullopt;
  const PreemptionCosts& costs = limits_.costs;
  const int64_t bytes = (found - here) * cache_.spec().groups.front().token_bytes();
  const double copy_us = swap_cost_us(costs, bytes) / 2;  // one way
  if (copy_us > recompute_cost_us(costs, found) - recompute_cost_us(costs, here)) return std::nullopt;
  return cache_.read_from_host(s.group->ns, wanted, table, now_us, copies, deferred_now());
}

std::vector<const BlockTable*> Scheduler::host_tables() const {
  std::vector<const BlockTable*> all;
  for (const UnderWay& t : transfers_) {
    if (t.host_read) all.push_back(&*t.host_read);
    if (t.host_write) all.push_back(&t.host_write->table);
  }
  return all;
}

}  // namespace quire
