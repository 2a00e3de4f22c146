// Method: one rule at a time on a cache small enough to count blocks by hand; every fixture ends with a full
// audit.
#include "tests/unit/cache_kv_rig.h"

namespace quire {
namespace {

// What is left out of the key is shared: another tenant's prompt, or a list that dropped tokens.
TEST(NamespaceKeys, DifferWhereOneFieldDoes) {
  const NamespaceKey key{.model = "m", .lora = "l", .salt = "s", .spec = "p", .codec = "c", .policy = "k"};
  for (std::string NamespaceKey::* field :
       {&NamespaceKey::model, &NamespaceKey::lora, &NamespaceKey::salt, &NamespaceKey::spec,
        &NamespaceKey::codec, &NamespaceKey::policy}) {
    NamespaceKey other = key;
    other.*field += "2";
    EXPECT_NE(encode(other), encode(key));
  }
  EXPECT_NE(encode({.lora = "ab", .salt = "c"}), encode({.lora = "a", .salt = "bc"}));
}

TEST_F(KvCacheTest, ATableTakesABlockOnlyWhenTheLastIsFull) {
  BlockTable table;
  for (int32_t n = 1; n <= 40; ++n) {
    EXPECT_EQ(cache->blocks_needed(table, n), n % kB == 1 ? 1 : 0) << n;
    ASSERT_TRUE(extend(table, n));
    EXPECT_EQ(table.num_blocks(), (n + kB - 1) / kB);
    EXPECT_EQ(table.next_position(), n);
    EXPECT_NEAR(cache->waste_percent(), 100.0 * (table.num_blocks() * kB - n) / (table.num_blocks() * kB),
                1e-9);
  }
  audit({&table});
  release(table);
  EXPECT_EQ(cache->num_free(), 20);
}

TEST_F(KvCacheTest, FourSamplesOfAPromptCopyItsTailThreeTimes) {
  BlockTable tables[4];
  ASSERT_TRUE(extend(tables[0], 40));
  for (int i = 1; i < 4; ++i) tables[i] = cache->fork(tables[0]);
  EXPECT_EQ(cache->num_held(), 3);
  EXPECT_EQ(cache->blocks_needed(tables[0], 41), 1);
  const BlockTable* const all[] = {&tables[0], &tables[1], &tables[2], &tables[3]};
  EXPECT_EQ(cache->blocks_for_next_slots(all), 3);
  EXPECT_EQ(cache->blocks_for_next_slots(std::span(all).first(2)), 2) << "others hold the tail too";
  copies.clear();
  StepTransaction step = cache->begin(now);
  for (BlockTable& table : tables) ASSERT_TRUE(step.extend(table, 41));
  step.commit(copies, deferred);
  EXPECT_EQ(copies.size(), 3u);
  EXPECT_EQ(cache->counters().copies_on_write, 3);
  EXPECT_EQ(cache->num_held(), 2 + 4);
  for (const BlockTable& table : tables) EXPECT_TRUE(cache->may_write(table.blocks().back()));
  audit({&tables[0], &tables[1], &tables[2], &tables[3]});
  settle();
  for (BlockTable& table : tables) release(table);
}

TEST_F(KvCacheTest, ThreeForksThatOverwriteCopyTheirListTwice) {
  BlockTable tables[3];
  ASSERT_TRUE(extend(tables[0], 40));
  for (int i = 1; i < 3; ++i) tables[i] = cache->fork(tables[0]);
  const BlockTable* const all[] = {&tables[0], &tables[1], &tables[2]};
  EXPECT_EQ(cache->blocks_for_overwrites(all), 2 * 3);
  EXPECT_EQ(cache->blocks_for_overwrites(std::span(all).first(2)), 2 * 3) << "another holds it too";
  copies.clear();
  StepTransaction step = cache->begin(now);
  for (BlockTable& table : tables) ASSERT_TRUE(step.overwrite(table));
  step.commit(copies, deferred);
  EXPECT_EQ(copies.size(), 6u);
  EXPECT_EQ(cache->blocks_for_overwrites(all), 0);
  audit({&tables[0], &tables[1], &tables[2]});
  settle();
  for (BlockTable& table : tables) release(table);
}

TEST_F(KvCacheTest, AForkAtABlockBoundaryCopiesNothing) {
  BlockTable a;
  ASSERT_TRUE(extend(a, 32));
  BlockTable b = cache->fork(a);
  const BlockTable* const both[] = {&a, &b};
  EXPECT_EQ(cache->blocks_for_next_slots(both), 2);
  ASSERT_TRUE(extend(b, 33));
  EXPECT_TRUE(copies.empty());
  ASSERT_TRUE(extend(a, 33));
  EXPECT_TRUE(copies.empty());
  EXPECT_NE(a.blocks()[2], b.blocks()[2]);
  release(a);
  release(b);
}

TEST_F(KvCacheTest, AppendingToAPublishedTailCopiesItFirst) {
  BlockTable table;
  ASSERT_TRUE(extend(table, 20));
  publish(table, iota(20));
  const BlockId published = table.blocks()[1];
  EXPECT_FALSE(cache->may_write(published));
  EXPECT_EQ(cache->blocks_needed(table, 21), 1);
  const BlockTable* const only = &table;
  EXPECT_EQ(cache->blocks_for_next_slots({&only, 1}), 1) << "the tree keeps it";
  ASSERT_TRUE(extend(table, 21));
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].source, published);
  EXPECT_EQ(copies[0].target, table.blocks()[1]);
  settle();
  audit({&table});
  EXPECT_EQ(cache->lookup(ns, iota(30)), 20);
  ASSERT_TRUE(extend(table, 22));
  EXPECT_TRUE(copies.empty());  // its own now
  release(table);
}

TEST_F(KvCacheTest, DecodingOnAfterPublishingFullBlocksCopiesNothing) {
  BlockTable table;
  for (int32_t n = 1; n <= 60; ++n) {
    ASSERT_TRUE(extend(table, n));
    EXPECT_TRUE(copies.empty());
    const std::vector<TokenId> tokens = iota(n);
    if (n % kB == 0) publish(table, tokens);
  }
  EXPECT_EQ(cache->lookup(ns, iota(60)), 48);
  release(table);
}

TEST_F(KvCacheTest, AHitSharesThePartlyMatchingTailUntilItIsWritten) {
  cache_prompt(iota(48));
  std::vector<TokenId> prompt = iota(21);
  prompt.insert(prompt.end(), {900, 901, 902});
  EXPECT_EQ(cache->lookup(ns, prompt), 21);
  BlockTable table = cache->acquire_prefix(ns, prompt, 23, now);
  EXPECT_EQ(table.length(), 21);
  EXPECT_EQ(table.next_position(), 21);
  EXPECT_EQ(table.num_blocks(), 2);
  EXPECT_EQ(cache->num_held(), 2);
  EXPECT_EQ(cache->num_cached(), 1);
  audit({&table});
  ASSERT_TRUE(extend(table, 24));
  ASSERT_EQ(copies.size(), 1u);
  publish(table, prompt);
  settle();
  EXPECT_EQ(cache->lookup(ns, prompt), 24);
  EXPECT_EQ(cache->lookup(ns, iota(48)), 48);
  audit({&table});
  release(table);
}

TEST_F(KvCacheTest, AcquireTakesAtMostMaxTokens) {
  cache_prompt(iota(48));
  for (const int32_t most : {0, 1, 15, 16, 17, 47, 48, 99}) {
    BlockTable table = cache->acquire_prefix(ns, iota(48), most, now);
    EXPECT_EQ(table.length(), std::min(most, 48));
    audit({&table});
    release(table);
  }
}

TEST_F(KvCacheTest, OtherSaltsShareNothing) {
  cache_prompt(iota(48));
  const NamespaceId other = cache->open_namespace({.model = "m", .salt = "tenant"});
  EXPECT_EQ(cache->lookup(other, iota(48)), 0);
  EXPECT_EQ(cache->acquire_prefix(other, iota(48), 48, now).length(), 0);
  cache->close_namespace(other);
}

TEST_F(KvCacheTest, AClosedNamespaceIsFoundAgainUntilEvicted) {
  cache_prompt(iota(48));
  cache->close_namespace(ns);
  ns = cache->open_namespace({.model = "m"});
  EXPECT_EQ(cache->lookup(ns, iota(48)), 48);
  cache->close_namespace(ns);
  BlockTable table;
  ASSERT_TRUE(extend(table, 20 * kB));
  release(table);
  ns = cache->open_namespace({.model = "m"});
  EXPECT_EQ(cache->lookup(ns, iota(48)), 0);
}

TEST_F(KvCacheTest, TheSecondOfTwoEqualPromptsFreesItsDuplicate) {
  BlockTable a, b;
  ASSERT_TRUE(extend(a, 40));
  ASSERT_TRUE(extend(b, 40));
  EXPECT_EQ(cache->num_held(), 6);
  publish(a, iota(40));
  publish(b, iota(40));
  EXPECT_EQ(a.blocks(), b.blocks());
  EXPECT_EQ(cache->counters().duplicates_merged, 3);
  EXPECT_EQ(cache->num_held(), 6);  // a submitted step may still name the duplicates
  audit({&a, &b});
  settle();
  EXPECT_EQ(cache->num_held(), 3);
  release(a);
  release(b);
}

// They were forked before the prompt was known to be cached. One has let go of its first block meanwhile, as windows
// do: what stands in the duplicate's place is another.
TEST_F(KvCacheTest, ForksChangeOverToTheCachedBlocksWithTheirSource) {
  cache_prompt(iota(32));
  BlockTable a;
  ASSERT_TRUE(extend(a, 40));
  BlockTable b = cache->fork(a), slid = cache->fork(a);
  cache->drop_blocks(slid, 0, 1, deferred);
  const std::vector<BlockId> slid_blocks = slid.blocks();
  cache->publish(ns, iota(40), a, 32, {}, now, deferred, std::vector<BlockTable*>{&b, &slid});
  EXPECT_EQ(a.blocks(), b.blocks());
  EXPECT_EQ(slid.blocks(), slid_blocks);
  EXPECT_EQ(cache->counters().duplicates_merged, 2);
  audit({&a, &b, &slid});
  settle();
  EXPECT_EQ(cache->num_held(), 4) << "of the duplicates only the one that is left to the list that slid";
  release(slid);
  EXPECT_EQ(cache->num_held(), 3);
  release(a);
  release(b);
}

TEST_F(KvCacheTest, AForkKeepsATailOfWhichItUsesMoreThanIsPublished) {
  cache_prompt(iota(18));
  BlockTable a;
  ASSERT_TRUE(extend(a, 20));
  BlockTable b = cache->fork(a);
  cache->publish(ns, iota(18), a, 18, {}, now, deferred, std::vector<BlockTable*>{&b});
  EXPECT_EQ(a.blocks()[0], b.blocks()[0]);
  EXPECT_NE(a.blocks()[1], b.blocks()[1]) << "the cached one has 2 tokens, the fork's 4";
  release(a);  // a tail is published at the end
  audit({&b});
  settle();
  release(b);
}

TEST_F(KvCacheTest, APartialTailIsSupersededByALongerOne) {
  cache_prompt(iota(20));
  EXPECT_EQ(cache->num_cached(), 2);
  cache_prompt(iota(40));
  EXPECT_EQ(cache->num_cached(), 3);  // the block of 4 tokens is gone
  EXPECT_EQ(cache->lookup(ns, iota(40)), 40);
  cache_prompt(iota(23));  // covered: adds nothing
  EXPECT_EQ(cache->num_cached(), 3);
}

TEST_F(KvCacheTest, ASupersededTailStaysWithItsHolder) {
  cache_prompt(iota(20));
  BlockTable holder = cache->acquire_prefix(ns, iota(20), 20, now);
  cache_prompt(iota(40));
  EXPECT_EQ(cache->lookup(ns, iota(40)), 40);
  audit({&holder});
  EXPECT_TRUE(cache->may_write(holder.blocks()[1]));
  ASSERT_TRUE(extend(holder, 21));
  EXPECT_TRUE(copies.empty());
  release(holder);
  EXPECT_EQ(cache->num_held(), 0);
}

// Found by the property test: the block was in the tree with fewer tokens than the longer fork holds in it.
TEST_F(KvCacheTest, AForkCutShorterMayPublishFirst) {
  BlockTable whole;
  ASSERT_TRUE(extend(whole, 32));
  BlockTable cut = cache->fork(whole);
  cache->truncate(cut, 20, deferred);
  publish(cut, iota(20));
  EXPECT_EQ(cache->lookup(ns, iota(32)), 20);
  publish(whole, iota(32));
  EXPECT_EQ(cache->lookup(ns, iota(32)), 32);
  EXPECT_EQ(whole.blocks(), cut.blocks());
  audit({&whole, &cut});
  release(whole);
  release(cut);
}

TEST_F(KvCacheTest, RollbackRestoresTablesAndHolders) {
  BlockTable a;
  ASSERT_TRUE(extend(a, 20));
  BlockTable b = cache->fork(a), c;
  ASSERT_TRUE(extend(c, 25));
  const std::vector<BlockId> blocks_a = a.blocks(), blocks_c = c.blocks();
  const double waste = cache->waste_percent();
  {
    StepTransaction step = cache->begin(now);
    ASSERT_TRUE(step.extend(a, 21));  // copies
    ASSERT_TRUE(step.extend(b, 50));  // the last holder: in place, and grows
    ASSERT_TRUE(step.extend(c, 30));
    ASSERT_TRUE(step.extend(c, 40));
    ASSERT_FALSE(step.extend(c, 4000));
    step.rollback();
  }
  EXPECT_EQ(a.blocks(), blocks_a);
  EXPECT_EQ(b.blocks(), blocks_a);
  EXPECT_EQ(c.blocks(), blocks_c);
  EXPECT_EQ(a.length(), 20);
  EXPECT_EQ(b.length(), 20);
  EXPECT_EQ(c.length(), 25);
  EXPECT_EQ(c.next_position(), 25);
  EXPECT_EQ(cache->num_held(), 4);
  EXPECT_EQ(cache->waste_percent(), waste);
  EXPECT_EQ(cache->counters().copies_on_write, 0);
  EXPECT_FALSE(cache->may_write(a.blocks()[1]));
  audit({&a, &b, &c});
  {
    StepTransaction left_open = cache->begin(now);
    ASSERT_TRUE(left_open.extend(c, 100));
  }
  EXPECT_EQ(c.length(), 25);
  release(a);
  release(b);
  release(c);
}

TEST_F(KvCacheTest, ABlockThatAStepCopiesStaysUntilTheStepHasRun) {
  BlockTable a;
  ASSERT_TRUE(extend(a, 20));
  BlockTable b = cache->fork(a);
  ASSERT_TRUE(extend(a, 21));
  const BlockId source = copies.at(0).source;
  release(b);  // the source has no holder now, only the reader
  EXPECT_EQ(cache->num_holders(source), 0);
  EXPECT_EQ(cache->num_held(), 3);
  BlockTable c;
  EXPECT_FALSE(extend(c, 18 * kB));
  settle();
  EXPECT_EQ(cache->num_held(), 2);
  ASSERT_TRUE(extend(c, 18 * kB));
  release(a);
  release(c);
}

TEST_F(KvCacheTest, TruncateDefersWholeBlocksAndCountsTheTail) {
  BlockTable table;
  ASSERT_TRUE(extend(table, 60));
  cache->truncate(table, 17, deferred);
  EXPECT_EQ(table.num_blocks(), 2);
  EXPECT_EQ(table.next_position(), 17);
  EXPECT_EQ(deferred.size(), 2u);
  audit({&table});
  settle();
  EXPECT_EQ(cache->num_held(), 2);
  EXPECT_NEAR(cache->waste_percent(), 100.0 * 15 / 32, 1e-9);
  cache->truncate(table, 0, deferred);
  settle();
  EXPECT_EQ(cache->num_held(), 0);
}

TEST_F(KvCacheTest, PrivateBlocksOfAnotherClassShareTheArena) {
  const GroupSpec whole{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = kB};
  const GroupSpec one_head{
      .name = "head", .num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .block_tokens = kB};
  cache = *KvCache::create({.groups = {whole, one_head}, .arena_bytes = 3 * kMinSuperblockBytes});
  BlockPool heads(cache->arena(), one_head.block_bytes());
  const int64_t before = cache->num_blocks();
  std::vector<BlockId> blocks;
  ASSERT_TRUE(heads.allocate(1, blocks));
  EXPECT_EQ(cache->num_blocks(), before * 2 / 3);
  heads.release(blocks[0]);
  EXPECT_EQ(cache->num_blocks(), before);
}

TEST_F(KvCacheTest, FourSamplesOf512TokensHoldUnder30PercentOfFourRequests) {
  make(400);
  BlockTable shared[4], separate[4];
  ASSERT_TRUE(extend(shared[0], 512));
  for (int i = 1; i < 4; ++i) shared[i] = cache->fork(shared[0]);
  const int64_t with_sharing = cache->num_held();
  for (BlockTable& table : separate) ASSERT_TRUE(extend(table, 512));
  EXPECT_LE(static_cast<double>(with_sharing), 0.30 * static_cast<double>(cache->num_held() - with_sharing));
  for (BlockTable& table : shared) release(table);
  for (BlockTable& table : separate) release(table);
}

TEST_F(KvCacheTest, AuditNamesALostTable) {
  BlockTable table;
  ASSERT_TRUE(extend(table, 5));
  const auto wrong = cache->audit({}, deferred);
  ASSERT_TRUE(wrong.has_value());
  EXPECT_EQ(*wrong, "holders: block 0: 0 table entries, 1 holders");
  release(table);
}

using KvCacheDeathTest = KvCacheTest;

TEST_F(KvCacheDeathTest, ATableInAnOpenStepIsNotReleased) {
  BlockTable table;
  StepTransaction step = cache->begin(now);
  ASSERT_TRUE(step.extend(table, 5));
  EXPECT_DEATH(cache->release(std::move(table), now), "open step");
}

TEST_F(KvCacheDeathTest, TokensThatAreNotTheTablesAreNotPublishedBelowIt) {
  BlockTable table;
  ASSERT_TRUE(extend(table, 32));
  publish(table, iota(16));
  EXPECT_DEATH(publish(table, iota(32, 5)), "tokens that its table says");
  release(table);
}

}  // namespace
}  // namespace quire
