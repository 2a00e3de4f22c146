// A list whose sequence was preempted and whose blocks lie in host memory. A value that moves; what it holds
// goes back through KvCache::discard, and KvCache::audit finds one that was lost.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "src/base/ids.h"
#include "src/cache/host_pool.h"

namespace quire {

// A block of the list, on the host and where it lay on the device. While it stays published there it holds
// the same bytes, and need not be copied back.
struct SwappedBlock {
  HostBlockId host{};
  BlockId device = kNoBlock;  // kNoBlock: it was private, and is gone
  uint32_t publication = 0;   // BlockPool::publication at that time
};

class SwappedList {
 public:
  SwappedList() = default;
  SwappedList(SwappedList&& other) noexcept { *this = std::move(other); }
  SwappedList& operator=(SwappedList&& other) noexcept {
    blocks_ = std::exchange(other.blocks_, {});
    length_ = std::exchange(other.length_, 0);
    next_position_ = std::exchange(other.next_position_, 0);
    return *this;
  }
  SwappedList(const SwappedList&) = delete;
  SwappedList& operator=(const SwappedList&) = delete;

  const std::vector<SwappedBlock>& blocks() const { return blocks_; }
  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t length() const { return length_; }
  bool empty() const { return blocks_.empty(); }

 private:
  friend class KvCache;
  std::vector<SwappedBlock> blocks_;
  int32_t length_ = 0, next_position_ = 0;
};

}  // namespace quire
