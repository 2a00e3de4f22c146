#include "src/cache/eviction_index.h"

#include <algorithm>
#include <tuple>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr int64_t kFanOut = 4;

bool expires_before(const EvictionKey& a, const EvictionKey& b) {
  return std::tie(a.expiry_us, a.block) < std::tie(b.expiry_us, b.block);
}

}  // namespace

std::optional<EvictionOrder> parse_eviction_order(std::string_view name) {
  if (name == "lru") return EvictionOrder::kLru;
  if (name == "pgdsf") return EvictionOrder::kPgdsf;
  return {};
}

bool evicts_before(const EvictionKey& a, const EvictionKey& b) {
  return std::tie(a.retention_class, a.expiry_us, a.worth, a.last_use_us, a.block) <
         std::tie(b.retention_class, b.expiry_us, b.worth, b.last_use_us, b.block);
}

// ---- EvictionHeap ----

EvictionHeap::EvictionHeap(int64_t max_blocks, Before before) : before_(before), place_(max_blocks, -1) {}

void EvictionHeap::place(int64_t index, const EvictionKey& key) {
  keys_[index] = key;
  place_[value(key.block)] = static_cast<int32_t>(index);
}

void EvictionHeap::sift_up(int64_t hole, const EvictionKey& key) {
  while (hole > 0) {
    const int64_t parent = (hole - 1) / kFanOut;
    if (!before_(key, keys_[parent])) break;
    place(hole, keys_[parent]);
    hole = parent;
  }
  place(hole, key);
}

void EvictionHeap::sift_down(int64_t hole, const EvictionKey& key) {
  for (;;) {
    const int64_t first = hole * kFanOut + 1, end = std::min(first + kFanOut, size());
    if (first >= end) break;
    int64_t least = first;
    for (int64_t child = first + 1; child < end; ++child)
      if (before_(keys_[child], keys_[least])) least = child;
    if (!before_(keys_[least], key)) break;
    place(hole, keys_[least]);
    hole = least;
  }
  place(hole, key);
}

void EvictionHeap::insert(const EvictionKey& key) {
  check(!contains(key.block), "a block enters the eviction order once");
  keys_.push_back(key);
  sift_up(size() - 1, key);
}

bool EvictionHeap::erase(BlockId block) {
  if (!contains(block)) return false;
  const int64_t hole = place_[value(block)];
  place_[value(block)] = -1;
  const EvictionKey last = keys_.back();
  keys_.pop_back();
  if (hole == size()) return true;
  if (hole > 0 && before_(last, keys_[(hole - 1) / kFanOut])) {
    sift_up(hole, last);
  } else {
    sift_down(hole, last);
  }
  return true;
}

std::optional<BlockId> EvictionHeap::first_disorder() const {
  for (int64_t i = 0; i < size(); ++i) {
    if (place_[value(keys_[i].block)] != i) return keys_[i].block;
    if (i > 0 && before_(keys_[i], keys_[(i - 1) / kFanOut])) return keys_[i].block;
  }
  return std::nullopt;
}

// ---- EvictionIndex ----

EvictionIndex::EvictionIndex(int64_t max_blocks, EvictionOrder order)
    : kind_(order),
      entries_(max_blocks),
      order_(max_blocks, evicts_before),
      expiring_(max_blocks, expires_before) {}

void EvictionIndex::describe(BlockId block, const Retention& retention, int64_t now_us) {
  entries_[value(block)] = {.expiry_us = retention.expiry_us,
                            .last_use_us = now_us,
                            .clock = clock_,
                            .recompute_cost = retention.recompute_cost,
                            .frequency = 1,
                            .retention_class = retention.retention_class};
}

void EvictionIndex::strengthen(BlockId block, const Retention& retention) {
  Entry& entry = entries_[value(block)];
  check(!entry.inside, "a block is described while it is held, outside the index");
  if (retention.retention_class > entry.retention_class) {
    entry.retention_class = retention.retention_class;
    entry.expiry_us = retention.expiry_us;
  } else if (retention.retention_class == entry.retention_class) {
    entry.expiry_us = std::max(entry.expiry_us, retention.expiry_us);
  }
  entry.recompute_cost = std::max(entry.recompute_cost, retention.recompute_cost);
}

Retention EvictionIndex::retention_of(BlockId block) const {
  const Entry& entry = entries_[value(block)];
  return {.retention_class = entry.retention_class,
          .expiry_us = entry.expiry_us,
          .recompute_cost = entry.recompute_cost};
}

void EvictionIndex::left(BlockId block, int64_t now_us) {
  Entry& entry = entries_[value(block)];
  check(!entry.inside, "a block is described while it is held, outside the index");
  entry.last_use_us = std::max(entry.last_use_us, now_us);
}

void EvictionIndex::used(BlockId block, int64_t now_us) {
  left(block, now_us);
  entries_[value(block)].clock = clock_;
  ++entries_[value(block)].frequency;
}

void EvictionIndex::awaited(BlockId block, int64_t now_us) {
  Entry& entry = entries_[value(block)];
  entry.last_use_us = std::max(entry.last_use_us, now_us);
  if (!order_.erase(block)) return;
  expiring_.erase(block);
  insert_leaf(block);
}

double EvictionIndex::worth_of(const Entry& entry) const {
  const double cost = entry.recompute_cost;
  switch (kind_) {
    case EvictionOrder::kLru:
      return cost;
    case EvictionOrder::kOracle:
      return -entry.clock;
    case EvictionOrder::kPgdsf:
      return entry.clock + entry.frequency * cost;  // all blocks: one size
  }
  return cost;
}

EvictionKey EvictionIndex::key_of(BlockId block) const {
  const Entry& entry = entries_[value(block)];
  return {.retention_class = entry.retention_class,
          .block = block,
          .expiry_us = entry.expiry_us,
          .worth = worth_of(entry),
          .last_use_us = entry.last_use_us};
}

void EvictionIndex::insert_leaf(BlockId block) {
  const EvictionKey key = key_of(block);
  order_.insert(key);
  if (key.expiry_us != kNoExpiry) expiring_.insert(key);
}

void EvictionIndex::insert(BlockId block, bool is_leaf) {
  check(!contains(block), "a block enters the eviction index once");
  entries_[value(block)].inside = true;
  if (kind_ == EvictionOrder::kOracle && next_use_) entries_[value(block)].clock = next_use_(block);
  ++size_;
  if (is_leaf) insert_leaf(block);
}

void EvictionIndex::erase(BlockId block) {
  check(contains(block), "a block that leaves the eviction index is in it");
  entries_[value(block)].inside = false;
  --size_;
  order_.erase(block);
  expiring_.erase(block);
}

void EvictionIndex::became_leaf(BlockId block) {
  check(contains(block), "only an evictable block becomes an evictable leaf");
  insert_leaf(block);
}

std::optional<BlockId> EvictionIndex::victim(int64_t now_us) const {
  if (const EvictionKey* first = expiring_.first(); first && first->expiry_us <= now_us) return first->block;
  if (const EvictionKey* first = order_.first()) return first->block;
  return std::nullopt;
}

void EvictionIndex::evicted(BlockId block, int64_t now_us) {
  const EvictionKey key = key_of(block);
  if (kind_ == EvictionOrder::kPgdsf && key.expiry_us > now_us) clock_ = std::max(clock_, key.worth);
  erase(block);
}

std::optional<BlockId> EvictionIndex::first_disorder() const {
  if (const std::optional<BlockId> block = order_.first_disorder()) return block;
  return expiring_.first_disorder();
}

}  // namespace quire
