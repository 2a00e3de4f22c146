// The scheduler's side of the prefix cache's tiers: what a sequence leaves is copied down, and a new one starts
// behind what is found there if copying it is cheaper than computing it.
#include <algorithm>
#include <utility>

#include "src/schedule/scheduler.h"

namespace quire {
namespace {

constexpr int32_t kMostFailedDiskWrites = 8;  // in a row; then no more are begun

}  // namespace

Retention Scheduler::retention_of(const Sequence& s, int64_t now_us) const {
  const KvRetention& asked = s.group->retention;
  return {.retention_class = asked.retention_class,
          .expiry_us = asked.ttl_ms ? now_us + *asked.ttl_ms * 1000 : kNoExpiry,
          .recompute_cost = static_cast<float>(asked.cost)};
}

SchedulerCounters::Tier& Scheduler::counters_of(CacheTier tier) {
  return tier == CacheTier::kHost ? counters_.host : counters_.disk;
}

// ---- down ----

// Ahead of eviction: when room is short the device need not wait for a copy. Not while swaps under way hold a
// quarter of the cache (the cache itself sees to the other writes): those blocks are nobody's room.
void Scheduler::write_behind(Sequence& s, int64_t now_us) {
  if (cache_.below() == nullptr || s.table.empty() || s.group->traits.prefix != PrefixRule::kBlocks ||
      !s.group->share_prefix)
    return;
  int64_t under_way = 0;
  for (const UnderWay& t : transfers_) under_way += t.source.num_blocks();
  if (4 * under_way > cache_.num_blocks()) return;
  std::vector<TierCopy> copies;
  std::optional<TierWrite> write =
      cache_.write_below(s.group->ns, s.tokens, s.table, retention_of(s, now_us), now_us, copies);
  start_write(std::move(write), std::move(copies), now_us);
}

void Scheduler::start_write(std::optional<TierWrite> write, std::vector<TierCopy> copies, int64_t now_us) {
  if (!write) return;
  const bool to_disk = write->to == CacheTier::kDisk;
  if (to_disk && !disk_write_error_.empty()) {  // as if it had failed at once
    cache_.end_write(std::move(*write), false, now_us, copies);
    return;
  }
  counters_of(write->to).writes += static_cast<int64_t>(copies.size());
  const TransferDirection direction = to_disk ? TransferDirection::kToDisk : TransferDirection::kToHost;
  start_transfer(nullptr, direction, std::move(copies)).write = std::move(write);
}

void Scheduler::end_write(TierWrite&& write, const Status& status, int64_t now_us) {
  const CacheTier to = write.to;
  if (!status) ++counters_of(to).write_failures;
  if (to == CacheTier::kDisk) {
    disk_writes_failed_ = status ? 0 : disk_writes_failed_ + 1;
    if (disk_writes_failed_ == kMostFailedDiskWrites) disk_write_error_ = status.error().message;
  }
  std::vector<TierCopy> copies;
  std::optional<TierWrite> next = cache_.end_write(std::move(write), status.has_value(), now_us, copies);
  start_write(std::move(next), std::move(copies), now_us);
}

// ---- up ----

// How far down it pays to go. The disk's time counts from where the host's prefix ends, if that is used.
std::optional<CacheTier> Scheduler::worth_fetching_from(std::span<const TokenId> wanted, NamespaceId ns,
                                                        int32_t here) {
  const PreemptionCosts& costs = limits_.costs;
  const int64_t token_bytes = cache_.spec().groups.front().token_bytes();
  const auto computed_us = [&](int32_t from, int32_t to) {
    return recompute_cost_us(costs, to) - recompute_cost_us(costs, from);
  };
  std::optional<CacheTier> deepest;
  const int32_t on_host = cache_.lookup_below(ns, wanted, CacheTier::kHost);
  if (on_host > here &&
      swap_cost_us(costs, (on_host - here) * token_bytes) / 2 <= computed_us(here, on_host)) {
    deepest = CacheTier::kHost;
    here = on_host;
  }
  const int32_t anywhere = cache_.lookup_below(ns, wanted, CacheTier::kDisk);
  if (anywhere <= here || anywhere == on_host) return deepest;
  if (disk_rate_.read_us((anywhere - here) * token_bytes) <= computed_us(here, anywhere))
    return CacheTier::kDisk;
  disk_rate_.passed_over();
  return deepest;
}

std::optional<TierRead> Scheduler::fetch_prefix(const Sequence& s, BlockTable& table, int64_t now_us,
                                                std::vector<TierCopy>& copies) {
  if (cache_.below() == nullptr || !s.group->share_prefix || s.skips_tiers ||
      s.group->policy.kind != RetentionKind::kKeepAll)
    return std::nullopt;
  const std::span<const TokenId> wanted(s.tokens.data(), s.tokens.size() - 1);
  const std::optional<CacheTier> deepest = worth_fetching_from(wanted, s.group->ns, table.length());
  if (!deepest) return std::nullopt;
  return cache_.read_from_below(s.group->ns, wanted, table, *deepest, now_us, copies, deferred_now());
}

void Scheduler::start_read(Sequence& s, int32_t here, TierRead read, std::vector<TierCopy> copies,
                           int64_t now_us) {
  const auto disk_blocks =
      std::ranges::count_if(copies, [](const TierCopy& c) { return c.disk != kNotOnDisk; });
  UnderWay& transfer = start_transfer(&s, TransferDirection::kToDevice, std::move(copies));
  transfer.read = std::move(read);
  transfer.disk_blocks = disk_blocks;
  transfer.started_us = now_us;
  transfer.had_tokens = here;
}

// Of requests that come for the first time: one that was preempted had its prompt counted.
void Scheduler::count_hits(const UnderWay& transfer) {
  const Sequence& s = *transfer.sequence;
  if (s.num_preempted > 0) return;
  int32_t before = transfer.had_tokens;
  for (const TierRead::Part& part : transfer.read->parts) {
    counters_of(part.tier).hit_tokens += part.table.length() - before;
    before = part.table.length();
  }
  s.group->cached_tokens += before - transfer.had_tokens;
  counters_.cached_tokens += before - transfer.had_tokens;
}

// The number of blocks that are found no more, since the disk did not have them as they were written.
int64_t Scheduler::end_read(UnderWay& transfer, const TransferEnd& end, int64_t now_us) {
  if (end.status) {
    count_hits(transfer);
    disk_rate_.read_took(transfer.disk_blocks * cache_.spec().groups.front().block_bytes(),
                         now_us - transfer.started_us);
  } else {
    for (const TierRead::Part& part : transfer.read->parts) ++counters_of(part.tier).read_failures;
  }
  counters_.corrupt_blocks += static_cast<int64_t>(end.corrupt.size());
  return cache_.end_read(std::move(*transfer.read), end.corrupt, now_us);
}

// ---- figures ----

int32_t Scheduler::num_device_transfers() const {
  return static_cast<int32_t>(std::ranges::count_if(
      transfers_, [&](const UnderWay& t) { return !t.write || t.write->to == cache_.below()->kind(); }));
}

TierTraffic Scheduler::tier_traffic() const {
  TierTraffic traffic;
  for (const UnderWay& t : transfers_) {
    if (t.write) traffic.writes.push_back(&*t.write);
    if (t.read) traffic.reads.push_back(&*t.read);
  }
  return traffic;
}

}  // namespace quire
