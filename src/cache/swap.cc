// Lists that leave for host memory and come back. The copies are the caller's: nothing here waits for them,
// and what they read or write stays held until they are done.
#include <algorithm>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

bool KvCache::swap_out(std::span<const BlockTable* const> tables, std::span<SwappedList* const> lists,
                       std::vector<TierCopy>& copies) {
  std::vector<BlockId> distinct;
  for (const BlockTable* table : tables) {
    check(!is_extended_in_open_step(*table), "a table that the open step extended is not swapped out");
    check(!table->empty(), "a list that is swapped out has blocks");
    distinct.insert(distinct.end(), table->blocks_.begin(), table->blocks_.end());
  }
  std::ranges::sort(distinct);
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<HostBlockId> host;
  if (!swap_pool_.allocate(static_cast<int64_t>(distinct.size()), host)) return false;
  for (size_t i = 0; i < host.size(); ++i) copies.push_back({distinct[i], host[i]});
  const auto host_of = [&](BlockId block) {
    return host[static_cast<size_t>(std::ranges::lower_bound(distinct, block) - distinct.begin())];
  };
  for (size_t t = 0; t < tables.size(); ++t) name_places(*tables[t], host_of, *lists[t]);
  for (const HostBlockId block : host) swap_pool_.release(block);  // it has those of the lists now
  return true;
}

void KvCache::name_places(const BlockTable& table, const std::function<HostBlockId(BlockId)>& host_of,
                          SwappedList& list) {
  check(list.empty(), "a list is swapped out once");
  for (const BlockId block : table.blocks_) {
    swap_pool_.retain(host_of(block));
    list.blocks_.push_back({.host = host_of(block),
                            .device = pool_.is_published(block) ? block : kNoBlock,
                            .publication = pool_.publication(block)});
  }
  list.length_ = table.length_;
  list.next_position_ = table.next_position_;
}

bool KvCache::still_holds(const SwappedBlock& block) const {
  return block.device != kNoBlock && pool_.is_published(block.device) &&
         pool_.publication(block.device) == block.publication;
}

BlockTable KvCache::swap_in_what_stayed(const SwappedList& list, int64_t now_us) {
  BlockTable table;
  for (const SwappedBlock& block : list.blocks_) {
    if (!still_holds(block)) break;  // a leaf goes before its parent, so none after it is there either
    retain(block.device);
    index_.left(block.device, now_us);
    table.blocks_.push_back(block.device);
  }
  table.length_ = table.next_position_ = std::min(list.length_, table.num_blocks() * block_tokens_);
  return table;
}

int64_t KvCache::blocks_to_swap_in(std::span<const SwappedList* const> lists,
                                   std::span<const BlockTable> tables) {
  std::vector<HostBlockId> missing;
  for (size_t t = 0; t < lists.size(); ++t)
    for (int32_t i = tables[t].num_blocks(); i < lists[t]->num_blocks(); ++i)
      missing.push_back(lists[t]->blocks_[i].host);
  std::ranges::sort(missing);
  return std::unique(missing.begin(), missing.end()) - missing.begin();
}

bool KvCache::swap_in_the_rest(std::span<const SwappedList* const> lists, std::span<BlockTable> tables,
                               int64_t now_us, std::vector<TierCopy>& copies) {
  const int64_t missing = blocks_to_swap_in(lists, tables);
  if (missing > 0 && !make_room(missing, now_us)) return false;
  std::vector<BlockId> fresh;
  check(pool_.allocate(missing, fresh), "room that was made is there");
  std::unordered_map<int32_t, BlockId> come;  // by host block
  for (size_t t = 0; t < lists.size(); ++t) {
    const SwappedList& list = *lists[t];
    BlockTable& table = tables[t];
    for (int32_t i = table.num_blocks(); i < list.num_blocks(); ++i) {
      const HostBlockId host = list.blocks_[i].host;
      const auto [at, is_new] = come.emplace(value(host), kNoBlock);
      const int32_t used = std::min(block_tokens_, list.length_ - i * block_tokens_);
      if (is_new) {
        at->second = fresh[come.size() - 1];
        copies.push_back({at->second, host});
        pool_.set_filled(at->second, used);
      } else {
        retain(at->second);
        pool_.set_filled(at->second,
                         std::max(used, pool_.filled(at->second)));  // lists may use more of it or less
      }
      table.blocks_.push_back(at->second);
    }
    table.length_ = list.length_;
    table.next_position_ = list.next_position_;
  }
  return true;
}

void KvCache::discard(SwappedList&& list) {
  for (const SwappedBlock& block : list.blocks_) swap_pool_.release(block.host);
  list = SwappedList();
}

}  // namespace quire
