// Everything that is kept up step by step, recomputed from scratch. Slow on purpose: it shares no shortcut
// with what it checks.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "src/base/check.h"
#include "src/cache/hash.h"
#include "src/cache/kv_cache.h"

namespace quire {

// ---- pool: states and counts ----

std::optional<std::string> BlockPool::audit() const {
  int64_t free = 0, held = 0, cached = 0, filled = 0;
  int32_t index = 0, offset = -1;  // of the superblock, and in it
  for (int32_t id = 0; id < static_cast<int32_t>(blocks_.size()); ++id) {
    const BlockId block{id};
    if (++offset == per_superblock_) ++index, offset = 0;
    const uint64_t word = free_bits_[static_cast<int64_t>(index) * words_per_superblock_ + offset / 64];
    const bool mine = superblocks_[index].mine, marked = mine && (word >> (offset % 64) & 1) != 0;
    if (!mine && !is_free(block))
      return fmt::format("block {} is in use, its superblock {} is not the pool's", id, index);
    if (mine && marked != is_free(block))
      return fmt::format("block {} is {} by its bit, {} holders, {} readers, {}", id,
                         marked ? "free" : "in use", num_holders(block), num_readers(block),
                         is_published(block) ? "published" : "not published");
    free += marked ? 1 : 0;
    held += is_held(block) ? 1 : 0;
    cached += !is_held(block) && is_published(block) ? 1 : 0;
    filled += is_held(block) ? this->filled(block) : 0;
  }
  if (free != num_free_here_) return fmt::format("free blocks: counted {}, kept {}", free, num_free_here_);
  if (held != num_held_) return fmt::format("held blocks: counted {}, kept {}", held, num_held_);
  if (cached != num_cached_) return fmt::format("cached blocks: counted {}, kept {}", cached, num_cached_);
  if (filled != filled_slots_held_)
    return fmt::format("filled slots: counted {}, kept {}", filled, filled_slots_held_);
  return std::nullopt;
}

// ---- tree: order, counts, hashes, reachability ----

std::optional<std::string> PrefixTree::children_in_order(TreeNode parent, Audit& audit) const {
  std::vector<int32_t>& stack = audit.stack;
  stack.clear();
  audit.children.clear();
  for (int32_t node = node_at(parent).children; node >= 0 || !stack.empty();) {
    if (node >= 0) {
      stack.push_back(node);
      node = nodes_[node].left;
      if (static_cast<int64_t>(stack.size()) > size_) return "the siblings' treap has a cycle";
    } else {
      node = stack.back();
      stack.pop_back();
      audit.children.push_back(node);
      node = nodes_[node].right;
    }
  }
  return std::nullopt;
}

std::optional<std::string> PrefixTree::audit_child(TreeNode parent, int32_t node) const {
  const Node& n = nodes_[node];
  const std::span<const TokenId> own = tokens(BlockId{node});
  if (n.parent != parent)
    return fmt::format("block {} stands under node {}, names {}", node, value(parent), value(n.parent));
  if (n.depth != node_at(parent).depth + 1) return fmt::format("block {} has depth {}", node, n.depth);
  if (n.head != head_of(own)) return fmt::format("block {} has a wrong head", node);
  if (n.num_tokens < block_tokens_) return std::nullopt;
  if (n.prefix_hash != mix(node_at(parent).prefix_hash, hash_tokens(own)))
    return fmt::format("block {} has a wrong prefix hash", node);
  if (find_full(n.prefix_hash, parent, own) != node)
    return fmt::format("block {} is not found by its hash", node);
  return std::nullopt;
}

std::optional<std::string> PrefixTree::audit_children(TreeNode parent, Audit& audit) const {
  if (auto wrong = children_in_order(parent, audit)) return wrong;
  const std::vector<int32_t>& children = audit.children;
  if (static_cast<int64_t>(children.size()) != num_children(parent))
    return fmt::format("node {} has {} children, counts {}", value(parent), children.size(),
                       num_children(parent));
  for (size_t i = 0; i < children.size(); ++i) {
    if (auto wrong = audit_child(parent, children[i])) return wrong;
    audit.nodes += 1;
    audit.full_nodes += nodes_[children[i]].num_tokens == block_tokens_ ? 1 : 0;
    if (i == 0) continue;
    const std::span<const TokenId> before = tokens(BlockId{children[i - 1]}),
                                   own = tokens(BlockId{children[i]});
    const auto [a, b] = std::ranges::mismatch(before, own);
    if (a == before.end() && b != own.end())
      return fmt::format("block {} holds only the start of its sibling {}", children[i - 1], children[i]);
    if (a == before.end() || b == own.end() || *a > *b)
      return fmt::format("blocks {} and {} stand in the wrong order", children[i - 1], children[i]);
  }
  return std::nullopt;
}

std::optional<std::string> PrefixTree::audit() const {
  Audit audit;
  for (const auto& [ns, root] : roots_) {
    if (root_names_[value(root) - max_blocks_] != NamespaceId{ns})
      return "a root stands under another's name";
    if (auto wrong = audit_children(root, audit)) return wrong;
  }
  for (int32_t node = 0; node < max_blocks_; ++node) {
    const Node& n = nodes_[node];
    const bool has_none = n.children < 0 && n.num_children == 0;  // as most have
    if (!contains(BlockId{node}) || has_none) continue;
    if (auto wrong = audit_children(TreeNode{node}, audit)) return wrong;
  }
  if (audit.nodes != size_) return fmt::format("nodes: counted {}, kept {}", audit.nodes, size_);
  const auto used = std::ranges::count_if(slots_, [](const Slot& slot) { return slot.block >= 0; });
  if (used != audit.full_nodes)
    return fmt::format("hash table: {} entries for {} full blocks", used, audit.full_nodes);
  return std::nullopt;
}

// ---- cache: holders against tables, pins and index against holders ----

std::optional<std::string> KvCache::audit_holders(std::span<const BlockTable* const> tables,
                                                  std::span<const BlockId> deferred) const {
  std::vector<int32_t> holders(pool_.max_blocks()), readers(pool_.max_blocks());
  for (const BlockTable* table : tables) {
    if (table->num_blocks() != blocks_for(table->length()))
      return fmt::format("a table of {} slots has {} blocks", table->length(), table->num_blocks());
    for (int32_t i = 0; i < table->num_blocks(); ++i) {
      const BlockId block = table->blocks()[i];
      ++holders[value(block)];
      const int32_t used = std::min(block_tokens_, table->length() - i * block_tokens_);
      if (pool_.filled(block) < used)
        return fmt::format("block {} counts {} filled slots, a table uses {}", value(block),
                           pool_.filled(block), used);
    }
  }
  for (const BlockId block : deferred) ++readers[value(block)];
  for (int32_t id = 0; id < pool_.max_blocks(); ++id) {
    const BlockId block{id};
    if (holders[id] != pool_.num_holders(block))
      return fmt::format("block {}: {} table entries, {} holders", id, holders[id], pool_.num_holders(block));
    if (readers[id] != pool_.num_readers(block))
      return fmt::format("block {}: deferred {} times, {} readers", id, readers[id],
                         pool_.num_readers(block));
  }
  return std::nullopt;
}

std::optional<std::string> KvCache::audit_pins() const {
  std::vector<int32_t> pinned_children(pool_.max_blocks());
  for (int32_t id = 0; id < pool_.max_blocks(); ++id) {
    const BlockId block{id};
    if (tree_.contains(block) != pool_.is_published(block))
      return fmt::format("block {} is {}in the tree and {}published", id, tree_.contains(block) ? "" : "not ",
                         pool_.is_published(block) ? "" : "not ");
    if (tree_.contains(block) && is_pinned(node_of(block)) && !tree_.is_root(tree_.parent(block)))
      ++pinned_children[value(tree_.parent(block))];
  }
  int64_t evictable = 0, leaves = 0;
  for (int32_t id = 0; id < pool_.max_blocks(); ++id) {
    const BlockId block{id};
    const bool cached = tree_.contains(block), may_go = cached && !is_pinned(node_of(block));
    const bool leaf = may_go && tree_.num_children(node_of(block)) == 0;
    if (may_go != index_.contains(block) || leaf != index_.contains_leaf(block))
      return fmt::format("block {}: evictable {} and leaf {}, in the index {} and {}", id, may_go, leaf,
                         index_.contains(block), index_.contains_leaf(block));
    if (cached && pinned_children[id] != tree_.num_pinned_children(node_of(block)))
      return fmt::format("block {}: {} pinned children, counts {}", id, pinned_children[id],
                         tree_.num_pinned_children(node_of(block)));
    evictable += may_go ? 1 : 0;
    leaves += leaf ? 1 : 0;
  }
  if (evictable != index_.size())
    return fmt::format("evictable: counted {}, indexed {}", evictable, index_.size());
  if (leaves != index_.num_leaves())
    return fmt::format("leaves: counted {}, indexed {}", leaves, index_.num_leaves());
  if (const auto block = index_.first_disorder())
    return fmt::format("block {} stands out of order", value(*block));
  return std::nullopt;
}

// The tier below against what is under way: it is held by nothing else.
std::optional<std::string> KvCache::audit_below(const TierTraffic& traffic) const {
  if (below_ == nullptr) return std::nullopt;
  std::vector<const BlockTable*> tables;
  std::vector<BlockId> read;
  int64_t read_here = 0;
  for (const TierWrite* write : traffic.writes) {
    if (write->to == below_->kind_) tables.push_back(&write->table);
    if (write->from == kind_) read_here += static_cast<int64_t>(write->read.size());
    if (write->from == below_->kind_) read.insert(read.end(), write->read.begin(), write->read.end());
  }
  for (const TierRead* under_way : traffic.reads)
    for (const TierRead::Part& part : under_way->parts)
      if (part.tier == below_->kind_) tables.push_back(&part.table);
  if (read_here != num_read_down_)
    return fmt::format("blocks read for the tier below: counted {}, kept {}", read_here, num_read_down_);
  if (auto wrong = below_->audit(tables, read, {}, traffic))
    return fmt::format("{} tier: {}", name_of(below_->kind_), *wrong);
  return std::nullopt;
}

std::optional<std::string> KvCache::audit(std::span<const BlockTable* const> tables,
                                          std::span<const BlockId> deferred,
                                          std::span<const SwappedList* const> swapped,
                                          const TierTraffic& traffic) const {
  check(!step_open_, "the cache is audited between steps");
  if (auto wrong = pool_.audit()) return "pool: " + *wrong;
  if (auto wrong = audit_holders(tables, deferred)) return "holders: " + *wrong;
  if (auto wrong = tree_.audit()) return "tree: " + *wrong;
  if (auto wrong = audit_pins()) return "eviction: " + *wrong;
  if (auto wrong = audit_below(traffic)) return wrong;
  std::vector<HostBlockId> on_host;
  for (const SwappedList* list : swapped)
    for (const SwappedBlock& block : list->blocks()) on_host.push_back(block.host);
  if (auto wrong = swap_pool_.audit(on_host)) return "swap: " + *wrong;
  return std::nullopt;
}

}  // namespace quire
