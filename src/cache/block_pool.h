// The blocks of one class (one size): who holds each, and in which of three states it is.
//   held    a table or a pending read has it          cached  nobody has it, the prefix tree still finds it
//   free    neither
// Ids count in units of block_bytes from the arena's base, so a kernel finds a block at base + id *
// block_bytes. Engine thread. Invariant 2: num_free + num_held + num_cached == num_blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/ids.h"
#include "src/cache/arena.h"

namespace quire {

class BlockPool {
 public:
  // The arena outlives the pool; its superblock bytes are a multiple of block_bytes.
  BlockPool(Arena& arena, int64_t block_bytes);

  // Appends `count` blocks to `out`, each with one holder; or, if there are fewer, changes nothing and
  // returns false.
  bool allocate(int64_t count, std::vector<BlockId>& out);

  // A holder is a table's entry. The write rule asks for their number.
  void retain(BlockId block);
  void release(BlockId block);
  // A holder that lets go while a submitted step still reads the block becomes a reader: the block stays, but
  // the reader does not stand in the way of a later write, which runs after it on the same device queue.
  void holder_to_reader(BlockId block);
  void reader_to_holder(BlockId block);
  void release_reader(BlockId block);
  // In or out of the prefix tree. A block that leaves it and has neither holder nor reader is free.
  void set_published(BlockId block);
  void clear_published(BlockId block);
  // Slots of the block that hold a token, for the waste figure.
  void set_filled(BlockId block, int32_t slots) {
    Block& b = blocks_[value(block)];
    if (b.holders + b.readers > 0) filled_slots_held_ += slots - b.filled;
    b.filled = static_cast<uint8_t>(slots);
  }

  int32_t num_holders(BlockId block) const { return blocks_[value(block)].holders; }
  int32_t num_readers(BlockId block) const { return blocks_[value(block)].readers; }
  bool is_published(BlockId block) const { return blocks_[value(block)].published; }
  bool is_held(BlockId block) const {
    const Block& b = blocks_[value(block)];
    return (b.holders | b.readers) != 0;
  }
  // Whether all are: every step asks of every block that it names. Its way out in each turn is never taken, and keeps the
  // compiler from gathering four blocks into a vector, which takes longer.
  bool are_held(std::span<const BlockId> blocks) const {
    const Block* all = blocks_.data();
    for (const BlockId block : blocks)
      if ((all[value(block)].holders | all[value(block)].readers) == 0) [[unlikely]]
        return false;
    return true;
  }
  // Changes whenever the block is published anew: while it stands, what it was published with is there.
  uint32_t publication(BlockId block) const { return blocks_[value(block)].publication; }
  bool is_free(BlockId block) const { return !is_held(block) && !is_published(block); }
  int32_t filled(BlockId block) const { return blocks_[value(block)].filled; }
  // The write rule: one holder, and not published.
  bool may_write(BlockId block) const { return num_holders(block) == 1 && !is_published(block); }

  int64_t block_bytes() const { return block_bytes_; }
  int64_t max_blocks() const { return static_cast<int64_t>(blocks_.size()); }  // ids are below this
  // What this class has or could take now.
  int64_t num_blocks() const { return num_free() + num_held_ + num_cached_; }
  int64_t num_free() const {
    return num_free_here_ + int64_t{arena_->num_whole_free()} * per_superblock_ +
           (arena_->short_is_free() ? per_short_superblock_ : 0);
  }
  int64_t num_held() const { return num_held_; }
  int64_t num_cached() const { return num_cached_; }
  // Recounts everything from the blocks; the first disagreement.
  std::optional<std::string> audit() const;
  int64_t filled_slots_held() const { return filled_slots_held_; }  // over held blocks

 private:
  struct Block {
    int32_t holders = 0;
    int32_t readers = 0;
    uint32_t publication = 0;
    uint8_t filled = 0;  // at most 64 slots
    bool published = false;
  };
  // A superblock of this class that has room: bit i of its words is set where its block i is free.
  struct Superblock {
    bool mine = false;
    int32_t num_blocks = 0, num_free = 0;
    int32_t room_index = -1;  // place in with_room_, -1 if it has none
  };
  bool take_superblock();
  void give_back_superblock(int32_t index);
  BlockId take_free();
  void put_free(BlockId block);
  void became_held(BlockId block);
  void no_longer_held(BlockId block);
  void remove_from_room(int32_t index);

  Arena* arena_;
  int64_t block_bytes_;
  int32_t per_superblock_, per_short_superblock_, words_per_superblock_;
  std::vector<Block> blocks_;
  std::vector<Superblock> superblocks_;
  std::vector<uint64_t> free_bits_;  // [superblock][word]
  std::vector<int32_t> with_room_;   // superblocks of this class with a free block; the last is used first
  int64_t num_free_here_ = 0, num_held_ = 0, num_cached_ = 0, filled_slots_held_ = 0;
};

}  // namespace quire
