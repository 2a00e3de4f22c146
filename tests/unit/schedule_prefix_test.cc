// Prefixes that requests share: computed once, found again, waited for, and never another tenant's.
#include <algorithm>

#include "tests/property/engine_harness.h"
#include "tests/unit/schedule_group_rig.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

HarnessOptions small() {
  HarnessOptions o;
  o.num_blocks = 32;
  return o;
}

// A long output and a prompt in chunks of one token grow side by side until there is no room for both.
TEST(Scheduler, WhoWaitsForAPrefixIsWokenWhenItsLeaderIsPreempted) {
  HarnessOptions o = small();
  o.max_prefill_chunk_tokens = 1;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  Harness h(o);
  h.submit(ids(8), Harness::greedy(180));
  const RequestId leader = h.submit(ids(160, 500), Harness::greedy(2));
  while (h.core().scheduler().num_running() < 2) ASSERT_TRUE(h.step());
  const RequestId waiter = h.submit(ids(160, 500), Harness::greedy(2));
  h.step();
  ASSERT_TRUE(h.core().scheduler().find(waiter)->parked) << "its prefix is being computed";
  while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
  ASSERT_TRUE(h.core().scheduler().find(leader)->sequences.front()->num_computed < 160);
  EXPECT_FALSE(h.core().scheduler().find(waiter)->parked);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Scheduler, WhatEverySampleGeneratedIsCached) {
  SamplingParams p;
  p.max_tokens = 20;
  p.n = 2;
  Harness h(small());
  const RequestId id = h.submit(ids(20), p);
  h.run();
  for (int32_t i = 0; i < 2; ++i) {
    std::vector<TokenId> whole = ids(20);
    const std::vector<TokenId>& out = h.record(id).sequences[i].tokens;
    whole.insert(whole.end(), out.begin(), out.end());
    const RequestId again = h.submit(whole, Harness::greedy(1));
    h.run();
    EXPECT_EQ(h.record(again).end.cached_tokens, 39) << "sample " << i << ": all but the last, never run";
  }
}

TEST(Scheduler, RequestsWithOnePrefixComputeItOnce) {
  HarnessOptions o = small();
  o.max_prefill_chunk_tokens = 8;
  Harness h(o);
  std::vector<TokenId> a = ids(40), b = ids(40);
  a.push_back(900);
  b.push_back(901);
  const RequestId first = h.submit(a, Harness::greedy(2));
  h.step();
  const RequestId second = h.submit(b, Harness::greedy(2));
  h.step();
  EXPECT_EQ(h.core().scheduler().num_waiting_groups(), 1) << "it stands aside";
  h.run();
  h.expect_sound();
  h.expect_greedy(first);
  h.expect_greedy(second);
  EXPECT_EQ(h.record(second).end.cached_tokens, 40);
}

TEST(Scheduler, AWaiterGoesOnAloneWhenItsLeaderIsCancelled) {
  HarnessOptions o = small();
  o.max_prefill_chunk_tokens = 4;
  Harness h(o);
  std::vector<TokenId> b = ids(40);
  const RequestId first = h.submit(ids(40), Harness::greedy(2));
  h.step();
  b.push_back(901);
  const RequestId second = h.submit(b, Harness::greedy(2));
  h.step();
  h.abort(first);
  h.run();
  h.expect_sound();
  h.expect_greedy(second);
  h.expect_all_ended();
}

TEST(Scheduler, APausedLeaderHoldsUpNobody) {
  HarnessOptions o = small();
  o.max_prefill_chunk_tokens = 4;
  Harness h(o);
  const RequestId first = h.submit(ids(40), Harness::greedy(2));
  h.step();
  const RequestId second = h.submit(ids(41), Harness::greedy(2));
  h.step();
  h.core().set_paused(first, true);
  for (int i = 0; i < 40; ++i) h.step();
  EXPECT_EQ(h.record(second).num_ends, 1);
  EXPECT_EQ(h.record(first).num_ends, 0);
  h.core().set_paused(first, false);
  h.run();
  h.expect_greedy(first);
  h.expect_all_ended();
}

TEST(Scheduler, AHitLeavesATokenToRun) {
  Harness h(small());
  const RequestId first = h.submit(ids(16), Harness::greedy(1));
  h.run();
  const RequestId second = h.submit(ids(16), Harness::greedy(1));
  h.run();
  h.expect_sound();
  EXPECT_EQ(h.record(second).end.cached_tokens, 15);
  EXPECT_EQ(h.record(second).sequences[0].tokens, h.record(first).sequences[0].tokens);
}

TEST(Scheduler, SaltsDoNotShare) {
  Harness h(small());
  CoreRequest a, b;
  a.cache_salt = "a";
  b.cache_salt = "b";
  h.submit(ids(32), Harness::greedy(1), a);
  h.run();
  const RequestId other = h.submit(ids(32), Harness::greedy(1), b);
  h.run();
  EXPECT_EQ(h.record(other).end.cached_tokens, 0);
}

TEST(Scheduler, PromptLogprobsRunEveryRowThoughThePromptIsCached) {
  Harness h(small());
  h.submit(ids(30), Harness::greedy(1));
  h.run();
  SamplingParams p = Harness::greedy(2);
  p.prompt_logprobs = 0;
  const RequestId id = h.submit(ids(30), p);
  h.run();
  EXPECT_EQ(h.record(id).end.cached_tokens, 0);
  EXPECT_EQ(h.record(id).prompt_logprobs.size(), 30u);
}

TEST(Scheduler, PreemptedSiblingsShareTheirPromptAgain) {
  for (const bool bypass : {true, false}) {
    HarnessOptions o = small();
    o.num_blocks = 28;  // the beams' peak: 7 full prompt blocks, 3 x 6 of their own, 3 copies
    o.reserve = {.least = 0, .rise = 0, .decay = 0};
    Harness h(o);
    SamplingParams p = Harness::greedy(40);
    p.beam_width = p.n = 3;
    const RequestId other = h.submit(ids(8, 500), Harness::greedy(150));
    std::vector<RequestId> groups;
    for (const int32_t first : {0, 100}) {
      CoreRequest beams;
      beams.bypass_prefix_cache = bypass;
      groups.push_back(h.submit(ids(60, first), p, std::move(beams)));
    }
    while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
    // With the others gone all three beams may come back at once; three prompts of 8 blocks each are too
    // many.
    h.abort(other);
    h.abort(groups[0]);
    h.run();
    h.expect_sound();
    h.expect_all_ended();
    for (const auto& [index, s] : h.record(groups[1]).sequences) EXPECT_EQ(s.finish, FinishReason::kLength);
  }
}

TEST(Scheduler, ARequestThatJustFitsRunsAloneEvenFromItsOwnCachedPrefix) {
  HarnessOptions o = small();
  o.num_blocks = 4;
  Harness h(o);
  for (int i = 0; i < 3; ++i) {
    const RequestId id = h.submit(ids(29), Harness::greedy(4));  // 32 positions: all 4 blocks of 8
    ASSERT_NE(id, 0u) << h.last_refusal().message;
    h.run();
    EXPECT_EQ(h.record(id).sequences[0].finish, FinishReason::kLength);
    h.expect_greedy(id);
  }
  EXPECT_EQ(h.submit(ids(29), Harness::greedy(5)), 0u);
  h.expect_sound();
}

// The longest prompt that comes in at once beside a request that runs, with its first 12 tokens cached or nothing: a block of 8,
// and half of one.
int32_t longest_that_comes_in(bool cached) {
  for (int32_t length = 180; length > 12; --length) {
    HarnessOptions o = small();
    o.reserve = {.least = 0, .rise = 0, .decay = 0};
    Harness h(o);
    if (cached) h.submit(ids(12), Harness::greedy(1));
    h.run();
    h.submit(ids(83, 500), Harness::greedy(40));
    for (int i = 0; i < 3; ++i) h.step();
    const RequestId next = h.submit(ids(length), Harness::greedy(1));
    h.step();
    const SequenceGroup* group = h.core().scheduler().find(next);
    if (group != nullptr && group->state == GroupState::kWaiting) continue;
    h.run();
    EXPECT_EQ(h.record(next).end.cached_tokens > 0, cached);
    return length;
  }
  return 0;
}

TEST(Scheduler, WhatIsCachedInsideABlockKeepsNobodyOut) {
  EXPECT_EQ(longest_that_comes_in(true), longest_that_comes_in(false));
}

// It was used longest ago, but somebody waits for it.
TEST(Scheduler, WhatAWaitingRequestWillFindIsNotEvictedFirst) {
  HarnessOptions o = small();
  o.num_blocks = 40;
  o.max_sequences = 1;
  Harness h(o);
  for (const int32_t first : {0, 200}) {
    h.submit(ids(80, first), Harness::greedy(1));
    h.run();
    h.clock().advance_us(1000);
  }
  h.submit(ids(40, 500), Harness::greedy(160));  // 25 blocks beside the cached 20
  h.step();
  std::vector<TokenId> behind = ids(80);
  behind.push_back(900);
  const RequestId waits = h.submit(behind, Harness::greedy(1));
  h.run();
  EXPECT_EQ(h.record(waits).end.cached_tokens, 80);
  h.expect_sound();
}

// Returns how much of a prompt is still cached once others have filled the cache three times over.
int32_t cached_after_a_flood(const KvRetention& retention, int64_t wait_us) {
  Harness h(small());
  CoreRequest first;
  first.retention = retention;
  h.submit(ids(33), Harness::greedy(2), std::move(first));
  h.run();
  h.clock().advance_us(wait_us);
  for (int i = 1; i <= 3 * 64 * 8 / 80; ++i) {
    h.submit(ids(78, 1000 + 100 * i), Harness::greedy(2));
    h.run();
  }
  const RequestId again = h.submit(ids(33), Harness::greedy(2));
  h.run();
  h.expect_sound();
  return h.record(again).end.cached_tokens;
}

TEST(Scheduler, AHigherRetentionClassOutlivesAFloodUntilItsTimeIsUp) {
  EXPECT_EQ(cached_after_a_flood({.ttl_ms = {}}, 0), 0);
  EXPECT_EQ(cached_after_a_flood({.retention_class = 1, .ttl_ms = {}}, 0), 32);
  EXPECT_EQ(cached_after_a_flood({.retention_class = 1, .ttl_ms = 60'000}, 0), 32);
  EXPECT_EQ(cached_after_a_flood({.retention_class = 1, .ttl_ms = 60'000}, 61'000'000), 0);
  EXPECT_EQ(cached_after_a_flood({.ttl_ms = {}, .cost = 2}, 0), 32) << "dearer to compute again";
}

// Whoever finds a prefix and no room for the rest looks it up again whenever there may be room: that is no use of it.
TEST(Scheduler, UnderPgdsfAPrefixIsUsedByWhoRunsWithIt) {
  for (const bool runs : {true, false}) {
    HarnessOptions o = small();
    o.eviction = EvictionOrder::kPgdsf;
    Harness h(o);
    h.submit(ids(33), Harness::greedy(2));
    h.run();
    for (int round = 0; round < 8; ++round) {
      const RequestId reader = submit_paused(h, 16);
      for (int n = 1; n <= 4; ++n)
        h.submit(ids(2, 700 + 10 * n), Harness::greedy(2 * n));  // each end is a new look
      std::vector<TokenId> longer = ids(32);
      longer.resize(runs ? 34 : 170, 900 + round);
      const RequestId asks = h.submit(longer, Harness::greedy(1));
      for (int n = 0; n < 12; ++n) h.step();
      EXPECT_EQ(h.record(asks).num_ends, runs ? 1 : 0);
      h.abort(asks);
      h.core().set_paused(reader, false);
      h.run();
    }
    for (int i = 1; i <= 7; ++i) {
      h.submit(ids(78, 100 + 7 * i), Harness::greedy(2));
      h.run();
    }
    const RequestId again = h.submit(ids(33), Harness::greedy(2));
    h.run();
    h.expect_sound();
    EXPECT_EQ(h.record(again).end.cached_tokens, runs ? 32 : 0);
  }
}

}  // namespace
}  // namespace quire
