// Method: orders stated by hand, and a random index against a sorted list of its keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "src/base/random.h"
#include "src/cache/eviction_index.h"

namespace quire {
namespace {

void add(EvictionIndex& index, int32_t block, const Retention& retention, int64_t now_us) {
  index.describe(BlockId{block}, retention, now_us);
  index.insert(BlockId{block}, true);
}

std::vector<int32_t> drain(EvictionIndex& index, int64_t now_us) {
  std::vector<int32_t> order;
  while (const auto block = index.victim(now_us)) {
    order.push_back(value(*block));
    index.evicted(*block, now_us);
  }
  return order;
}

TEST(EvictionIndex, LeastRecentlyUsedGoesFirst) {
  EvictionIndex index(8, EvictionOrder::kLru);
  add(index, 3, {}, 30);
  add(index, 1, {}, 10);
  add(index, 2, {}, 20);
  EXPECT_EQ(drain(index, 0), (std::vector<int32_t>{1, 2, 3}));
}

TEST(EvictionIndex, WhatIsAwaitedCountsAsUsed) {
  EvictionIndex index(8, EvictionOrder::kLru);
  add(index, 1, {}, 10);
  add(index, 2, {.expiry_us = 500}, 20);
  add(index, 3, {}, 30);
  index.describe(BlockId{4}, {}, 5);
  index.insert(BlockId{4}, false);  // it has children
  for (const int32_t block : {1, 4}) index.awaited(BlockId{block}, 40);
  index.awaited(BlockId{2}, 60);
  index.awaited(BlockId{3}, 15);  // a clock that went back
  EXPECT_EQ(index.first_disorder(), std::nullopt);
  index.became_leaf(BlockId{4});
  EXPECT_EQ(drain(index, 0), (std::vector<int32_t>{2, 3, 1, 4}));
}

TEST(EvictionIndex, ClassThenExpiryThenCostThenUse) {
  EvictionIndex index(8, EvictionOrder::kLru);
  add(index, 0, {.retention_class = 1}, 1);
  add(index, 1, {.retention_class = 0}, 9);
  add(index, 2, {.retention_class = 0, .expiry_us = 500}, 9);
  add(index, 3, {.retention_class = 0, .recompute_cost = 2}, 1);
  add(index, 4, {.retention_class = 0, .recompute_cost = 1}, 5);
  add(index, 5, {.retention_class = -1}, 99);
  EXPECT_EQ(drain(index, 0), (std::vector<int32_t>{5, 2, 1, 4, 3, 0}));
}

TEST(EvictionIndex, PastItsExpiryABlockGoesBeforeAllOthers) {
  EvictionIndex index(8, EvictionOrder::kLru);
  add(index, 0, {.retention_class = 9, .expiry_us = 100}, 1);
  add(index, 1, {.retention_class = 9, .expiry_us = 90}, 2);
  add(index, 2, {}, 3);
  EXPECT_EQ(index.victim(89), BlockId{2});
  EXPECT_EQ(index.victim(90), BlockId{1});
  EXPECT_EQ(drain(index, 100), (std::vector<int32_t>{1, 0, 2}));
}

TEST(EvictionIndex, ABlockWithChildrenWaitsButCounts) {
  EvictionIndex index(8, EvictionOrder::kLru);
  index.describe(BlockId{0}, {}, 1);
  index.insert(BlockId{0}, false);
  EXPECT_EQ(index.size(), 1);
  EXPECT_EQ(index.victim(0), std::nullopt);
  index.became_leaf(BlockId{0});
  EXPECT_EQ(index.victim(0), BlockId{0});
  EXPECT_EQ(index.size(), 1);
}

TEST(EvictionIndex, NobodyWeakensRetention) {
  const Retention had{.retention_class = 2, .expiry_us = 50, .recompute_cost = 3};
  const auto with = [&](const Retention& more) {
    EvictionIndex index(8, EvictionOrder::kLru);
    index.describe(BlockId{0}, had, 1);
    index.strengthen(BlockId{0}, more);
    const Retention r = index.retention_of(BlockId{0});
    return std::tuple(r.retention_class, r.expiry_us, r.recompute_cost);
  };
  EXPECT_EQ(with({.retention_class = 1, .expiry_us = 60, .recompute_cost = 1}), std::tuple(2, 50, 3.f));
  EXPECT_EQ(with({.retention_class = 2, .expiry_us = 60, .recompute_cost = 1}), std::tuple(2, 60, 3.f));
  EXPECT_EQ(with({.retention_class = 2, .expiry_us = 40, .recompute_cost = 4}), std::tuple(2, 50, 4.f));
  EXPECT_EQ(with({.retention_class = 3, .expiry_us = 40, .recompute_cost = 1}), std::tuple(3, 40, 3.f));
  EXPECT_EQ(with({}), std::tuple(2, 50, 3.f)) << "an ordinary request";
}

TEST(Pgdsf, OftenUsedAndCostlyOutlivesRecent) {
  EvictionIndex index(8, EvictionOrder::kPgdsf);
  index.describe(BlockId{0}, {.recompute_cost = 1}, 1);
  index.used(BlockId{0}, 2);
  index.used(BlockId{0}, 3);
  index.insert(BlockId{0}, true);
  add(index, 1, {.recompute_cost = 2}, 50);
  add(index, 2, {.recompute_cost = 1}, 60);
  EXPECT_EQ(drain(index, 0), (std::vector<int32_t>{2, 1, 0}));
}

TEST(Pgdsf, WhatWentBecauseItHadExpiredDoesNotMoveTheClock) {
  EvictionIndex index(8, EvictionOrder::kPgdsf);
  index.describe(BlockId{0}, {.recompute_cost = 1}, 1);
  for (int i = 0; i < 100; ++i) index.used(BlockId{0}, 2);
  index.insert(BlockId{0}, true);
  add(index, 1, {.expiry_us = 5, .recompute_cost = 1e6}, 3);
  EXPECT_EQ(index.victim(10), BlockId{1});
  index.evicted(BlockId{1}, 10);
  add(index, 2, {.recompute_cost = 1}, 11);
  EXPECT_EQ(index.victim(12), BlockId{2}) << "asked for once, and not the one that was asked for 101 times";
}

TEST(Pgdsf, TheClockAgesWhatIsNoLongerUsed) {
  EvictionIndex index(300, EvictionOrder::kPgdsf);
  index.describe(BlockId{0}, {.recompute_cost = 1}, 0);
  for (int i = 0; i < 9; ++i) index.used(BlockId{0}, i);
  index.insert(BlockId{0}, true);      // worth 10
  for (int32_t i = 1; i < 300; ++i) {  // a stream of blocks of worth 1 above the clock
    add(index, i, {.recompute_cost = 1}, 100 + i);
    const BlockId victim = *index.victim(0);
    index.evicted(victim, 0);
    if (victim == BlockId{0}) {
      EXPECT_GE(i, 9);
      EXPECT_LE(i, 12);
      return;
    }
  }
  FAIL() << "a block used ten times and never again was kept for ever";
}

TEST(EvictionIndex, AgreesWithASortedListUnderRandomChanges) {
  Random random(11);
  EvictionIndex index(200, EvictionOrder::kLru);
  std::vector<BlockId> inside, outside;
  for (int32_t i = 0; i < 200; ++i) outside.push_back(BlockId{i});
  for (int step = 0; step < 20000; ++step) {
    const bool grow = inside.empty() || (!outside.empty() && random.chance(0.55));
    auto& from = grow ? outside : inside;
    auto& to = grow ? inside : outside;
    std::swap(from[random.below(from.size())], from.back());
    const BlockId block = from.back();
    if (grow) {
      const int64_t expiry = random.chance(0.3) ? random.between(0, 50) : kNoExpiry;
      add(index, value(block),
          {.retention_class = static_cast<int32_t>(random.below(3)),
           .expiry_us = expiry,
           .recompute_cost = static_cast<float>(random.below(3))},
          random.between(0, 100));
    } else {
      index.erase(block);
    }
    from.pop_back();
    to.push_back(block);
    if (step % 10 != 0 || inside.empty()) continue;
    const int64_t now_us = random.between(0, 60);
    const auto less = [&](BlockId a, BlockId b) {
      const EvictionKey x = index.key_of(a), y = index.key_of(b);
      const bool x_over = x.expiry_us <= now_us, y_over = y.expiry_us <= now_us;
      if (x_over != y_over) return x_over;
      if (x_over) return std::pair(x.expiry_us, a) < std::pair(y.expiry_us, b);
      return evicts_before(x, y);
    };
    ASSERT_EQ(index.victim(now_us), *std::ranges::min_element(inside, less)) << "step " << step;
    ASSERT_EQ(index.size(), static_cast<int64_t>(inside.size()));
    ASSERT_EQ(index.first_disorder(), std::nullopt);
  }
}

}  // namespace
}  // namespace quire
