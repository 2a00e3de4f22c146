// Which cached block goes next. Holds every block of the prefix tree that nobody below or at it holds; those
// without children (leaves) stand in an order, the others wait for their children to go. So the evictable
// count is the size of the index, and the next victim its first leaf: O(log n), never a scan. Engine thread.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "src/base/ids.h"

namespace quire {

inline constexpr int64_t kNoExpiry = std::numeric_limits<int64_t>::max();

// What a publisher may say about its blocks.
struct Retention {
  int32_t retention_class = 0;    // higher is kept longer; 0 = ordinary
  int64_t expiry_us = kNoExpiry;  // past it the class counts no more: the block goes before all others
  float recompute_cost = 0;       // any unit, one for all blocks; cheaper goes first
};

// What orders the leaves of one class and expiry.
enum class EvictionOrder {
  kLru,     // (class, expiry, recompute cost, last use)
  kOracle,  // (class, expiry, latest next use, last use): Belady's rule, for offline comparison
  kPgdsf,   // (class, expiry, clock + frequency * cost / size, last use): prefix-aware GDSF, RAGCache
            // (2404.12457)
};

// Least goes first. One order or the other fills `worth`.
struct EvictionKey {
  int32_t retention_class = 0;
  BlockId block = kNoBlock;  // the last word, so that equal seeds evict equally
  int64_t expiry_us = kNoExpiry;
  double worth = 0;
  int64_t last_use_us = 0;
};
// "lru", "pgdsf"; the oracle needs the future and has no name here.
std::optional<EvictionOrder> parse_eviction_order(std::string_view name);

bool evicts_before(const EvictionKey& a, const EvictionKey& b);

// A heap of keys, four children to a node so that one level is three cache lines, that knows where each block
// stands.
class EvictionHeap {
 public:
  using Before = bool (*)(const EvictionKey&, const EvictionKey&);
  EvictionHeap(int64_t max_blocks, Before before);
  void insert(const EvictionKey& key);
  bool erase(BlockId block);  // false if it was not there
  bool contains(BlockId block) const { return place_[value(block)] >= 0; }
  const EvictionKey* first() const { return keys_.empty() ? nullptr : keys_.data(); }
  int64_t size() const { return static_cast<int64_t>(keys_.size()); }
  std::optional<BlockId> first_disorder() const;  // a block that stands before its parent, for audits

 private:
  void sift_up(int64_t hole, const EvictionKey& key);
  void sift_down(int64_t hole, const EvictionKey& key);
  void place(int64_t index, const EvictionKey& key);

  Before before_;
  std::vector<EvictionKey> keys_;
  std::vector<int32_t> place_;  // by block; -1 = absent
};

class EvictionIndex {
 public:
  EvictionIndex(int64_t max_blocks, EvictionOrder order);

  // A block enters the tree; what is known of it from now on. Not in the index yet: its publisher holds it.
  void describe(BlockId block, const Retention& retention, int64_t now_us);
  // Another has it in its prefix: keeps the higher class with its expiry, the later of two of one class, and the larger
  // cost. While the block is held.
  void strengthen(BlockId block, const Retention& retention);
  Retention retention_of(BlockId block) const;
  // A hit, and the moment its last holder leaves. Both while the block is held, so outside the index.
  void used(BlockId block, int64_t now_us);
  void left(BlockId block, int64_t now_us);
  // Somebody who waits will want it: last used now, held or not.
  void awaited(BlockId block, int64_t now_us);

  // kOracle: when the block will be used again, asked as it becomes evictable; later goes first.
  void set_next_use(std::function<double(BlockId)> next_use) { next_use_ = std::move(next_use); }

  void insert(BlockId block, bool is_leaf);
  void erase(BlockId block);
  void became_leaf(BlockId block);
  bool contains(BlockId block) const { return entries_[value(block)].inside; }
  bool contains_leaf(BlockId block) const { return order_.contains(block); }

  // Expired leaves first, oldest expiry first; then the order.
  std::optional<BlockId> victim(int64_t now_us) const;
  // Erase, and PGDSF's clock advances to its worth; not where it went because it had expired.
  void evicted(BlockId block, int64_t now_us);

  int64_t size() const { return size_; }  // evictable blocks, leaves and those that wait
  int64_t num_leaves() const { return order_.size(); }
  EvictionKey key_of(BlockId block) const;
  std::optional<BlockId> first_disorder() const;

 private:
  struct Entry {
    int64_t expiry_us = kNoExpiry, last_use_us = 0;
    double clock = 0;  // PGDSF's at the last use; the oracle's next use
    float recompute_cost = 0;
    int32_t frequency = 0;
    int32_t retention_class = 0;
    bool inside = false;
  };
  double worth_of(const Entry& entry) const;
  void insert_leaf(BlockId block);

  EvictionOrder kind_;
  std::vector<Entry> entries_;  // by block
  EvictionHeap order_;          // all leaves
  EvictionHeap expiring_;       // leaves with an expiry, soonest first
  double clock_ = 0;
  int64_t size_ = 0;
  std::function<double(BlockId)> next_use_;
};

}  // namespace quire
