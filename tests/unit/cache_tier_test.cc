// The tiers below the device as a chain of caches, without an executor: what is copied where, what the disk's
// records say, and what a restart finds again of them.
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "tests/unit/cache_tier_rig.h"

namespace quire {
namespace {

// The same, and all copies that follow are made at once. Gives the disk's records.
std::vector<StoredBlock> run(KvCache& cache, NamespaceId ns, const std::vector<TokenId>& tokens,
                             const Retention& retention = {}, int64_t now_us = 1000) {
  publish(cache, ns, tokens, retention, now_us);
  std::vector<StoredBlock> stored;
  std::vector<TierWrite> writes;
  cache.write_below(ns, tokens, retention, {}, now_us, writes);
  while (!writes.empty()) {
    TierWrite write = std::move(writes.back());
    writes.pop_back();
    for (const TierCopy& move : write.copies)
      if (move.record != nullptr) stored.push_back(*move.record);
    cache.end_write(std::move(write), true, {}, now_us, writes);
  }
  return stored;
}

TEST(Tiers, AreAChainOfThoseThatAreThere) {
  EXPECT_EQ(make(0, 0)->below(), nullptr);
  const auto both = make(4, 9);
  EXPECT_EQ(both->below()->kind(), CacheTier::kHost);
  EXPECT_EQ(both->below()->below()->kind(), CacheTier::kDisk);
  EXPECT_EQ(both->tier(CacheTier::kDisk)->num_blocks(), 9);
  const auto disk = make(0, 9);
  EXPECT_EQ(disk->below()->kind(), CacheTier::kDisk);
  EXPECT_EQ(disk->tier(CacheTier::kHost), nullptr);
}

// What is read for a tier below is nobody's room: of 40 blocks a sixteenth of 256 at a time, and what follows if it is there.
TEST(Tiers, ALongPrefixGoesDownInPartsOfASixteenthOfTheCache) {
  const auto cache = make(0, 64, 256);
  const NamespaceId ns = cache->open_namespace({});
  const std::vector<TokenId> tokens = ids(320), other = ids(80, 1000);
  for (const auto* t : {&tokens, &other}) {
    BlockTable table;
    StepTransaction step = cache->begin(0);
    ASSERT_TRUE(step.extend(table, static_cast<int32_t>(t->size())));
    std::vector<BlockCopy> copies;
    std::vector<BlockId> deferred;
    step.commit(copies, deferred);
    cache->publish(ns, *t, table, table.length(), {}, 0, deferred);
    cache->release_deferred(deferred);
    cache->release(std::move(table), 0);
  }
  std::vector<TierWrite> writes;
  cache->write_below(ns, tokens, {}, {}, 0, writes);
  cache->write_below(ns, other, {}, {}, 0, writes);
  ASSERT_EQ(writes.size(), 1u) << "the sixteenth is taken";
  std::vector<size_t> parts;
  while (!writes.empty()) {
    TierWrite write = std::move(writes.back());
    writes.pop_back();
    parts.push_back(write.copies.size());
    EXPECT_EQ(cache->num_held(), static_cast<int64_t>(write.copies.size()));
    cache->end_write(std::move(write), true, {}, 0, writes);
    EXPECT_LE(writes.size(), 1u);
  }
  EXPECT_EQ(parts, (std::vector<size_t>{16, 16, 8}));
  EXPECT_EQ(cache->lookup_below(ns, tokens, CacheTier::kDisk), 320);
  cache->close_namespace(ns);
  sound(*cache);
}

// Memory added before a disk keeps nothing from it, and what it has goes on from there.
TEST(Tiers, WhatTheHostHasNoRoomForGoesToTheDiskStraight) {
  const auto cache = make(4, 64);
  const NamespaceId ns = cache->open_namespace({});
  EXPECT_EQ(run(*cache, ns, ids(24)).size(), 3u);
  EXPECT_EQ(cache->lookup_below(ns, ids(24), CacheTier::kHost), 24);
  EXPECT_EQ(run(*cache, ns, ids(80)).size(), 7u) << "what the disk lacks";
  EXPECT_EQ(cache->lookup_below(ns, ids(80), CacheTier::kDisk), 80);
  EXPECT_EQ(cache->lookup_below(ns, ids(80), CacheTier::kHost), 24);
  cache->close_namespace(ns);
  sound(*cache);
}

// The last tier has nothing below that could take it: as much as there is room for.
TEST(Tiers, OfAPromptLongerThanTheDiskTheFrontIsKept) {
  const auto cache = make(0, 5);
  const NamespaceId ns = cache->open_namespace({});
  EXPECT_EQ(run(*cache, ns, ids(80)).size(), 5u);
  EXPECT_EQ(cache->lookup_below(ns, ids(80), CacheTier::kDisk), 40);
  cache->close_namespace(ns);
  sound(*cache);
}

TEST(Tiers, LessThanABlockIsRefusedByName) {
  const GroupSpec group{.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_tokens = kTokens};
  CacheSpec spec = uniform_spec(group, 4);
  spec.disk_bytes = 100;
  EXPECT_EQ(KvCache::create(spec).error().field, "disk_kv_bytes");
}

TEST(Tiers, ADisksRecordsNameKeyTokensAndParent) {
  const auto cache = make(16, 32);
  const NamespaceId ns = cache->open_namespace({.model = "m", .salt = "s"});
  const std::vector<StoredBlock> stored = run(*cache, ns, ids(20), {.retention_class = 3, .expiry_us = 5000});
  ASSERT_EQ(stored.size(), 2u) << "whole blocks only";
  EXPECT_EQ(stored[0].parent_serial, 0u);
  EXPECT_EQ(stored[1].parent_serial, stored[0].serial);
  EXPECT_NE(stored[0].serial, stored[1].serial);
  EXPECT_EQ(stored[1].tokens, ids(8, 8));
  EXPECT_EQ(stored[0].key, encode({.model = "m", .salt = "s"}));
  EXPECT_EQ(stored[0].retention.expiry_us, 4000) << "from now";
  EXPECT_EQ(stored[0].retention.retention_class, 3);
  cache->close_namespace(ns);
  sound(*cache);
}

TEST(Tiers, WhatTheHostHasAndTheDiskLacksGoesOnToTheDisk) {
  const auto cache = make(16, 32);
  const NamespaceId ns = cache->open_namespace({});
  EXPECT_EQ(run(*cache, ns, ids(16)).size(), 2u);
  EXPECT_EQ(run(*cache, ns, ids(16)).size(), 0u) << "both have it";
  EXPECT_EQ(run(*cache, ns, ids(32)).size(), 2u) << "what is new";
  cache->close_namespace(ns);
  sound(*cache);
}

std::vector<TierCopy> read(KvCache& cache, NamespaceId ns, const std::vector<TokenId>& tokens,
                           std::vector<DiskBlockId> corrupt = {}, int64_t now_us = 2000) {
  BlockTable table;
  std::vector<TierCopy> copies;
  std::vector<BlockId> deferred;
  auto under_way = cache.read_from_below(ns, tokens, table, CacheTier::kDisk, now_us, copies, deferred);
  if (under_way) cache.end_read(std::move(*under_way), corrupt, now_us);
  cache.release_deferred(deferred);
  cache.release(std::move(table), now_us);
  return copies;
}

TEST(Restore, FindsWhatWasStoredWithItsPlacesAndSerials) {
  const auto before = make(0, 32);
  const NamespaceId a = before->open_namespace({.salt = "a"}), b = before->open_namespace({.salt = "b"});
  std::vector<StoredBlock> stored = run(*before, a, ids(24));
  for (const StoredBlock& s : run(*before, b, ids(16))) stored.push_back(s);
  for (const StoredBlock& s : run(*before, a, ids(40))) stored.push_back(s);
  ASSERT_EQ(stored.size(), 7u);
  std::swap(stored[0], stored[6]);  // files are read in the order of places

  const auto after = make(0, 32);
  EXPECT_EQ(after->restore(stored, 1'000'000), 7);
  sound(*after);
  const NamespaceId name = after->open_namespace({.salt = "a"}), other = after->open_namespace({.salt = "c"});
  EXPECT_EQ(after->lookup_below(name, ids(40), CacheTier::kDisk), 40);
  EXPECT_EQ(after->lookup_below(name, ids(40), CacheTier::kHost), 0);
  EXPECT_EQ(after->lookup_below(other, ids(40), CacheTier::kDisk), 0);
  const std::vector<TierCopy> copies = read(*after, name, ids(40));
  ASSERT_EQ(copies.size(), 5u);
  for (const TierCopy& copy : copies) {
    const auto same = [&](const StoredBlock& s) { return s.serial == copy.serial && s.block == copy.disk; };
    EXPECT_EQ(std::ranges::count_if(stored, same), 1);
  }
  // What is written now takes other places and other serials.
  for (const StoredBlock& s : run(*after, name, ids(16, 500))) {
    const auto taken = [&](const StoredBlock& t) { return t.serial == s.serial || t.block == s.block; };
    EXPECT_EQ(std::ranges::count_if(stored, taken), 0);
  }
  after->close_namespace(name);
  after->close_namespace(other);
  sound(*after);
}

// Two prompts that begin alike are written at once: what the second brings of the same is let go of again, and its place is
// taken. What stands behind that is found by the next server too.
TEST(Restore, FindsWhatWasWrittenBesideAnotherThatBeginsAlike) {
  auto cache = make(0, 12, 1024);
  const NamespaceId ns = cache->open_namespace({});
  std::vector<TokenId> one = ids(24), other = ids(32);
  std::iota(one.begin() + 16, one.end(), 500);
  std::iota(other.begin() + 16, other.end(), 700);
  std::map<int32_t, StoredBlock> disk;  // by place, as the files have it
  const auto store = [&disk](const TierWrite& write) {
    for (const TierCopy& copy : write.copies) disk[value(copy.disk)] = *copy.record;
  };
  std::vector<TierWrite> writes;
  for (const std::vector<TokenId>* tokens : {&one, &other}) {
    publish(*cache, ns, *tokens);
    cache->write_below(ns, *tokens, {}, {}, 1000, writes);
  }
  ASSERT_EQ(writes.size(), 2u);
  for (size_t i = 0; i < writes.size(); ++i) {
    TierWrite write = std::move(writes[i]);
    store(write);
    cache->end_write(std::move(write), true, {}, 1000, writes);
  }
  for (const StoredBlock& block : run(*cache, ns, ids(56, 100))) disk[value(block.block)] = block;
  EXPECT_EQ(cache->tier(CacheTier::kDisk)->num_cached(), 12);
  cache->close_namespace(ns);
  sound(*cache);

  std::vector<StoredBlock> stored;
  for (const auto& [place, block] : disk) stored.push_back(block);
  auto next = make(0, 12, 1024);
  EXPECT_EQ(next->restore(stored, 1000), 12);
  const NamespaceId again = next->open_namespace({});
  EXPECT_EQ(next->lookup_below(again, one, CacheTier::kDisk), 24);
  EXPECT_EQ(next->lookup_below(again, other, CacheTier::kDisk), 32);
  next->close_namespace(again);
  sound(*next);
}

TEST(Restore, LeavesOutWhatHasNoParentNoRoomNoTimeOrNoWholeBlock) {
  const auto before = make(0, 32);
  const NamespaceId ns = before->open_namespace({});
  const std::vector<StoredBlock> stored = run(*before, ns, ids(32));
  ASSERT_EQ(stored.size(), 4u);
  const auto restored = [](std::vector<StoredBlock> s, int32_t blocks = 32) {
    const auto cache = make(0, blocks);
    const int64_t count = cache->restore(std::move(s), 0);
    sound(*cache);
    return count;
  };
  EXPECT_EQ(restored(stored), 4);
  auto lost = stored;
  lost.erase(lost.begin() + 1);
  EXPECT_EQ(restored(lost), 1) << "what stood behind the lost one is not reached";
  EXPECT_EQ(restored(stored, 2), 2) << "the other places are not there any more";
  auto late = stored;
  late[3].retention.expiry_us = 0;
  EXPECT_EQ(restored(late), 3);
  for (int i = 0; i < 3; ++i) late[i].retention.expiry_us = -1;
  EXPECT_EQ(restored(late), 0);
  late[2].retention.expiry_us = 1;
  EXPECT_EQ(restored(late), 3) << "what stands behind others that have expired is reached";
  auto part = stored;
  part[3].tokens.pop_back();
  EXPECT_EQ(restored(part), 3);
  auto twice = stored;
  twice.push_back(stored[3]);
  twice.back().block = DiskBlockId{31};
  twice.back().serial = 99;
  EXPECT_EQ(restored(twice), 4);
  auto strange = stored;  // a child whose parent is another tenant's
  strange[1].key = encode({.salt = "other"});
  EXPECT_EQ(restored(strange), 1);
}

TEST(Restore, KeepsTheOrderOfEviction) {
  const auto before = make(0, 32);
  const NamespaceId ns = before->open_namespace({});
  std::vector<StoredBlock> stored = run(*before, ns, ids(8, 100));
  for (const StoredBlock& s : run(*before, ns, ids(8, 200))) stored.push_back(s);
  const auto after = make(0, 2);
  stored[0].block = DiskBlockId{0};
  stored[1].block = DiskBlockId{1};
  ASSERT_EQ(after->restore(stored, 1'000'000), 2);
  const NamespaceId name = after->open_namespace({});
  run(*after, name, ids(8, 300), {}, 2'000'000);
  EXPECT_EQ(after->lookup_below(name, ids(8, 100), CacheTier::kDisk), 0) << "written first, goes first";
  EXPECT_EQ(after->lookup_below(name, ids(8, 200), CacheTier::kDisk), 8);
  after->close_namespace(name);
}

// The device has room for all and evicts nothing; the disk has room for two, and goes by what is asked of it.
TEST(Tiers, EachEvictsInItsOwnOrderByItsOwnUse) {
  for (const EvictionOrder order : {EvictionOrder::kLru, EvictionOrder::kPgdsf}) {
    const auto cache = make(0, 2, 64, order);
    const NamespaceId ns = cache->open_namespace({});
    const std::vector<TokenId> a = ids(8, 100), b = ids(8, 200), c = ids(8, 300);
    for (const auto* tokens : {&a, &b}) run(*cache, ns, *tokens, {.recompute_cost = 1});
    int64_t now_us = 2000;
    for (const auto* tokens : {&a, &a, &a, &b}) read(*cache, ns, *tokens, {}, ++now_us);
    run(*cache, ns, c, {.recompute_cost = 1}, 3000);
    const bool lru = order == EvictionOrder::kLru;
    EXPECT_EQ(cache->lookup_below(ns, a, CacheTier::kDisk), lru ? 0 : 8) << "often, but not of late";
    EXPECT_EQ(cache->lookup_below(ns, b, CacheTier::kDisk), lru ? 8 : 0);
    EXPECT_EQ(cache->tier(CacheTier::kDisk)->counters().evictions, 1);
    EXPECT_EQ(cache->counters().evictions, 0);
    cache->close_namespace(ns);
    sound(*cache);
  }
}

// Whoever finds a prefix cached may ask that it be kept longer: so it is where it lies already too, whatever comes after it.
TEST(Tiers, WhatIsSaidLaterOfAPrefixHoldsBelowToo) {
  const Retention ordinary, higher{.retention_class = 5}, costlier{.recompute_cost = 5},
      short_lived{.retention_class = 1, .expiry_us = 2'000},
      renewed{.retention_class = 1, .expiry_us = 9'000};
  for (const auto& [first, then, stays] :
       {std::tuple(ordinary, ordinary, false), std::tuple(ordinary, higher, true),
        std::tuple(ordinary, costlier, true), std::tuple(short_lived, ordinary, false),
        std::tuple(short_lived, renewed, true)})
    for (const auto& [host_blocks, disk_blocks] : {std::pair(12, 0), std::pair(0, 12), std::pair(12, 12)}) {
      auto cache = make(host_blocks, disk_blocks, 1024);
      const NamespaceId ns = cache->open_namespace({});
      run(*cache, ns, ids(16), first, 1'000);
      run(*cache, ns, ids(16), then, 1'500);
      for (const int32_t other : {100, 200, 300}) run(*cache, ns, ids(64, other), {}, 5'000);
      for (const CacheTier last : {CacheTier::kHost, CacheTier::kDisk})
        if (cache->tier(last) != nullptr) {
          EXPECT_EQ(cache->lookup_below(ns, ids(16), last), stays ? 16 : 0)
              << name_of(last) << ", class " << then.retention_class << ", until " << then.expiry_us;
        }
      cache->close_namespace(ns);
      sound(*cache);
    }
}

// Also where the host has no room for it: what the disk has stays there as long as was said last.
TEST(Tiers, WhatIsSaidLaterHoldsOnTheDiskPastAHostWithoutRoom) {
  for (const bool higher : {false, true})
    for (const bool allowed : {false, true}) {
      const auto cache = make(1, 12, 1024);
      const NamespaceId ns = cache->open_namespace({});
      run(*cache, ns, ids(16));
      std::vector<TierWrite> none;
      const TierWritesAllowed now{.from_device = allowed};
      cache->write_below(ns, ids(16), {.retention_class = higher ? 5 : 0}, now, 1'500, none);
      EXPECT_TRUE(none.empty());
      for (const int32_t other : {100, 200, 300}) run(*cache, ns, ids(64, other), {}, 5'000);
      EXPECT_EQ(cache->lookup_below(ns, ids(16), CacheTier::kDisk), higher ? 16 : 0);
      cache->close_namespace(ns);
      sound(*cache);
    }
}

// What may not be written evicts nothing below; a tier that may not be written now is passed over.
TEST(Tiers, AWriteThatMayNotBeginEvictsNothing) {
  for (const auto& [host_blocks, allowed] :
       {std::pair(0, TierWritesAllowed{.from_device = false}),
        std::pair(0, TierWritesAllowed{.to_disk = false}),
        std::pair(4, TierWritesAllowed{.from_device = false}),
        std::pair(4, TierWritesAllowed{.to_host = false, .to_disk = false})}) {
    const auto cache = make(host_blocks, 4, 1024);
    const NamespaceId ns = cache->open_namespace({});
    run(*cache, ns, ids(32));
    publish(*cache, ns, ids(32, 500));
    std::vector<TierWrite> writes;
    cache->write_below(ns, ids(32, 500), {}, allowed, 2'000, writes);
    EXPECT_TRUE(writes.empty());
    for (const CacheTier last : {CacheTier::kHost, CacheTier::kDisk})
      if (cache->tier(last) != nullptr) {
        EXPECT_EQ(cache->tier(last)->counters().evictions, 0) << name_of(last);
      }
    cache->close_namespace(ns);
    sound(*cache);
  }
}

TEST(Tiers, ACorruptBlockAndWhatIsBehindItAreFoundNoMore) {
  const auto cache = make(0, 32);
  const NamespaceId ns = cache->open_namespace({});
  const std::vector<StoredBlock> stored = run(*cache, ns, ids(32));
  run(*cache, ns, ids(16, 500));
  const KvCache& disk = *cache->tier(CacheTier::kDisk);
  EXPECT_EQ(disk.num_cached(), 6);
  read(*cache, ns, ids(32), {stored[1].block});
  EXPECT_EQ(disk.num_cached(), 3);
  EXPECT_EQ(cache->lookup_below(ns, ids(32), CacheTier::kDisk), 8);
  EXPECT_EQ(cache->lookup_below(ns, ids(16, 500), CacheTier::kDisk), 16);
  cache->close_namespace(ns);
  sound(*cache);
}

}  // namespace
}  // namespace quire
