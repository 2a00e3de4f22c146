// The tiers of the prefix cache below the device, step by step over a small cache and a fake executor: what goes
// down, what comes back and from where, who waits meanwhile, and what a cancel, a failure or a corrupt block
// leaves behind.
#include <numeric>

#include "tests/unit/schedule_tiers_rig.h"

namespace quire {
namespace {

TEST(HostTier, WhatTheDeviceHasLostComesBackToTheToken) {
  Harness h(two_tiers());
  for (const int32_t first : {0, 300}) {
    ask(h, first);
    h.run();
  }
  EXPECT_EQ(h.core().cache().tier(CacheTier::kHost)->num_cached(), 40);
  const RequestId again = ask(h, 0);
  h.step();
  EXPECT_TRUE(first_of(h, again).running() && first_of(h, again).copying) << "waits for its blocks";
  h.run();
  h.expect_greedy(again);
  EXPECT_EQ(h.record(again).end.cached_tokens, 159);
  EXPECT_GT(counters(h).host.hit_tokens, 100) << "all but what the device kept";
  h.expect_sound();
  h.expect_all_ended();
}

// A prompt's blocks are full attention's until its list is cut: under TOVA they go down and come back as without a policy; under H2O,
// which needs sums over every row of its prompt, they go down, for others.
TEST(HostTier, PoliciesThatCutAfterThePromptFillItAndReadItWhereTheyMay) {
  struct Case {
    const char *first, *then;
    bool hits;
  };
  for (const Case& c : {Case{"tova:budget=40", "tova:budget=40", true}, Case{"tova:budget=40", "", true},
                        Case{"", "tova:budget=24", true}, Case{"h2o:heavy=20,recent=20", "", true},
                        Case{"", "h2o:heavy=20,recent=20", false}}) {
    SCOPED_TRACE(testing::Message() << "'" << c.first << "' then '" << c.then << "'");
    HarnessOptions o = two_tiers();
    o.num_blocks = 32;
    Harness h(o);
    const auto ask_under = [&](int32_t first, const char* policy) {
      CoreRequest more;
      more.policy = *parse_policy(policy);
      const RequestId id = h.submit(ids(160, first), Harness::greedy(4), more);
      h.run();
      return id;
    };
    ask_under(0, c.first);
    EXPECT_GE(tier(h, CacheTier::kHost).num_cached(), 20) << "written though its list was cut";
    for (const int32_t other : {300, 500}) ask_under(other, "");
    const RequestId again = ask_under(0, c.then);
    h.expect_greedy(again);
    EXPECT_EQ(h.record(again).end.cached_tokens, c.hits ? 159 : 0);
    EXPECT_EQ(counters(h).host.hit_tokens > 100, c.hits);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(HostTier, AnotherSaltFindsNothing) {
  Harness h(two_tiers());
  ask(h, 0, "a");
  h.run();
  ask(h, 300, "a");
  h.run();
  const RequestId other = ask(h, 0, "b"), same = ask(h, 0, "a");
  h.run();
  EXPECT_EQ(h.record(other).end.cached_tokens, 0);
  EXPECT_EQ(h.record(same).end.cached_tokens, 159);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(HostTier, OthersRunWhileAPrefixIsOnItsWay) {
  HarnessOptions o = two_tiers();
  o.num_blocks = 32;
  Harness h(o);
  for (const int32_t first : {0, 300}) {
    ask(h, first);
    h.run();
  }
  h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 60'000}; });
  const RequestId other = h.submit(ids(8, 900), Harness::greedy(30)), again = ask(h, 0);
  h.step();
  h.step();
  ASSERT_TRUE(first_of(h, again).copying);
  while (first_of(h, again).copying) ASSERT_TRUE(h.step());
  EXPECT_GT(h.record(other).sequences[0].tokens.size(), 4u);
  h.run();
  h.expect_greedy(again);
  h.expect_sound();
}

TEST(HostTier, ACancelOrAFailureOnTheWayLeaksNothingAndPublishesNothing) {
  for (const bool cancels : {false, true}) {
    Harness h(two_tiers());
    for (const int32_t first : {0, 300}) {
      ask(h, first);
      h.run();
    }
    h.mover().set_fault([] { return FakeMover::Fault{.fails = true, .delay_us = 20'000}; });
    const RequestId again = ask(h, 0);
    h.step();
    ASSERT_TRUE(first_of(h, again).copying);
    if (cancels) h.abort(again);
    h.run();
    const RequestId then = ask(h, 0);
    h.run();
    if (!cancels) h.expect_greedy(again);
    h.expect_greedy(then);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Whoever is not admitted brings nothing up: it would drive out what others look for.
TEST(HostTier, ACandidateWithoutRoomEvictsNothing) {
  HarnessOptions o;
  o.num_blocks = 64;
  o.num_host_blocks = 200;
  o.max_context_tokens = 500;
  o.reserve = {.least = 1, .rise = 0, .decay = 0};
  Harness h(o);
  const auto prompt = [](int32_t first) {
    std::vector<TokenId> v(160);
    std::iota(v.begin(), v.end(), first);
    return v;
  };
  for (const int32_t first : {0, 200, 400, 600}) {  // the first goes below
    h.submit(prompt(first), Harness::greedy(2));
    h.run();
  }
  std::vector<TokenId> short_prompt(16);
  std::iota(short_prompt.begin(), short_prompt.end(), 900);
  h.submit(short_prompt, Harness::greedy(320));  // all of it is kept free
  for (int i = 0; i < 4; ++i) h.step();
  const int64_t before = h.core().cache().counters().evictions;
  const RequestId waits = h.submit(prompt(0), Harness::greedy(60));
  for (int i = 0; i < 20; ++i) h.step();
  EXPECT_EQ(h.core().scheduler().find(waits)->state, GroupState::kWaiting);
  EXPECT_LE(h.core().cache().counters().evictions - before, 4) << "the running one's own tokens, no more";
  h.run();
  h.expect_sound();
}

TEST(HostTier, ALinkThatIsSlowerThanComputingIsNotUsed) {
  HarnessOptions o = two_tiers();
  o.costs.link_bytes_per_s = 1;
  Harness h(o);
  for (const int32_t first : {0, 300, 0}) {
    ask(h, first);
    h.run();
  }
  EXPECT_EQ(counters(h).host.hit_tokens, 0);
  h.expect_sound();
}

TEST(DiskTier, WhatAllTiersAboveHaveLostComesBackToTheToken) {
  for (const int32_t host_blocks : {0, 24}) {
    Harness h(with_disk(host_blocks));
    fill(h);
    EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 60);
    EXPECT_EQ(counters(h).disk.writes, 60);
    const RequestId again = ask(h, 0);
    h.step();
    EXPECT_TRUE(first_of(h, again).copying) << "waits for its blocks";
    h.run();
    h.expect_greedy(again);
    EXPECT_EQ(h.record(again).end.cached_tokens, 159);
    EXPECT_GT(counters(h).disk.hit_tokens, 100);
    EXPECT_EQ(counters(h).disk.writes, 60) << "what is there is not written again";
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(DiskTier, APrefixComesFromTheHostAsFarAsItReachesAndThenFromTheDisk) {
  Harness h(with_disk(24));
  fill(h);
  // Of the second prompt the host has kept its first blocks: leaves go first.
  const RequestId again = ask(h, 300);
  h.run();
  h.expect_greedy(again);
  EXPECT_EQ(h.record(again).end.cached_tokens, 159);
  EXPECT_GT(counters(h).host.hit_tokens, 0);
  EXPECT_GT(counters(h).disk.hit_tokens, 0);
  EXPECT_LE(counters(h).host.hit_tokens + counters(h).disk.hit_tokens, 159);
  h.expect_sound();
}

TEST(DiskTier, AnotherSaltFindsNothing) {
  Harness h(with_disk(0));
  fill(h, "a");
  const RequestId other = ask(h, 0, "b");
  h.run();
  const RequestId same = ask(h, 0, "a");
  h.run();
  EXPECT_EQ(h.record(other).end.cached_tokens, 0);
  EXPECT_EQ(h.record(same).end.cached_tokens, 159);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DiskTier, OthersRunWhileAPrefixIsOnItsWay) {
  HarnessOptions o = with_disk(24);
  o.num_blocks = 32;
  Harness h(o);
  fill(h);
  h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 60'000}; });
  const RequestId other = h.submit(ids(8, 900), Harness::greedy(30)), again = ask(h, 0);
  h.step();
  h.step();
  ASSERT_TRUE(first_of(h, again).copying);
  while (first_of(h, again).copying) ASSERT_TRUE(h.step());
  EXPECT_GT(h.record(other).sequences[0].tokens.size(), 4u);
  h.run();
  h.expect_greedy(again);
  h.expect_sound();
}

// A write from the host to the disk holds nothing of the device: who needs room there does not wait for it.
TEST(DiskTier, AWriteBehindTheHostTierHoldsNobodyUp) {
  Harness h(with_disk(24));
  ask(h, 0);
  while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step() || h.core().wait_for_copy());
  h.mover().set_disk_hang([] { return 10'000'000; });
  while (h.core().scheduler().transfers().num_of_device() > 0 || h.core().scheduler().transfers().size() == 0)
    ASSERT_TRUE(h.core().step() || h.core().wait_for_copy());
  const int64_t start = h.clock().now_us();
  const RequestId other = ask(h, 300);
  while (h.record(other).num_ends == 0) ASSERT_TRUE(h.step());
  EXPECT_LT(h.clock().now_us() - start, 5'000'000);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DiskTier, ACancelOrAFailureOnTheWayLeaksNothingAndPublishesNothing) {
  for (const bool cancels : {false, true}) {
    Harness h(with_disk(0));
    fill(h);
    h.mover().set_fault([] { return FakeMover::Fault{.fails = true, .delay_us = 20'000}; });
    const RequestId again = ask(h, 0);
    h.step();
    ASSERT_TRUE(first_of(h, again).copying);
    if (cancels) h.abort(again);
    h.run();
    EXPECT_EQ(counters(h).disk.read_failures, 1) << "what failed is not asked for again";
    EXPECT_LT(h.record(again).end.cached_tokens, 100) << "what did not arrive was no hit";
    const RequestId then = ask(h, 0);
    h.run();
    if (!cancels) h.expect_greedy(again);
    h.expect_greedy(then);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(DiskTier, ACorruptBlockIsAMissAndItsPlaceIsFree) {
  Harness h(with_disk(0));
  fill(h);
  ASSERT_EQ(tier(h, CacheTier::kDisk).num_cached(), 60);
  int n = 0;
  h.mover().set_corruption([&] { return ++n == 1; });
  const RequestId again = ask(h, 0);
  h.step();
  while (first_of(h, again).copying) ASSERT_TRUE(h.core().step() || h.core().wait_for_copy());
  EXPECT_EQ(counters(h).corrupt_blocks, 1);
  EXPECT_LT(tier(h, CacheTier::kDisk).num_cached(), 60) << "and what stood behind it is gone too";
  h.run();
  h.expect_greedy(again);
  EXPECT_EQ(counters(h).corrupt_blocks, 1);
  EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 60) << "computed, and written again";
  const RequestId then = ask(h, 300);
  h.run();
  EXPECT_EQ(h.record(then).end.cached_tokens, 159);
  h.expect_greedy(then);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DiskTier, AfterEightFailedWritesInARowNoMoreAreBegunAndTheFiguresSayWhy) {
  Harness h(with_disk(0));
  int n = 0;
  h.mover().set_fault([&] {
    ++n;
    return FakeMover::Fault{.fails = true};
  });
  for (int32_t i = 0; i < 12; ++i) {
    ask(h, 50 * i);
    h.run();
  }
  EXPECT_EQ(n, 8);
  EXPECT_EQ(counters(h).disk.write_failures, 8);
  EXPECT_EQ(counters(h).disk.writes, 0);
  EngineStats stats;
  h.core().fill_stats(stats);
  EXPECT_EQ(stats.disk_kv_state, "not written: injected fault of a copy between tiers");
  EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 0);
  h.expect_sound();
  h.expect_all_ended();
}

// Slow once, so that computing is cheaper: that read is not waited for, and when it has told how long it took the
// disk is left alone; tried again after a while.
TEST(DiskTier, ADiskThatIsSlowerThanComputingIsLeftAloneForAWhile) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 64;
  o.costs.flops_per_s = 5e13;
  Harness h(o);
  const auto fill_more = [&h] {
    for (const int32_t first : {0, 200, 400, 600}) {
      ask(h, first);
      h.run();
    }
  };
  fill_more();
  ask(h, 0);
  h.run();
  int64_t hits = counters(h).disk.hit_tokens;
  EXPECT_GT(hits, 0);
  fill_more();
  hits = counters(h).disk.hit_tokens;
  h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 50'000'000}; });
  ask(h, 0);
  h.run();
  h.mover().set_fault({});
  step_to_the_end(h);
  ASSERT_EQ(counters(h).waits_given_up, 1);
  EXPECT_EQ(counters(h).disk.hit_tokens, hits);
  fill_more();
  EXPECT_EQ(counters(h).disk.hit_tokens, hits);
  for (int32_t i = 0; i < 200 && counters(h).disk.hit_tokens == hits; ++i) fill_more();
  EXPECT_GT(counters(h).disk.hit_tokens, hits);
  h.expect_sound();
  h.expect_all_ended();
}

}  // namespace
}  // namespace quire
