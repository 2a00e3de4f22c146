// The tiers below the device as a chain: each is another KvCache under the same keys, over host memory or a
// disk. What a sequence leaves behind is copied down ahead of its eviction, to the next tier and from there on;
// a prefix that the device has lost comes back from whichever has it. A copy under way holds what it reads and
// what it writes.
#include "src/cache/tier.h"

#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

std::string_view name_of(CacheTier tier) {
  constexpr std::string_view kNames[] = {"device", "host", "disk"};
  return kNames[static_cast<size_t>(tier)];
}

const KvCache* KvCache::tier(CacheTier kind) const {
  const KvCache* at = this;
  while (at != nullptr && at->kind_ != kind) at = at->below_.get();
  return at;
}

void KvCache::name_place(BlockId block, TierCopy& copy) const {
  switch (kind_) {
    case CacheTier::kDevice:
      copy.device = block;
      return;
    case CacheTier::kHost:
      copy.host = HostBlockId{static_cast<int32_t>(first_host_block_) + value(block)};
      return;
    case CacheTier::kDisk:
      copy.disk = places_.place_of(block);
      copy.serial = places_.serial_of(block);
  }
}

int32_t KvCache::lookup_below(NamespaceId ns, std::span<const TokenId> tokens, CacheTier last) const {
  if (below_ == nullptr || below_->kind_ > last) return 0;
  const NamespaceId there = names_below_.at(value(ns));
  return std::max(below_->lookup(there, tokens), below_->lookup_below(there, tokens, last));
}

// ---- down ----

// One write reads so many at most: a long prefix goes in several, and no step begins more copies than these.
constexpr int64_t kMostBlocksOfAWrite = 1024;

// Those that are read are nobody's room: a sixteenth of the device keeps a link busy. Host memory has no sequences.
int64_t KvCache::blocks_to_read_down() const {
  const int64_t most = num_blocks() / (kind_ == CacheTier::kDevice ? 16 : 4);
  return std::min(kMostBlocksOfAWrite, std::max<int64_t>(1, most) - num_read_down_);
}

void KvCache::write_below(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention,
                          const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes) {
  const int32_t whole = below_ == nullptr ? 0 : lookup(ns, tokens) / block_tokens_;
  if (whole == 0) return;
  const std::vector<BlockId> blocks(path_.begin(), path_.begin() + whole);
  const std::span<const TokenId> wanted = tokens.first(static_cast<size_t>(whole) * block_tokens_);
  Place to = below_of(ns);
  if (has_all(to, wanted, retention, allowed, now_us, writes)) return;
  const int64_t most = allowed.from(kind_) ? blocks_to_read_down() : 0;
  if (most <= 0 && allowed.from(kind_) && allowed.to(to.cache->kind_)) owe(ns, wanted, retention);
  TierWrite write{.from = kind_, .ns = ns, .retention = retention};
  while (most <= 0 || !allowed.to(to.cache->kind_) || !take_for(to, wanted, most, now_us, write.table)) {
    if (to.cache->below_ == nullptr) return;
    to = to.cache->below_of(to.ns);
    if (has_all(to, wanted, retention, allowed, now_us, writes)) return;
  }
  write.to = to.cache->kind_;
  write.tokens.assign(wanted.begin(), wanted.end());
  read_for(write, to, blocks, now_us);
  open_again(ns);
  writes.push_back(std::move(write));
}

void KvCache::owe(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention) {
  const int64_t own = tokens_not_owed(ns, tokens);
  if (own == 0) return;
  open_again(ns);
  owed_.push_back({ns, {tokens.begin(), tokens.end()}, retention, own});
  num_owed_tokens_ += own;
  while (num_owed_tokens_ > num_blocks() * block_tokens_ && owed_.size() > 1) close_namespace(take_owed().ns);
}

// Beside the last few that are owed: prompts that begin alike come together.
int64_t KvCache::tokens_not_owed(NamespaceId ns, std::span<const TokenId> tokens) const {
  constexpr int kLookedAt = 16;
  ptrdiff_t common = 0;
  int looked_at = 0;
  for (auto owed = owed_.rbegin(); owed != owed_.rend() && looked_at < kLookedAt; ++owed, ++looked_at)
    if (owed->ns == ns)
      common = std::max(common, std::ranges::mismatch(owed->tokens, tokens).in2 - tokens.begin());
  return static_cast<int64_t>(tokens.size()) - common;
}

OwedWrite KvCache::take_owed() {
  OwedWrite owed = std::move(owed_.front());
  owed_.pop_front();
  num_owed_tokens_ -= owed.own_tokens;
  return owed;
}

void KvCache::write_owed(const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes) {
  while (!owed_.empty() && allowed.from(kind_) && blocks_to_read_down() > 0) {
    const OwedWrite owed = take_owed();
    write_below(owed.ns, owed.tokens, owed.retention, allowed, now_us, writes);
    close_namespace(owed.ns);
  }
  if (below_ != nullptr) below_->write_owed(allowed, now_us, writes);
}

void KvCache::forget_owed() {
  while (!owed_.empty()) close_namespace(take_owed().ns);
  if (below_ != nullptr) below_->forget_owed();
}

// Then what is said of it holds there, and one further down may lack some.
bool KvCache::has_all(const Place& to, std::span<const TokenId> wanted, const Retention& retention,
                      const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes) {
  KvCache& tier = *to.cache;
  const int32_t found = tier.lookup(to.ns, wanted);
  if (found < static_cast<int32_t>(wanted.size())) return false;
  tier.strengthen_cached(tier.path_[found / block_tokens_ - 1], retention);
  tier.write_below(to.ns, wanted, retention, allowed, now_us, writes);
  return true;
}

// What is said of a prefix stands at its last block, as on the device: those before it cannot go before it.
void KvCache::strengthen_cached(BlockId block, const Retention& retention) {
  const bool may_go = index_.contains(block), is_leaf = index_.contains_leaf(block);
  if (may_go) index_.erase(block);
  index_.strengthen(block, retention);
  if (may_go) index_.insert(block, is_leaf);
}

// A table of the tier's: what it has of `wanted`, and room for what follows, at most so many blocks. The last tier
// has room for a part; another one that has not for all takes none, so that memory added to it keeps nothing from
// the one below.
bool KvCache::take_for(const Place& to, std::span<const TokenId> wanted, int64_t most_blocks, int64_t now_us,
                       BlockTable& table) {
  KvCache& tier = *to.cache;
  table = tier.acquire_prefix(to.ns, wanted, static_cast<int32_t>(wanted.size()), now_us);
  tier.release_tail(table, table.length_ / block_tokens_ * block_tokens_, now_us);  // no tail inside a block
  const int64_t lacks = static_cast<int64_t>(wanted.size()) / block_tokens_ - table.num_blocks();
  const int64_t room = tier.num_available();
  const int64_t count = room >= lacks || tier.below_ == nullptr ? std::min({lacks, room, most_blocks}) : 0;
  StepTransaction step = tier.begin(now_us);
  if (count > 0 && step.extend(table, (table.num_blocks() + static_cast<int32_t>(count)) * block_tokens_)) {
    tier.count_use(table, now_us);
    std::vector<BlockCopy> copies;
    std::vector<BlockId> deferred;
    step.commit(copies, deferred);
    return true;
  }
  step.rollback();
  tier.release(std::move(table), now_us);
  return false;
}

// Those of the table's blocks that the tier does not have yet, which nothing was published of.
void KvCache::read_for(TierWrite& write, const Place& to, std::span<const BlockId> blocks, int64_t now_us) {
  const BlockTable& table = write.table;
  for (int32_t i = 0; i < table.num_blocks(); ++i) {
    if (to.cache->tree_.contains(table.blocks_[i])) continue;
    retain(blocks[i]);
    pool_.holder_to_reader(blocks[i]);
    write.read.push_back(blocks[i]);
    TierCopy& copy = write.copies.emplace_back();
    name_place(blocks[i], copy);
    if (write.to == CacheTier::kDisk) to.cache->record(write, to.ns, i, now_us, copy);
    to.cache->name_place(table.blocks_[i], copy);
  }
  num_read_down_ += static_cast<int64_t>(write.read.size());
}

// Of the disk tier: what is stored beside the block's bytes.
void KvCache::record(const TierWrite& write, NamespaceId ns, int32_t index, int64_t now_us, TierCopy& copy) {
  StoredBlock stored;
  const BlockId block = write.table.blocks_[index];
  stored.block = places_.place_of(block);
  stored.serial = places_.number(block);
  stored.parent_serial = index == 0 ? 0 : places_.serial_of(write.table.blocks_[index - 1]);
  stored.key = namespaces_.key_of(ns);
  const auto first = write.tokens.begin() + static_cast<int64_t>(index) * block_tokens_;
  stored.tokens.assign(first, first + block_tokens_);
  stored.retention = write.retention;
  if (stored.retention.expiry_us != kNoExpiry) stored.retention.expiry_us -= now_us;
  copy.record = std::make_shared<const StoredBlock>(std::move(stored));
}

// Where another write has brought the same blocks to the disk meanwhile, those behind them bear a parent there that goes
// again, and a restart would not find them: they are written once more, behind the ones that stay.
int32_t KvCache::length_to_keep(NamespaceId ns, const TierWrite& write) const {
  const int32_t all = write.table.length();
  if (kind_ != CacheTier::kDisk) return all;
  const auto is_new = [this](BlockId block) { return !tree_.contains(block); };
  const auto first_new = std::ranges::find_if(write.table.blocks_, is_new) - write.table.blocks_.begin();
  const int32_t found = lookup(ns, std::span(write.tokens).first(all)) / block_tokens_;
  return found > first_new ? found * block_tokens_ : all;
}

void KvCache::end_write(TierWrite&& write, bool arrived, const TierWritesAllowed& allowed, int64_t now_us,
                        std::vector<TierWrite>& next) {
  if (write.from != kind_) return below_->end_write(std::move(write), arrived, allowed, now_us, next);
  num_read_down_ -= static_cast<int64_t>(write.read.size());
  release_deferred(write.read);
  Place to = below_of(write.ns);
  while (to.cache->kind_ != write.to) to = to.cache->below_of(to.ns);
  // What is not kept can go again: what is read is held, and all before it in the tree stays, until here.
  const int32_t there = to.cache->length_to_keep(to.ns, write);
  if (arrived) {
    std::vector<BlockId> merged;
    to.cache->publish(to.ns, write.tokens, write.table, there, write.retention, now_us, merged);
    to.cache->release_deferred(merged);
  }
  to.cache->release(std::move(write.table), now_us);
  if (arrived) {
    const size_t before = next.size();
    if (lookup(write.ns, write.tokens) >= there + block_tokens_)
      write_below(write.ns, write.tokens, write.retention, allowed, now_us, next);
    if (next.size() == before)
      to.cache->write_below(to.ns, std::span(write.tokens).first(there), write.retention, allowed, now_us,
                            next);
  }
  close_namespace(write.ns);
}

// ---- up ----

// A prefix that tiers below have together: who holds its blocks, and where each lies.
struct KvCache::Found {
  TierRead read;
  int32_t length = 0;
  std::vector<TierCopy> blocks;
};

KvCache::Found KvCache::find_below(NamespaceId ns, std::span<const TokenId> tokens, CacheTier last,
                                   int32_t here, int64_t now_us) {
  Found found{.length = here};
  found.blocks.resize(here / block_tokens_);
  for (KvCache* at = this; at->below_ != nullptr && at->below_->kind_ <= last;) {
    ns = at->names_below_.at(value(ns));
    at = at->below_.get();
    BlockTable table = at->acquire_prefix(ns, tokens, static_cast<int32_t>(tokens.size()), now_us);
    if (table.length_ <= found.length) {
      at->release(std::move(table), now_us);
      continue;
    }
    found.blocks.resize(found.length / block_tokens_);  // a tail that ends inside a block comes from here
    found.length = table.length_;
    for (size_t i = found.blocks.size(); i < table.blocks_.size(); ++i)
      at->name_place(table.blocks_[i], found.blocks.emplace_back());
    found.read.parts.push_back({at->kind_, std::move(table)});
  }
  return found;
}

std::optional<TierRead> KvCache::read_from_below(NamespaceId ns, std::span<const TokenId> tokens,
                                                 BlockTable& table, CacheTier last, int64_t now_us,
                                                 std::vector<TierCopy>& copies,
                                                 std::vector<BlockId>& deferred) {
  Found found = find_below(ns, tokens, last, table.length_, now_us);
  const int32_t kept = table.length_ / block_tokens_;
  const auto missing = static_cast<int64_t>(found.blocks.size()) - kept;
  if (found.read.parts.empty()) return std::nullopt;
  if (!make_room(missing, now_us)) {
    end_read(std::move(found.read), {}, now_us);
    return std::nullopt;
  }
  for (const TierRead::Part& part : found.read.parts) tier_of(part).count_use(part.table, now_us);
  truncate(table, kept * block_tokens_, deferred);
  check(pool_.allocate(missing, table.blocks_), "room that was made is there");
  for (size_t i = kept; i < found.blocks.size(); ++i) {
    const BlockId block = table.blocks_[i];
    pool_.set_filled(block, std::min(block_tokens_, found.length - static_cast<int32_t>(i) * block_tokens_));
    found.blocks[i].device = block;
    copies.push_back(std::move(found.blocks[i]));
  }
  table.length_ = table.next_position_ = found.length;
  return std::move(found.read);
}

KvCache& KvCache::tier_of(const TierRead::Part& part) {
  KvCache* at = this;
  while (at->kind_ != part.tier) at = at->below_.get();
  return *at;
}

int64_t KvCache::end_read(TierRead&& read, std::span<const DiskBlockId> corrupt, int64_t now_us) {
  int64_t lost = 0;
  for (TierRead::Part& part : read.parts) {
    KvCache& tier = tier_of(part);
    std::vector<BlockId> bad;
    if (tier.kind_ == CacheTier::kDisk)
      for (const BlockId block : part.table.blocks_)
        if (std::ranges::count(corrupt, tier.places_.place_of(block)) > 0) bad.push_back(block);
    tier.release(std::move(part.table), now_us);
    for (const BlockId block : bad) lost += tier.forget(block);
  }
  read.parts.clear();
  return lost;
}

// The block and what stands behind it leave the tree, leaves first; what another read holds stays, and so does
// the path to it: that read will meet the same and come here.
int64_t KvCache::forget(BlockId block) {
  if (!tree_.contains(block)) return 0;
  std::vector<BlockId> subtree{block};
  for (size_t i = 0; i < subtree.size(); ++i) tree_.append_children(node_of(subtree[i]), subtree);
  int64_t lost = 0;
  for (auto b = subtree.rbegin(); b != subtree.rend(); ++b) {
    if (!index_.contains_leaf(*b)) continue;
    index_.erase(*b);
    detach(*b);
    ++lost;
  }
  return lost;
}

}  // namespace quire
