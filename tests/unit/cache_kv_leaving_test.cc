// What leaves the device and when: evicted by order, class and use, or swapped to the host and back. Method: as cache_kv_test.cc.
#include "tests/unit/cache_kv_rig.h"

namespace quire {
namespace {

TEST_F(KvCacheTest, LeavesAreEvictedBeforeTheirParents) {
  cache_prompt(iota(64));
  EXPECT_EQ(cache->num_evictable(), 4);
  BlockTable table;
  for (int32_t n = 17; n <= 20; ++n) {
    ASSERT_TRUE(extend(table, n * kB));
    EXPECT_EQ(cache->lookup(ns, iota(64)), (20 - n) * kB);
    audit({&table});
  }
  EXPECT_EQ(cache->counters().evictions, 4);
  release(table);
}

TEST_F(KvCacheTest, HeldPrefixesAreNotEvicted) {
  cache_prompt(iota(64));
  BlockTable holder = cache->acquire_prefix(ns, iota(64), 33, now);
  EXPECT_EQ(cache->num_evictable(), 1);
  BlockTable table;
  EXPECT_FALSE(extend(table, 18 * kB));
  EXPECT_EQ(table.length(), 0);
  EXPECT_EQ(cache->num_evictable(), 1);  // a refusal evicts nothing
  ASSERT_TRUE(extend(table, 17 * kB));
  EXPECT_EQ(cache->lookup(ns, iota(64)), 48);
  audit({&table, &holder});
  release(table);
  release(holder);
}

// A list that has slid holds the last block and none before it.
TEST_F(KvCacheTest, WhatStandsBeforeABlockThatAnotherHoldsIsNoRoom) {
  cache_prompt(iota(64));
  BlockTable whole = cache->acquire_prefix(ns, iota(64), 64, now);
  BlockTable slid = cache->acquire_prefix(ns, iota(64), 64, now);
  cache->drop_blocks(slid, 0, 3, deferred);
  settle();
  const std::vector<BlockId>& blocks = whole.blocks();
  const BlockTable* const given[] = {&whole};
  EXPECT_EQ(cache->held_by(given).freed, 0);
  EXPECT_TRUE(cache->is_read(blocks[2], blocks[3]));
  release(slid);
  EXPECT_EQ(cache->held_by(given).freed, 4);
  for (int i = 3; i > 0; --i) EXPECT_FALSE(cache->is_read(blocks[i - 1], blocks[i])) << i;
  release(whole);
}

TEST_F(KvCacheTest, TheLeastRecentlyReleasedPromptGoesFirst) {
  now = 10;
  cache_prompt(iota(32, 0));
  now = 20;
  cache_prompt(iota(32, 1000));
  now = 30;
  BlockTable again = cache->acquire_prefix(ns, iota(32, 0), 32, now);
  release(again);
  BlockTable table;
  ASSERT_TRUE(extend(table, 18 * kB));
  EXPECT_EQ(cache->lookup(ns, iota(32, 0)), 32);
  EXPECT_EQ(cache->lookup(ns, iota(32, 1000)), 0);
  release(table);
}

TEST_F(KvCacheTest, APromptCountsAsUsedUntilItsLastHolderLeaves) {
  now = 10;
  cache_prompt(iota(32, 0));
  BlockTable long_running = cache->acquire_prefix(ns, iota(32, 0), 32, now);
  now = 20;
  cache_prompt(iota(32, 1000));
  now = 30;
  release(long_running);
  BlockTable table;
  ASSERT_TRUE(extend(table, 18 * kB));
  EXPECT_EQ(cache->lookup(ns, iota(32, 0)), 32);
  EXPECT_EQ(cache->lookup(ns, iota(32, 1000)), 0);
  release(table);
}

TEST_F(KvCacheTest, AHighClassOutlivesRecentUseUntilItExpires) {
  now = 10;
  cache_prompt(iota(32, 0), {.retention_class = 1, .expiry_us = 100});
  now = 20;
  cache_prompt(iota(32, 1000));
  BlockTable table;
  ASSERT_TRUE(extend(table, 17 * kB));
  EXPECT_EQ(cache->lookup(ns, iota(32, 0)), 32);
  EXPECT_EQ(cache->lookup(ns, iota(32, 1000)), 16);
  now = 100;
  ASSERT_TRUE(extend(table, 18 * kB));
  EXPECT_EQ(cache->lookup(ns, iota(32, 0)), 16);
  EXPECT_EQ(cache->lookup(ns, iota(32, 1000)), 16);
  release(table);
}

// One that was asked for as often, by who found no room for the rest each time, has been of no use.
TEST_F(KvCacheTest, PgdsfKeepsAnOftenUsedPromptOverARecentOne) {
  for (const bool used : {true, false}) {
    make(20, EvictionOrder::kPgdsf);
    cache_prompt(iota(32, 0), {.recompute_cost = 1});
    for (int i = 0; i < 5; ++i) {
      BlockTable again = cache->acquire_prefix(ns, iota(32, 0), 32, ++now);
      if (used) cache->count_use(again, now);
      release(again);
    }
    now += 1000;
    cache_prompt(iota(32, 1000), {.recompute_cost = 1});
    BlockTable table;
    ASSERT_TRUE(extend(table, 18 * kB));
    EXPECT_EQ(cache->lookup(ns, iota(32, 0)), used ? 32 : 0);
    EXPECT_EQ(cache->lookup(ns, iota(32, 1000)), used ? 0 : 32);
    release(table);
  }
}

// Copies to the host run in no order with steps: a sharer's overwrite would change what is being copied.
TEST_F(KvCacheTest, NobodyWritesABlockThatIsOnItsWayToTheHost) {
  const GroupSpec group{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = kB};
  CacheSpec spec = uniform_spec(group, 20);
  spec.swap_bytes = 4 * group.block_bytes();
  cache = *KvCache::create(spec);
  ns = cache->open_namespace({.model = "m"});
  BlockTable stays;
  ASSERT_TRUE(extend(stays, 2 * kB));
  BlockTable goes = cache->fork(stays);
  SwappedList list;
  std::vector<TierCopy> to_host;
  const BlockTable* const table = &goes;
  SwappedList* const to = &list;
  ASSERT_TRUE(cache->swap_out({&table, 1}, {&to, 1}, to_host));
  ASSERT_EQ(to_host.size(), 2u);
  for (const BlockId block : stays.blocks()) EXPECT_FALSE(cache->may_write(block));
  release(goes);
  for (const BlockId block : stays.blocks()) EXPECT_TRUE(cache->may_write(block));
  cache->discard(std::move(list));
  release(stays);
}

// Three lists: the first two share a block, and with the third another.
TEST_F(KvCacheTest, WhatListsShareLeavesOnceAndIsSharedAgain) {
  const GroupSpec group{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = kB};
  CacheSpec spec = uniform_spec(group, 20);
  spec.swap_bytes = 6 * group.block_bytes();
  cache = *KvCache::create(spec);
  ns = cache->open_namespace({.model = "m"});
  std::vector<BlockTable> tables(3);
  ASSERT_TRUE(extend(tables[0], kB));
  tables[2] = cache->fork(tables[0]);
  ASSERT_TRUE(extend(tables[0], 2 * kB));
  tables[1] = cache->fork(tables[0]);
  for (BlockTable& table : tables) ASSERT_TRUE(extend(table, 2 * kB + 3));
  std::vector<SwappedList> lists(3);
  const std::vector<const BlockTable*> from{&tables[0], &tables[1], &tables[2]};
  const std::vector<SwappedList*> to{&lists[0], &lists[1], &lists[2]};
  std::vector<TierCopy> copies;
  EXPECT_TRUE(cache->swap_out(from, to, copies));
  EXPECT_EQ(copies.size(), 6u) << "2 shared, 3 tails, and the third's second";
  EXPECT_EQ(cache->swap_pool().num_free(), 0);
  for (BlockTable& table : tables) release(table);
  EXPECT_EQ(cache->num_held(), 0);

  std::vector<const SwappedList*> of;
  std::vector<BlockTable> back;
  for (const SwappedList& list : lists) {
    of.push_back(&list);
    back.push_back(cache->swap_in_what_stayed(list, now));
    EXPECT_TRUE(back.back().empty()) << "nothing was published";
  }
  copies.clear();
  EXPECT_EQ(KvCache::blocks_to_swap_in(of, back), 6);
  ASSERT_TRUE(cache->swap_in_the_rest(of, back, now, copies));
  EXPECT_EQ(copies.size(), 6u);
  EXPECT_EQ(cache->num_held(), 6);
  EXPECT_EQ(back[0].blocks()[0], back[2].blocks()[0]);
  EXPECT_EQ(back[0].blocks()[1], back[1].blocks()[1]);
  EXPECT_NE(back[0].blocks()[1], back[2].blocks()[1]);
  EXPECT_NE(back[0].blocks()[2], back[1].blocks()[2]);
  EXPECT_EQ(cache->num_holders(back[0].blocks()[0]), 3);
  EXPECT_EQ(cache->num_holders(back[0].blocks()[1]), 2);
  const std::vector<const BlockTable*> live{&back[0], &back[1], &back[2]};
  EXPECT_EQ(cache->audit(live, {}, of), std::nullopt);
  for (SwappedList& list : lists) cache->discard(std::move(list));
  EXPECT_EQ(cache->swap_pool().num_held(), 0);
  for (BlockTable& table : back) release(table);
}

// Two that found a leaf of five tokens, and use three and five of them, have done nothing since.
TEST_F(KvCacheTest, ABlockThatListsUseUnlikeComesBackAsFullAsAnyHasIt) {
  const GroupSpec group{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = kB};
  CacheSpec spec = uniform_spec(group, 20);
  spec.swap_bytes = 6 * group.block_bytes();
  cache = *KvCache::create(spec);
  ns = cache->open_namespace({.model = "m"});
  BlockTable leaf;
  ASSERT_TRUE(extend(leaf, kB + 5));
  publish(leaf, iota(kB + 5));
  release(leaf);
  std::vector<BlockTable> tables;
  for (const int32_t length : {kB + 3, kB + 5})
    tables.push_back(cache->acquire_prefix(ns, iota(kB + 5), length, now));
  ASSERT_EQ(tables[0].blocks().back(), tables[1].blocks().back());
  std::vector<SwappedList> lists(2);
  const std::vector<const BlockTable*> from{&tables[0], &tables[1]};
  const std::vector<SwappedList*> to{&lists[0], &lists[1]};
  std::vector<TierCopy> copies;
  ASSERT_TRUE(cache->swap_out(from, to, copies));
  for (BlockTable& table : tables) release(table);
  std::vector<BlockTable> back(2);  // of what stayed nothing is taken
  const std::vector<const SwappedList*> of{&lists[0], &lists[1]};
  copies.clear();
  ASSERT_TRUE(cache->swap_in_the_rest(of, back, now, copies));
  EXPECT_EQ(back[0].length(), kB + 3);
  EXPECT_EQ(back[1].length(), kB + 5);
  const std::vector<const BlockTable*> live{&back[0], &back[1]};
  EXPECT_EQ(cache->audit(live, {}, of), std::nullopt);
  for (SwappedList& list : lists) cache->discard(std::move(list));
  for (BlockTable& table : back) release(table);
}

}  // namespace
}  // namespace quire
