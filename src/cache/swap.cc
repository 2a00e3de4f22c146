// Lists that leave for host memory and come back. The copies are the caller's: nothing here waits for them,
// and what they read or write stays held until they are done.
#include <algorithm>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

bool KvCache::swap_out(const BlockTable& table, SwappedList& list, std::vector<TierCopy>& copies) {
  check(!is_extended_in_open_step(table), "a table that the open step extended is not swapped out");
  check(list.empty() && !table.empty(), "a list that is swapped out has blocks, and is swapped once");
  std::vector<HostBlockId> host;
  if (!swap_pool_.allocate(table.num_blocks(), host)) return false;
  for (size_t i = 0; i < host.size(); ++i) {
    const BlockId block = table.blocks_[i];
    const bool published = pool_.is_published(block);
    list.blocks_.push_back(
        {.host = host[i], .device = published ? block : kNoBlock, .publication = pool_.publication(block)});
    copies.push_back({block, host[i]});
  }
  list.length_ = table.length_;
  list.next_position_ = table.next_position_;
  return true;
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
    index_.used(block.device, now_us);
    table.blocks_.push_back(block.device);
  }
  table.length_ = table.next_position_ = std::min(list.length_, table.num_blocks() * block_tokens_);
  return table;
}

bool KvCache::swap_in_the_rest(const SwappedList& list, BlockTable& table, int64_t now_us,
                               std::vector<TierCopy>& copies) {
  const int32_t kept = table.num_blocks();
  const int64_t missing = list.num_blocks() - kept;
  if (missing > 0 && !make_room(missing, now_us)) return false;
  check(pool_.allocate(missing, table.blocks_), "room that was made is there");
  for (int32_t i = kept; i < list.num_blocks(); ++i) {
    pool_.set_filled(table.blocks_[i], std::min(block_tokens_, list.length_ - i * block_tokens_));
    copies.push_back({table.blocks_[i], list.blocks_[i].host});
  }
  table.length_ = list.length_;
  table.next_position_ = list.next_position_;
  return true;
}

void KvCache::discard(SwappedList&& list) {
  for (const SwappedBlock& block : list.blocks_) swap_pool_.release(block.host);
  list = SwappedList();
}

}  // namespace quire
