// What a sequence computed becomes findable. Full blocks join the tree one by one below the last that is
// there already; a block whose tokens are cached already is a duplicate, and the table changes over to the
// cached one.
#include <algorithm>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

struct KvCache::Publication {
  NamespaceId ns;
  std::span<const TokenId> tokens;  // as many as are published
  BlockTable* table;
  Retention retention;
  int64_t now_us;
  std::vector<BlockId>* deferred;
  std::span<BlockTable* const> forks;

  std::span<const TokenId> of_block(int32_t index, int32_t block_tokens) const {
    const std::span<const TokenId> rest = tokens.subspan(static_cast<size_t>(index) * block_tokens);
    return rest.first(std::min<size_t>(rest.size(), block_tokens));
  }
};

void KvCache::publish(NamespaceId ns, std::span<const TokenId> tokens, BlockTable& table, int32_t num_tokens,
                      const Retention& retention, int64_t now_us, std::vector<BlockId>& deferred,
                      std::span<BlockTable* const> forks) {
  check(num_tokens >= 0 && num_tokens <= table.length_, "no more is published than the table holds");
  check(num_tokens <= static_cast<int32_t>(tokens.size()), "published slots have their tokens");
  check(!is_extended_in_open_step(table), "a table that the open step extended is not published");
  check(namespaces_.in_use(ns), "a namespace is open while it is used");
  const Publication p{ns, tokens.first(num_tokens), &table, retention, now_us, &deferred, forks};
  int32_t next_block = 0;
  TreeNode at = last_published(p, next_block);
  for (; next_block < blocks_for(num_tokens); ++next_block) at = publish_block(p, at, next_block);
}

// A held full block of the tree has its whole path there and the table's entries before it are that path,
// so the search goes backwards and ends at the first one found.
TreeNode KvCache::last_published(const Publication& p, int32_t& next_block) const {
  next_block = static_cast<int32_t>(p.tokens.size()) / block_tokens_;
  const auto is_full_node = [this](BlockId block) {
    return pool_.is_published(block) && tree_.num_tokens(block) == block_tokens_;
  };
  while (next_block > 0 && !is_full_node(p.table->blocks_[next_block - 1])) --next_block;
  if (next_block == 0) return *tree_.root(p.ns);
  const BlockId last = p.table->blocks_[next_block - 1];
  check(std::ranges::equal(tree_.tokens(last), p.of_block(next_block - 1, block_tokens_)) &&
            tree_.depth(last) == next_block - 1,
        "a published block holds the tokens that its table says");
  return node_of(last);
}

TreeNode KvCache::publish_block(const Publication& p, TreeNode parent, int32_t index) {
  const BlockId own = p.table->blocks_[index];
  const std::span<const TokenId> tokens = p.of_block(index, block_tokens_);
  if (pool_.is_published(own)) {
    if (tree_.num_tokens(own) >= static_cast<int32_t>(tokens.size())) return node_of(own);
    supersede(own);  // a fork that was cut shorter published fewer of its slots
  }
  const PrefixTree::Nearest nearest = tree_.nearest(parent, tokens);
  if (nearest.shared == static_cast<int32_t>(tokens.size())) {
    adopt(p, index, nearest.block);
    return node_of(nearest.block);
  }
  const bool superseded = nearest.block != kNoBlock && nearest.shared == tree_.num_tokens(nearest.block);
  tree_.insert(parent, own, tokens);
  pool_.set_published(own);
  index_.describe(own, p.retention, p.now_us);
  pinned(own);
  if (superseded) {  // what was said of the prefix stands at its last block: those before it cannot go before it
    index_.strengthen(own, index_.retention_of(nearest.block));
    supersede(nearest.block);
  }
  return node_of(own);
}

void KvCache::strengthen(const BlockTable& table, const Retention& retention) {
  int32_t whole = table.length_ / block_tokens_;
  while (whole > 0 && !pool_.is_published(table.blocks_[whole - 1]))
    --whole;  // those that are still on their way
  if (whole > 0) index_.strengthen(table.blocks_[whole - 1], retention);
}

// The cached block holds these tokens, perhaps more: the table takes it in place of its own. Of a block that is not full
// forks may use more slots than are published.
void KvCache::adopt(const Publication& p, int32_t index, BlockId other) {
  const BlockId own = p.table->blocks_[index];
  replace(*p.table, index, other, *p.deferred);
  index_.used(other, p.now_us);
  index_.strengthen(other, p.retention);
  ++counters_.duplicates_merged;
  if (p.of_block(index, block_tokens_).size() < static_cast<size_t>(block_tokens_)) return;
  for (BlockTable* fork : p.forks)
    if (index < fork->num_blocks() && fork->blocks_[index] == own) replace(*fork, index, other, *p.deferred);
}

void KvCache::replace(BlockTable& table, int32_t index, BlockId other, std::vector<BlockId>& deferred) {
  check(!is_extended_in_open_step(table), "a table that the open step extended changes no block");
  BlockId& entry = table.blocks_[index];
  retain(other);
  pool_.holder_to_reader(entry);
  deferred.push_back(entry);
  entry = other;
  table.changed_from(index);
}

// A partial block whose tokens all stand at the start of what takes its place is found no more.
void KvCache::supersede(BlockId leaf) {
  if (index_.contains(leaf)) {
    index_.erase(leaf);
  } else {
    --tree_.num_pinned_children(tree_.parent(leaf));  // the parent stays: the publisher holds it
  }
  detach(leaf);
}

}  // namespace quire
