// What a list would bring that gives its blocks back. A published block can be had only when nothing beneath it in the tree
// is held, by a holder or a reader: leaves are evicted first.
#include <algorithm>
#include <functional>
#include <unordered_map>

#include "src/cache/kv_cache.h"

namespace quire {
namespace {

struct Given {
  BlockId block = kNoBlock;
  int32_t times = 0;   // of the tables
  int32_t depth = -1;  // in the tree, if it is there
};

std::vector<Given> each_once(std::span<const BlockTable* const> tables) {
  std::vector<BlockId> blocks;
  for (const BlockTable* table : tables)
    blocks.insert(blocks.end(), table->blocks().begin(), table->blocks().end());
  std::ranges::sort(blocks);
  std::vector<Given> all;
  for (const BlockId block : blocks) {
    if (all.empty() || all.back().block != block) all.push_back({.block = block});
    ++all.back().times;
  }
  return all;
}

}  // namespace

// Children before their parents. One that nobody holds, but for what goes beneath it, can be had too.
KvCache::Holding KvCache::held_by(std::span<const BlockTable* const> tables) const {
  std::vector<Given> all = each_once(tables);
  Holding holding{.blocks = static_cast<int64_t>(all.size())};
  std::erase_if(all, [&](const Given& g) { return pool_.num_holders(g.block) > g.times; });
  for (Given& g : all)
    if (pool_.is_published(g.block)) g.depth = tree_.depth(g.block);
  std::ranges::stable_sort(all, std::greater(), &Given::depth);
  std::unordered_map<int32_t, int32_t>
      going;  // of a node: children that can be had and are pinned by what goes
  const auto is_free = [&](BlockId block) {
    if (pool_.num_readers(block) > 0) return false;
    const int32_t pinned = pool_.is_published(block) ? tree_.num_pinned_children(node_of(block)) : 0;
    return pinned == 0 || going[value(block)] == pinned;
  };
  for (const Given& g : all) {
    if (!is_free(g.block)) {
      ++holding.read;
      continue;
    }
    ++holding.freed;
    for (BlockId at = g.block; pool_.is_published(at);) {
      const TreeNode parent = tree_.parent(at);
      ++going[value(parent)];
      at = BlockId{value(parent)};
      if (tree_.is_root(parent) || pool_.is_held(at) || !is_free(at)) break;
      ++holding.freed;
    }
  }
  return holding;
}

bool KvCache::is_read(BlockId block, BlockId behind) const {
  if (pool_.num_readers(block) > 0) return true;
  if (pool_.num_holders(block) > 1 || !pool_.is_published(block)) return false;
  const bool goes_too = behind != kNoBlock && pool_.is_published(behind) && pool_.num_holders(behind) <= 1 &&
                        tree_.parent(behind) == node_of(block);
  return tree_.num_pinned_children(node_of(block)) > (goes_too ? 1 : 0);
}

}  // namespace quire
