// One list: where the tokens of a sequence lie. A value that moves; it does not free by itself. What a table
// holds goes back through KvCache::release, and KvCache::audit finds a table that was lost.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "src/base/ids.h"

namespace quire {

class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&& other) noexcept { *this = std::move(other); }
  BlockTable& operator=(BlockTable&& other) noexcept {
    blocks_ = std::exchange(other.blocks_, {});
    length_ = std::exchange(other.length_, 0);
    next_position_ = std::exchange(other.next_position_, 0);
    num_unchanged_ = std::exchange(other.num_unchanged_, 0);
    return *this;
  }
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // Logical to physical; ceil(length / block_tokens) of them.
  const std::vector<BlockId>& blocks() const { return blocks_; }
  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t length() const { return length_; }  // n: live slots, 0 .. n - 1
  // t: position of the token that comes next; above n where a policy dropped some.
  int32_t next_position() const { return next_position_; }
  bool empty() const { return blocks_.empty(); }
  // First entries that are the same as at the last taken(): whoever keeps what it made of them looks at the others only.
  int32_t num_unchanged() const { return num_unchanged_; }
  void taken() { num_unchanged_ = num_blocks(); }

 private:
  friend class KvCache;
  friend class StepTransaction;
  // Every change of an entry, or of those from it on; appending is none.
  void changed_from(int32_t entry) { num_unchanged_ = std::min(num_unchanged_, entry); }

  void lengthen(int32_t new_length) {
    next_position_ += new_length - length_;
    length_ = new_length;
  }

  std::vector<BlockId> blocks_;
  int32_t length_ = 0, next_position_ = 0, num_unchanged_ = 0;
};

}  // namespace quire
