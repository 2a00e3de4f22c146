#include "src/cache/block_pool.h"

#include <bit>

#include "src/base/check.h"

namespace quire {

BlockPool::BlockPool(Arena& arena, int64_t block_bytes)
    : arena_(&arena),
      block_bytes_(block_bytes),
      per_superblock_(static_cast<int32_t>(arena.superblock_bytes() / block_bytes)),
      per_short_superblock_(
          static_cast<int32_t>(arena.bytes_of(SuperblockId{arena.num_superblocks() - 1}) / block_bytes)),
      words_per_superblock_((per_superblock_ + 63) / 64) {
  check(arena.superblock_bytes() % block_bytes == 0, "superblock holds whole blocks of every class");
  blocks_.resize(arena.arena_bytes() / block_bytes);
  superblocks_.resize(arena.num_superblocks());
  free_bits_.resize(static_cast<int64_t>(arena.num_superblocks()) * words_per_superblock_);
  with_room_.reserve(arena.num_superblocks());
}

bool BlockPool::allocate(int64_t count, std::vector<BlockId>& out) {
  if (count == 0) return true;
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (with_room_.empty()) check(take_superblock(), "a superblock counted as free can be taken");
    const BlockId block = take_free();
    blocks_[value(block)].holders = 1;
    ++num_held_;
    out.push_back(block);
  }
  return true;
}

bool BlockPool::take_superblock() {
  // A short last superblock may have no room for a block of this class: it goes back under the others.
  std::optional<SuperblockId> too_short;
  std::optional<SuperblockId> id = arena_->take();
  if (id && arena_->bytes_of(*id) < block_bytes_) {
    too_short = id;
    id = arena_->take();
  }
  if (too_short) arena_->give_back(*too_short);
  if (!id) return false;
  const int32_t index = value(*id);
  const auto count = static_cast<int32_t>(arena_->bytes_of(*id) / block_bytes_);
  superblocks_[index] = {.mine = true,
                         .num_blocks = count,
                         .num_free = count,
                         .room_index = static_cast<int32_t>(with_room_.size())};
  with_room_.push_back(index);
  for (int32_t w = 0; w < words_per_superblock_; ++w) {
    const int32_t bits = count - w * 64;
    free_bits_[static_cast<int64_t>(index) * words_per_superblock_ + w] = bits >= 64 ? ~0ull
                                                                          : bits > 0 ? (1ull << bits) - 1
                                                                                     : 0;
  }
  num_free_here_ += count;
  return true;
}

void BlockPool::give_back_superblock(int32_t index) {
  num_free_here_ -= superblocks_[index].num_free;
  remove_from_room(index);
  superblocks_[index] = {};
  arena_->give_back(SuperblockId{index});
}

BlockId BlockPool::take_free() {
  const int32_t index = with_room_.back();
  uint64_t* words = &free_bits_[static_cast<int64_t>(index) * words_per_superblock_];
  int32_t w = 0;
  while (words[w] == 0) ++w;
  const int32_t bit = std::countr_zero(words[w]);
  words[w] &= words[w] - 1;
  --num_free_here_;
  if (--superblocks_[index].num_free == 0) remove_from_room(index);
  return BlockId{index * per_superblock_ + w * 64 + bit};
}

void BlockPool::put_free(BlockId block) {
  blocks_[value(block)] = {.publication = publication(block)};
  const int32_t index = value(block) / per_superblock_, offset = value(block) % per_superblock_;
  Superblock& superblock = superblocks_[index];
  check(superblock.mine, "a freed block's superblock belongs to its class");
  free_bits_[static_cast<int64_t>(index) * words_per_superblock_ + offset / 64] |= 1ull << (offset % 64);
  ++num_free_here_;
  if (++superblock.num_free == 1) {
    superblock.room_index = static_cast<int32_t>(with_room_.size());
    with_room_.push_back(index);
  }
  if (superblock.num_free == superblock.num_blocks) give_back_superblock(index);
}

void BlockPool::remove_from_room(int32_t index) {
  const int32_t place = superblocks_[index].room_index;
  with_room_[place] = with_room_.back();
  superblocks_[with_room_[place]].room_index = place;
  with_room_.pop_back();
  superblocks_[index].room_index = -1;
}

void BlockPool::became_held(BlockId block) {
  check(is_published(block), "a block that gains its first holder was cached");
  --num_cached_;
  ++num_held_;
  filled_slots_held_ += blocks_[value(block)].filled;
}

void BlockPool::no_longer_held(BlockId block) {
  --num_held_;
  filled_slots_held_ -= blocks_[value(block)].filled;
  if (is_published(block)) {
    ++num_cached_;
  } else {
    put_free(block);
  }
}

void BlockPool::retain(BlockId block) {
  if (!is_held(block)) became_held(block);
  ++blocks_[value(block)].holders;
}

void BlockPool::release(BlockId block) {
  check(num_holders(block) > 0, "a released block has a holder");
  --blocks_[value(block)].holders;
  if (!is_held(block)) no_longer_held(block);
}

void BlockPool::holder_to_reader(BlockId block) {
  check(num_holders(block) > 0, "a block that gains a reader this way has a holder");
  --blocks_[value(block)].holders;
  ++blocks_[value(block)].readers;
}

void BlockPool::reader_to_holder(BlockId block) {
  check(num_readers(block) > 0, "a reader becomes a holder again");
  --blocks_[value(block)].readers;
  ++blocks_[value(block)].holders;
}

void BlockPool::release_reader(BlockId block) {
  check(num_readers(block) > 0, "a released reader was there");
  --blocks_[value(block)].readers;
  if (!is_held(block)) no_longer_held(block);
}

void BlockPool::set_published(BlockId block) {
  check(is_held(block) && !is_published(block), "a block is published once, by a holder");
  blocks_[value(block)].published = true;
  ++blocks_[value(block)].publication;
}

void BlockPool::clear_published(BlockId block) {
  check(is_published(block), "only a published block leaves the tree");
  blocks_[value(block)].published = false;
  if (!is_held(block)) {
    --num_cached_;
    put_free(block);
  }
}

}  // namespace quire
