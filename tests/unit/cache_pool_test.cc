// Method: small arenas counted by hand; after each change the pool recounts itself.
#include <gtest/gtest.h>

#include <set>

#include "src/cache/arena.h"
#include "src/cache/block_pool.h"
#include "src/cache/spec.h"

namespace quire {
namespace {

std::vector<BlockId> take(BlockPool& pool, int64_t count) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.allocate(count, blocks));
  EXPECT_EQ(pool.audit(), std::nullopt);
  return blocks;
}

TEST(Arena, ALastSuperblockMayBeShortAndItsBlocksCount) {
  Arena arena(1000, 300);
  EXPECT_EQ(arena.num_superblocks(), 4);
  EXPECT_EQ(arena.bytes_of(SuperblockId{3}), 100);
  EXPECT_EQ(arena.num_whole_free(), 3);
  EXPECT_TRUE(arena.short_is_free());
  EXPECT_EQ(BlockPool(arena, 50).num_free(), 3 * 6 + 2);
  EXPECT_EQ(BlockPool(arena, 150).num_free(), 3 * 2);
  while (arena.take()) {
  }
  EXPECT_EQ(BlockPool(arena, 50).num_free(), 0);
  arena.give_back(SuperblockId{3});
  EXPECT_EQ(BlockPool(arena, 50).num_free(), 2);
  arena.give_back(SuperblockId{1});
  EXPECT_EQ(arena.num_whole_free(), 1);
  EXPECT_EQ(BlockPool(arena, 50).num_free(), 6 + 2);
}

TEST(BlockPool, AllocatesAllOrNothing) {
  Arena arena(1000, 300);
  BlockPool pool(arena, 50);
  ASSERT_EQ(pool.num_blocks(), 20);
  std::vector<BlockId> blocks;
  EXPECT_FALSE(pool.allocate(21, blocks));
  EXPECT_TRUE(blocks.empty());
  EXPECT_EQ(pool.num_free(), 20);
  EXPECT_TRUE(pool.allocate(20, blocks));
  EXPECT_EQ(std::set<BlockId>(blocks.begin(), blocks.end()).size(), 20u);
  EXPECT_EQ(pool.num_held(), 20);
  EXPECT_FALSE(pool.allocate(1, blocks));
}

TEST(BlockPool, IdsAddressTheArenaInUnitsOfBlockBytes) {
  Arena arena(1000, 300);
  BlockPool small(arena, 50), large(arena, 150);
  std::set<int64_t> bytes_used;
  for (const BlockId block : take(small, 7))
    for (int64_t i = 0; i < 50; ++i) EXPECT_TRUE(bytes_used.insert(value(block) * 50 + i).second);
  for (const BlockId block : take(large, 2))
    for (int64_t i = 0; i < 150; ++i) EXPECT_TRUE(bytes_used.insert(value(block) * 150 + i).second);
  EXPECT_LT(*bytes_used.rbegin(), 1000);
}

TEST(BlockPool, ClassesTakeAndReturnSuperblocksOnDemand) {
  Arena arena(900, 300);
  BlockPool small(arena, 50), large(arena, 150);
  const std::vector<BlockId> all = take(small, 18);
  EXPECT_EQ(large.num_free(), 0);
  for (int i = 0; i < 6; ++i) small.release(all[i]);  // one superblock's worth
  EXPECT_EQ(small.audit(), std::nullopt);
  EXPECT_EQ(large.num_free(), 2);
  take(large, 2);
  EXPECT_EQ(small.num_free(), 0);
  EXPECT_EQ(small.num_blocks(), 12);
}

TEST(BlockPool, ATailTooShortForAClassDoesNotHideTheOthers) {
  Arena arena(650, 300);
  BlockPool large(arena, 150), small(arena, 50);
  EXPECT_EQ(large.num_free(), 4);
  take(large, 4);
  EXPECT_EQ(large.num_free(), 0);
  take(small, 1);
}

TEST(BlockPool, APublishedBlockWithoutHolderIsCachedNotFree) {
  Arena arena(100, 100);
  BlockPool pool(arena, 50);
  const BlockId block = take(pool, 1)[0];
  pool.set_published(block);
  EXPECT_FALSE(pool.may_write(block));
  pool.release(block);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.num_free(), 1);
  pool.retain(block);
  EXPECT_EQ(pool.num_held(), 1);
  pool.release(block);
  pool.clear_published(block);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.audit(), std::nullopt);
}

TEST(BlockPool, AReaderKeepsABlockButDoesNotForbidWriting) {
  Arena arena(100, 100);
  BlockPool pool(arena, 50);
  const BlockId block = take(pool, 1)[0];
  pool.retain(block);
  EXPECT_FALSE(pool.may_write(block));
  pool.holder_to_reader(block);
  EXPECT_TRUE(pool.may_write(block));
  pool.release(block);
  EXPECT_EQ(pool.num_held(), 1);
  pool.release_reader(block);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.audit(), std::nullopt);
}

TEST(BlockPool, FilledSlotsCountHeldBlocksOnly) {
  Arena arena(100, 100);
  BlockPool pool(arena, 50);
  const BlockId block = take(pool, 1)[0];
  pool.set_filled(block, 7);
  EXPECT_EQ(pool.filled_slots_held(), 7);
  pool.set_published(block);
  pool.release(block);
  EXPECT_EQ(pool.filled_slots_held(), 0);
  pool.retain(block);
  EXPECT_EQ(pool.filled_slots_held(), 7);
}

TEST(BlockPoolDeathTest, AnUnheldBlockIsNotReleased) {
  Arena arena(100, 100);
  BlockPool pool(arena, 50);
  const BlockId block = take(pool, 1)[0];
  pool.release(block);
  EXPECT_DEATH(pool.release(block), "has a holder");
}

TEST(CacheSpec, Llama2At13BillionTakes819200BytesPerToken) {
  const GroupSpec group{.num_layers = 40, .num_kv_heads = 40, .head_dim = 128, .dtype = DType::kF16};
  EXPECT_EQ(group.token_bytes(), 819200);
  EXPECT_EQ(group.block_bytes(), 819200 * 16);
  EXPECT_EQ(superblock_bytes(uniform_spec(group, 100)), 819200 * 16);  // more than a device page already
}

TEST(CacheSpec, ErrorsNameGroupFieldValueAndLimit) {
  GroupSpec group{.name = "g", .num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_tokens = 12};
  EXPECT_EQ(validate(uniform_spec(group, 4)).error().message,
            "kv group 'g': block_tokens is 12; one of 8, 16, 32, 64");
  group.block_tokens = 16;
  CacheSpec spec = uniform_spec(group, 4);
  EXPECT_TRUE(validate(spec));
  spec.arena_bytes = 511;
  EXPECT_EQ(validate(spec).error().message,
            "kv group 'g': one block takes 512 bytes; the KV arena has 511 (kv_cache_bytes)");
  group.num_layers = 0;
  EXPECT_EQ(validate({.groups = {group}, .arena_bytes = 4096}).error().message,
            "kv group 'g': num_layers is 0; from 1 to 1048576");
}

TEST(CacheSpec, GroupsWithoutACommonSuperblockAreRefused) {
  CacheSpec spec{.groups = {{.num_layers = 7, .num_kv_heads = 11, .head_dim = 13},
                            {.num_layers = 5, .num_kv_heads = 17, .head_dim = 19}},
                 .arena_bytes = 10 << 20};
  EXPECT_NE(validate(spec).error().message.find("no common multiple"), std::string::npos);
}

}  // namespace
}  // namespace quire
