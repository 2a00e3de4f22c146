// Tokens in blocks of a power of two, which every block size is: shifts and masks where a division would stand. A step
// asks this several times for each of its sequences.
#pragma once

#include <bit>
#include <cstdint>

#include "src/base/check.h"

namespace quire {

class BlockSize {
 public:
  explicit BlockSize(int32_t tokens) : mask_(tokens - 1) {
    check(tokens > 0 && std::has_single_bit(static_cast<uint32_t>(tokens)),
          "a block's tokens are a power of two");
    shift_ = std::countr_zero(static_cast<uint32_t>(tokens));
  }
  int32_t tokens() const { return mask_ + 1; }
  int32_t block_of(int32_t slot) const { return slot >> shift_; }
  int32_t offset_of(int32_t slot) const { return slot & mask_; }  // in its block
  int32_t first_slot(int32_t block) const { return block << shift_; }
  int32_t blocks_for(int32_t tokens) const { return (tokens + mask_) >> shift_; }
  // Of these tokens, those in whole blocks.
  int32_t whole_blocks(int32_t tokens) const { return tokens & ~mask_; }

 private:
  int32_t mask_, shift_ = 0;
};

}  // namespace quire
