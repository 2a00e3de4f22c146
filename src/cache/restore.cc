// The disk tier after a restart: what the files say is put back into the tree. Parents come before their
// children, since a child is written after its parent and serials only rise. What has expired stays only as what others
// stand behind, as it would have if the process had gone on.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

struct KvCache::Restored {
  struct Node {
    NamespaceId ns{};
    BlockId block = kNoBlock;
  };
  std::unordered_map<uint64_t, Node> by_serial;
  std::unordered_map<std::string, NamespaceId> names;
  std::vector<BlockId> held;  // until all are there
};

namespace {

// Sorted by serial.
void erase_expired(std::vector<StoredBlock>& stored) {
  std::unordered_set<uint64_t> parents;  // of those that stay
  for (auto block = stored.rbegin(); block != stored.rend(); ++block)
    if (block->retention.expiry_us > 0 || parents.contains(block->serial))
      parents.insert(block->parent_serial);
  std::erase_if(stored, [&](const StoredBlock& block) {
    return block.retention.expiry_us <= 0 && !parents.contains(block.serial);
  });
}

}  // namespace

int64_t KvCache::restore(std::vector<StoredBlock> stored, int64_t now_us) {
  if (kind_ != CacheTier::kDisk) return below_ == nullptr ? 0 : below_->restore(std::move(stored), now_us);
  std::ranges::sort(stored, {}, &StoredBlock::serial);
  Restored restored;
  for (const StoredBlock& block : stored) places_.seen(block.serial);
  erase_expired(stored);
  // As if each had been used when it was written.
  for (size_t i = 0; i < stored.size(); ++i) {
    restore_block(stored[i], now_us - static_cast<int64_t>(stored.size() - i), restored);
  }
  for (auto block = restored.held.rbegin(); block != restored.held.rend(); ++block) {
    pool_.release(*block);
    unpin_if_let_go(*block);
  }
  for (const auto& [key, ns] : restored.names) close_namespace(ns);
  return static_cast<int64_t>(restored.held.size());
}

bool KvCache::restore_block(const StoredBlock& stored, int64_t now_us, Restored& restored) {
  const bool whole = places_.has(stored.block) && static_cast<int32_t>(stored.tokens.size()) == block_tokens_;
  if (!whole) return false;
  const auto [name, is_new] = restored.names.try_emplace(stored.key);
  if (is_new) {
    name->second = namespaces_.open_encoded(stored.key);
    if (!tree_.root(name->second)) tree_.add_root(name->second);
  }
  const NamespaceId ns = name->second;
  TreeNode parent = *tree_.root(ns);
  if (stored.parent_serial != 0) {
    const auto found = restored.by_serial.find(stored.parent_serial);
    if (found == restored.by_serial.end() || found->second.ns != ns) return false;
    parent = node_of(found->second.block);
  }
  const PrefixTree::Nearest nearest = tree_.nearest(parent, stored.tokens);
  if (nearest.shared == block_tokens_) {  // written twice: those behind either are behind the first
    restored.by_serial[stored.serial] = {ns, nearest.block};
    return false;
  }
  if (!pool_.allocate(1, restored.held)) return false;
  const BlockId block = restored.held.back();
  places_.restore(block, stored.block, stored.serial);
  pool_.set_filled(block, block_tokens_);
  tree_.insert(parent, block, stored.tokens);
  pool_.set_published(block);
  Retention retention = stored.retention;
  if (retention.expiry_us != kNoExpiry) retention.expiry_us += now_us;
  index_.describe(block, retention, now_us);
  pinned(block);
  restored.by_serial[stored.serial] = {ns, block};
  return true;
}

}  // namespace quire
