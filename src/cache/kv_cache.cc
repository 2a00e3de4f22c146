// Prefixes, tables and room. The transaction of a step is in step_transaction.cc, publishing in publish.cc.
#include "src/cache/kv_cache.h"

#include <algorithm>
#include <limits>

#include "src/base/check.h"

namespace quire {

Result<std::unique_ptr<KvCache>> KvCache::create(const CacheSpec& spec, EvictionOrder order) {
  if (const Status status = validate(spec); !status) return status.error();
  return std::unique_ptr<KvCache>(new KvCache(spec, order, CacheTier::kDevice, 0));
}

KvCache::KvCache(const CacheSpec& spec, EvictionOrder order, CacheTier kind, int64_t first_host_block)
    : spec_(spec),
      block_tokens_(spec.groups[0].block_tokens),
      size_(block_tokens_),
      arena_(spec.arena_bytes, superblock_bytes(spec)),
      pool_(arena_, spec.groups[0].block_bytes()),
      swap_pool_(spec.swap_bytes / spec.groups[0].block_bytes()),
      tree_(pool_.max_blocks(), block_tokens_),
      index_(pool_.max_blocks(), order),
      kind_(kind),
      first_host_block_(first_host_block),
      places_(kind == CacheTier::kDisk ? pool_.max_blocks() : 0) {
  CacheSpec below{.groups = spec.groups, .arena_bytes = spec.host_bytes, .disk_bytes = spec.disk_bytes};
  CacheTier next = CacheTier::kHost;
  if (spec.host_bytes == 0) {
    below.arena_bytes = std::exchange(below.disk_bytes, 0);
    next = CacheTier::kDisk;
  }
  if (below.arena_bytes > 0) below_.reset(new KvCache(below, order, next, swap_pool_.num_blocks()));
}

// ---- namespaces ----

NamespaceId KvCache::open_namespace(const NamespaceKey& key) {
  const NamespaceId ns = namespaces_.open(key);
  if (!tree_.root(ns)) tree_.add_root(ns);
  if (below_ != nullptr) names_below_[value(ns)] = below_->open_namespace(key);
  return ns;
}

void KvCache::close_namespace(NamespaceId ns) {
  const bool was_last = namespaces_.close(ns);
  if (below_ != nullptr) below_->close_namespace(names_below_.at(value(ns)));
  if (below_ != nullptr && was_last) names_below_.erase(value(ns));
  drop_if_unused(ns);
}

// For a copy that may outlive the request: each opening has its close_namespace.
void KvCache::open_again(NamespaceId ns) {
  namespaces_.open_again(ns);
  if (below_ != nullptr) below_->open_again(names_below_.at(value(ns)));
}

void KvCache::drop_if_unused(NamespaceId ns) {
  if (namespaces_.in_use(ns) || tree_.num_children(*tree_.root(ns)) > 0) return;
  tree_.remove_root(ns);
  namespaces_.forget(ns);
}

void KvCache::set_next_use(std::function<double(uint64_t)> next_use) {
  if (below_ != nullptr) below_->set_next_use(next_use);
  index_.set_next_use([this, next_use = std::move(next_use)](BlockId block) {
    const bool is_full = tree_.num_tokens(block) == block_tokens_;
    return is_full ? next_use(tree_.prefix_hash(block)) : std::numeric_limits<double>::infinity();
  });
}

// ---- prefixes ----

int32_t KvCache::lookup(NamespaceId ns, std::span<const TokenId> tokens) const {
  check(namespaces_.in_use(ns), "a namespace is open while it is used");
  return tree_.match(*tree_.root(ns), tokens, path_);
}

int32_t KvCache::await(NamespaceId ns, std::span<const TokenId> tokens, int64_t now_us) {
  const int32_t found = lookup(ns, tokens);
  for (const BlockId block : path_) index_.awaited(block, now_us);
  return found;
}

BlockTable KvCache::acquire_prefix(NamespaceId ns, std::span<const TokenId> tokens, int32_t max_tokens,
                                   int64_t now_us) {
  check(max_tokens >= 0, "max_tokens is not negative");
  const std::span<const TokenId> wanted = tokens.first(std::min<size_t>(tokens.size(), max_tokens));
  BlockTable table;
  table.length_ = table.next_position_ = lookup(ns, wanted);
  table.blocks_ = path_;
  for (const BlockId block : table.blocks_) {
    retain(block);
    index_.left(block, now_us);
  }
  return table;
}

void KvCache::count_use(const BlockTable& table, int64_t now_us) {
  for (const BlockId block : table.blocks_) {
    if (!tree_.contains(block)) break;  // none behind it is there either
    index_.used(block, now_us);
  }
}

// ---- tables ----

BlockTable KvCache::fork(const BlockTable& table) {
  check(!is_extended_in_open_step(table), "a table that the open step extended is not forked");
  BlockTable copy;
  copy.blocks_ = table.blocks_;
  copy.length_ = table.length_;
  copy.next_position_ = table.next_position_;
  for (const BlockId block : copy.blocks_) retain(block);
  return copy;
}

void KvCache::truncate(BlockTable& table, int32_t new_length, std::vector<BlockId>& deferred) {
  check(new_length >= 0 && new_length <= table.length_, "a table is truncated to at most its length");
  check(!is_extended_in_open_step(table), "a table that the open step extended is not truncated");
  while (table.num_blocks() > blocks_for(new_length)) {
    pool_.holder_to_reader(table.blocks_.back());
    deferred.push_back(table.blocks_.back());
    table.blocks_.pop_back();
  }
  table.changed_from(table.num_blocks());
  table.next_position_ -= table.length_ - new_length;
  table.length_ = new_length;
  if (new_length % block_tokens_ != 0 && pool_.may_write(table.blocks_.back()))
    pool_.set_filled(table.blocks_.back(), new_length % block_tokens_);
}

void KvCache::drop_blocks(BlockTable& table, int32_t first, int32_t count, std::vector<BlockId>& deferred) {
  check(first >= 0 && count >= 0 && (first + count) * block_tokens_ <= table.length_,
        "the blocks that are dropped are full ones of the list");
  check(!is_extended_in_open_step(table), "a table that the open step extended drops no blocks");
  const auto begin = table.blocks_.begin() + first, end = begin + count;
  for (auto block = begin; block != end; ++block) {
    pool_.holder_to_reader(*block);
    deferred.push_back(*block);
  }
  table.blocks_.erase(begin, end);
  table.changed_from(first);
  table.length_ -= count * block_tokens_;
}

void KvCache::release(BlockTable&& table, int64_t now_us) {
  check(!is_extended_in_open_step(table), "a table that the open step extended is not released");
  for (auto block = table.blocks_.rbegin(); block != table.blocks_.rend(); ++block) {
    if (pool_.num_holders(*block) == 1 && pool_.is_published(*block)) index_.left(*block, now_us);
    pool_.release(*block);
    unpin_if_let_go(*block);
  }
  table = BlockTable();
}

void KvCache::release_tail(BlockTable& table, int32_t kept_tokens, int64_t now_us) {
  check(kept_tokens % block_tokens_ == 0 && kept_tokens <= table.length_,
        "a table keeps whole blocks that it has");
  check(!is_extended_in_open_step(table), "a table that the open step extended gives nothing back");
  release(split(table, kept_tokens), now_us);
}

BlockTable KvCache::split(BlockTable& table, int32_t at) {
  check(at % block_tokens_ == 0 && at <= table.length_, "a table is split where one of its blocks begins");
  check(!is_extended_in_open_step(table), "a table that the open step extended is not split");
  BlockTable tail;
  const auto first = table.blocks_.begin() + at / block_tokens_;
  tail.blocks_.assign(first, table.blocks_.end());
  tail.length_ = tail.next_position_ = table.length_ - at;
  table.blocks_.erase(first, table.blocks_.end());
  table.changed_from(0);
  table.next_position_ -= table.length_ - at;
  table.length_ = at;
  return tail;
}

void KvCache::join(BlockTable& table, BlockTable&& tail) {
  check(table.length_ % block_tokens_ == 0, "blocks are joined to a table whose last one is full");
  check(!is_extended_in_open_step(table), "a table that the open step extended is not joined to");
  table.blocks_.insert(table.blocks_.end(), tail.blocks_.begin(), tail.blocks_.end());
  table.lengthen(table.length_ + tail.length_);
  tail = BlockTable();
}

void KvCache::release_deferred(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    pool_.release_reader(block);
    unpin_if_let_go(block);
  }
}

bool KvCache::is_extended_in_open_step(const BlockTable& table) const {
  return std::any_of(undo_.begin(), undo_.end(), [&table](const Undo& undo) { return undo.table == &table; });
}

// ---- pins ----

void KvCache::retain(BlockId block) {
  const bool was_pinned = !pool_.is_published(block) || is_pinned(node_of(block));
  pool_.retain(block);
  if (!was_pinned) pinned(block);
}

void KvCache::unpin_if_let_go(BlockId block) {
  if (pool_.is_published(block) && !is_pinned(node_of(block)) && !index_.contains(block)) unpinned(block);
}

// Both walk up only as far as something changes. A table holds its whole path, so that is one step but for
// the last holder.
void KvCache::pinned(BlockId block) {
  for (;;) {
    if (index_.contains(block)) index_.erase(block);
    const TreeNode parent = tree_.parent(block);
    const bool parent_was_pinned = is_pinned(parent);
    ++tree_.num_pinned_children(parent);
    if (parent_was_pinned) return;
    block = BlockId{value(parent)};
  }
}

void KvCache::unpinned(BlockId block) {
  for (;;) {
    index_.insert(block, tree_.num_children(node_of(block)) == 0);
    const TreeNode parent = tree_.parent(block);
    --tree_.num_pinned_children(parent);
    if (is_pinned(parent)) return;
    block = BlockId{value(parent)};
  }
}

// ---- room ----

bool KvCache::make_room(int64_t blocks, int64_t now_us) {
  if (blocks > num_available() || (allocation_fault_ && allocation_fault_())) return false;
  while (pool_.num_free() < blocks) {
    const std::optional<BlockId> leaf = index_.victim(now_us);
    check(leaf.has_value(), "where blocks are evictable one of them is a leaf");
    evict(*leaf, now_us);
  }
  return true;
}

void KvCache::evict(BlockId leaf, int64_t now_us) {
  index_.evicted(leaf, now_us);
  detach(leaf);
  ++counters_.evictions;
}

void KvCache::detach(BlockId leaf) {
  const TreeNode parent = tree_.parent(leaf);
  tree_.erase(leaf);
  pool_.clear_published(leaf);
  if (tree_.is_root(parent)) {
    drop_if_unused(tree_.namespace_of(parent));
  } else if (tree_.num_children(parent) == 0 && !is_pinned(parent)) {
    index_.became_leaf(BlockId{value(parent)});
  }
}

// ---- figures ----

double KvCache::waste_percent() const {
  const int64_t slots = pool_.num_held() * block_tokens_;
  return slots == 0
             ? 0
             : 100.0 * static_cast<double>(slots - pool_.filled_slots_held()) / static_cast<double>(slots);
}

}  // namespace quire
