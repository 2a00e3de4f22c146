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

// Tokens of the table's first blocks that are the tree's path for them, whole blocks.
int32_t KvCache::published_path(std::span<const TokenId> tokens, const BlockTable& table) const {
  int32_t count = 0;
  for (const BlockId block : table.blocks_) {
    const std::span<const TokenId> rest = tokens.subspan(static_cast<size_t>(count) * block_tokens_);
    const bool whole = rest.size() >= static_cast<size_t>(block_tokens_) && tree_.contains(block) &&
                       tree_.depth(block) == count && tree_.num_tokens(block) == block_tokens_;
    if (!whole || !std::ranges::equal(tree_.tokens(block), rest.first(block_tokens_))) break;
    ++count;
  }
  return count * block_tokens_;
}

std::optional<TierWrite> KvCache::write_below(NamespaceId ns, std::span<const TokenId> tokens,
                                              const BlockTable& table, const Retention& retention,
                                              int64_t now_us, std::vector<TierCopy>& copies) {
  const int32_t whole = below_ == nullptr ? 0 : published_path(tokens, table);
  if (whole == 0 || 4 * num_read_down_ > num_blocks()) return std::nullopt;
  TierWrite write{.to = below_->kind_, .ns = names_below_.at(value(ns)), .retention = retention};
  const std::span<const TokenId> wanted = tokens.first(whole);
  write.table = below_->acquire_prefix(write.ns, wanted, whole, now_us);
  const int32_t kept = write.table.length() / block_tokens_;
  std::vector<BlockId> left;
  below_->truncate(write.table, kept * block_tokens_, left);
  StepTransaction step = below_->begin(now_us);
  const bool grows = kept * block_tokens_ < whole && step.extend(write.table, whole);
  std::vector<BlockCopy> none;
  step.commit(none, left);
  below_->release_deferred(left);
  if (!grows) {  // it has them all, or no room: one further down may lack some
    std::optional<TierWrite> deeper =
        below_->write_below(write.ns, wanted, write.table, retention, now_us, copies);
    below_->release(std::move(write.table), now_us);
    return deeper;
  }
  write.tokens.assign(wanted.begin(), wanted.end());
  read_for(write, kept, table, now_us, copies);
  below_->open_again(write.ns);
  return write;
}

void KvCache::read_for(TierWrite& write, int32_t first, const BlockTable& table, int64_t now_us,
                       std::vector<TierCopy>& copies) {
  for (int32_t i = first; i < write.table.num_blocks(); ++i) {
    const BlockId block = table.blocks_[i];
    retain(block);
    pool_.holder_to_reader(block);
    write.read.push_back(block);
    TierCopy& copy = copies.emplace_back();
    name_place(block, copy);
    if (below_->kind_ == CacheTier::kDisk) below_->record(write, i, now_us, copy);
    below_->name_place(write.table.blocks_[i], copy);
  }
  num_read_down_ += static_cast<int64_t>(write.read.size());
}

// Of the disk tier: what is stored beside the block's bytes.
void KvCache::record(const TierWrite& write, int32_t index, int64_t now_us, TierCopy& copy) {
  StoredBlock stored;
  const BlockId block = write.table.blocks_[index];
  stored.block = places_.place_of(block);
  stored.serial = places_.number(block);
  stored.parent_serial = index == 0 ? 0 : places_.serial_of(write.table.blocks_[index - 1]);
  stored.key = namespaces_.key_of(write.ns);
  const auto first = write.tokens.begin() + static_cast<int64_t>(index) * block_tokens_;
  stored.tokens.assign(first, first + block_tokens_);
  stored.retention = write.retention;
  if (stored.retention.expiry_us != kNoExpiry) stored.retention.expiry_us -= now_us;
  copy.record = std::make_shared<const StoredBlock>(std::move(stored));
}

std::optional<TierWrite> KvCache::end_write(TierWrite&& write, bool arrived, int64_t now_us,
                                            std::vector<TierCopy>& copies) {
  if (write.to != below_->kind_) return below_->end_write(std::move(write), arrived, now_us, copies);
  num_read_down_ -= static_cast<int64_t>(write.read.size());
  release_deferred(write.read);
  std::optional<TierWrite> next;
  if (arrived) {
    std::vector<BlockId> merged;
    below_->publish(write.ns, write.tokens, write.table, write.table.length(), write.retention, now_us,
                    merged);
    below_->release_deferred(merged);
    next = below_->write_below(write.ns, write.tokens, write.table, write.retention, now_us, copies);
  }
  below_->release(std::move(write.table), now_us);
  below_->close_namespace(write.ns);
  return next;
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

int64_t KvCache::end_read(TierRead&& read, std::span<const DiskBlockId> corrupt, int64_t now_us) {
  int64_t lost = 0;
  for (TierRead::Part& part : read.parts) {
    KvCache* at = this;
    while (at->kind_ != part.tier) at = at->below_.get();
    std::vector<BlockId> bad;
    if (at->kind_ == CacheTier::kDisk)
      for (const BlockId block : part.table.blocks_)
        if (std::ranges::count(corrupt, at->places_.place_of(block)) > 0) bad.push_back(block);
    at->release(std::move(part.table), now_us);
    for (const BlockId block : bad) lost += at->forget(block);
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
