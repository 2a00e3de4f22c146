// Preemption by swap, step by step over a small cache and a fake executor: who gives way, by which means,
// what a copy under way holds, and what a cancel or a failure during one leaves behind.
#include <set>

#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

// 24 blocks of 8, over-committed as far as it goes.
HarnessOptions tight() {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_swap_blocks = 24;
  o.preemption_mode = "swap";
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

const Sequence& first_of(Harness& h, RequestId id) {
  return *h.core().scheduler().find(id)->sequences.front();
}
const SchedulerCounters& counters(Harness& h) {
  return h.core().scheduler().counters();
}

// Steps until somebody's blocks are on their way out, and gives the request.
RequestId until_swap_out(Harness& h, std::vector<RequestId> requests) {
  for (int i = 0; i < 1000; ++i) {
    for (const RequestId id : requests)
      if (h.core().scheduler().find(id) != nullptr && first_of(h, id).copying) return id;
    if (!h.step()) break;
  }
  ADD_FAILURE() << "nobody was swapped out";
  return 0;
}

TEST(PreemptionCost, SwapIsLinearInBytesAndRecomputeGrowsFasterThanTokens) {
  const PreemptionCosts c{.link_bytes_per_s = 1e9,
                          .transfer_us = 10,
                          .flops_per_s = 1e12,
                          .flops_per_token = 1e8,
                          .flops_per_token_pair = 1e4,
                          .step_us = 50};
  EXPECT_DOUBLE_EQ(swap_cost_us(c, 0), 20);
  EXPECT_DOUBLE_EQ(swap_cost_us(c, 1'000'000), 2 * (10 + 1000));
  EXPECT_DOUBLE_EQ(recompute_cost_us(c, 1000), 50 + 1e6 * (1000 * 1e8 + 5e5 * 1e4) / 1e12);
  EXPECT_GT(recompute_cost_us(c, 2000), 2 * recompute_cost_us(c, 1000));
}

TEST(Swap, AutoTakesTheCheaperOfTheTwo) {
  for (const double link : {1e12, 1.0}) {
    HarnessOptions o = tight();
    o.preemption_mode = "auto";
    o.costs.link_bytes_per_s = link;
    Harness h(o);
    h.submit(ids(60), Harness::greedy(100));
    h.submit(ids(60, 300), Harness::greedy(100));
    h.run();
    h.expect_sound();
    h.expect_all_ended();
    EXPECT_GT(counters(h).preemptions, 0);
    EXPECT_EQ(counters(h).swap_outs, link > 1 ? counters(h).preemptions : 0);
  }
}

TEST(Swap, TheFirstInOrderNeverGivesWayWhileThereIsAnother) {
  HarnessOptions o = tight();
  o.preemption_mode = "auto";
  Harness h(o);
  const RequestId first = h.submit(ids(20), Harness::greedy(150));  // the cheapest to compute again
  h.submit(ids(100, 300), Harness::greedy(80));
  while (!h.core().idle()) {
    if (h.core().scheduler().find(first) != nullptr) {
      EXPECT_EQ(first_of(h, first).num_preempted, 0);
    }
    ASSERT_TRUE(h.step());
  }
  EXPECT_GT(counters(h).preemptions, 0);
  h.expect_sound();
}

TEST(Swap, WhatComesBackWasComputedOnce) {
  HarnessOptions o = tight();
  o.prefix_cache = false;
  Harness h(o);
  const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                  b = h.submit(ids(60, 300), Harness::greedy(100));
  int64_t run = 0;
  for (uint64_t last = 0; !h.core().idle();) {
    ASSERT_TRUE(h.step());
    if (h.core().scheduler().in_flight().empty()) continue;
    const BatchPlan& plan = *h.core().scheduler().in_flight().back().plan;
    if (plan.step != std::exchange(last, plan.step)) run += plan.num_tokens();
  }
  EXPECT_GT(counters(h).swap_ins, 0);
  EXPECT_EQ(run, 2 * (60 + 99)) << "each position once";
  h.expect_greedy(a);
  h.expect_greedy(b);
  h.expect_sound();
}

TEST(Swap, ACopyUnderWayHoldsItsBlocksAndHoldsNobodyElseUp) {
  Harness h(tight());
  h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 60'000}; });  // about ten steps
  // Full by their last token but one: the second gives way when the first needs one block more, and the third
  // has room in its own.
  const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                  b = h.submit(ids(64, 300), Harness::greedy(100));
  const RequestId c = h.submit(ids(7, 600), Harness::greedy(100));
  const RequestId out = until_swap_out(h, {a, b, c});
  const int32_t blocks = first_of(h, out).swapped.num_blocks();
  EXPECT_GE(h.core().cache().num_held(), blocks) << "the copy still reads them";
  const int64_t before = counters(h).output_tokens;
  int steps = 0;
  for (; first_of(h, out).copying && h.step(); ++steps) {
  }
  EXPECT_GT(counters(h).output_tokens, before) << "those that have room go on";
  EngineStats stats;
  h.core().fill_stats(stats);
  EXPECT_EQ(stats.sequences_preempted, 1);
  EXPECT_EQ(stats.sequences_running + stats.sequences_preempted + stats.requests_waiting,
            h.core().num_unfinished());
  h.run();
  h.core().fill_stats(stats);
  EXPECT_EQ(stats.sequences_preempted, 0);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Swap, ACancelDuringACopyEitherWayLeaksNothing) {
  for (const bool on_the_way_back : {false, true}) {
    Harness h(tight());
    const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                    b = h.submit(ids(60, 300), Harness::greedy(100));
    RequestId out = until_swap_out(h, {a, b});
    while (on_the_way_back && !(first_of(h, out).copying && first_of(h, out).running()))
      ASSERT_TRUE(h.core().step() || h.core().wait_for_copy());
    ASSERT_TRUE(first_of(h, out).copying);
    h.abort(out);
    h.step();
    h.run();
    EXPECT_EQ(h.record(out).sequences[0].finish, FinishReason::kCancelled);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(Swap, OfACopyBackThatFailsAfterACancelNothingIsPublished) {
  Harness h(tight());
  int n = 0;
  h.mover().set_fault([&] { return FakeMover::Fault{.fails = ++n == 2, .delay_us = 20'000}; });
  const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                  b = h.submit(ids(60, 300), Harness::greedy(100));
  const RequestId out = until_swap_out(h, {a, b});
  while (n < 2) ASSERT_TRUE(h.core().step() || h.core().wait_for_copy());
  ASSERT_TRUE(first_of(h, out).running() && first_of(h, out).copying);
  const std::vector<TokenId> tokens = first_of(h, out).tokens;
  h.abort(out);
  h.run();
  const RequestId again = h.submit(tokens, Harness::greedy(8));
  h.run();
  h.expect_greedy(again);
  h.expect_sound();
}

TEST(Swap, AFailedCopyIsComputedAgain) {
  for (const int fails : {1, 2}) {  // the copy out; the copy back
    Harness h(tight());
    int n = 0;
    h.mover().set_fault([&] { return FakeMover::Fault{.fails = ++n == fails}; });
    const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                    b = h.submit(ids(60, 300), Harness::greedy(100));
    h.run();
    EXPECT_EQ(counters(h).swap_failures, 1);
    h.expect_greedy(a);
    h.expect_greedy(b);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(Swap, APolicyThatChoosesByScoresGivesWayBySwapOnly) {
  for (const int32_t swap_blocks : {24, 0}) {
    HarnessOptions o = tight();
    o.num_swap_blocks = swap_blocks;
    Harness h(o);
    CoreRequest tova;
    tova.policy = {.kind = RetentionKind::kTova, .budget = 60};
    const RequestId t = h.submit(ids(70, 300), Harness::greedy(60), tova);
    while (first_of(h, t).num_output_tokens() < 5) ASSERT_TRUE(h.step());
    h.core().set_paused(t, true);  // who does not read gives way first
    const RequestId a = h.submit(ids(60), Harness::greedy(50)),
                    b = h.submit(ids(60, 600), Harness::greedy(50));
    while (h.core().num_unfinished() > 1) ASSERT_TRUE(h.step());
    EXPECT_EQ(first_of(h, t).num_preempted, swap_blocks > 0 ? 1 : 0);
    h.core().set_paused(t, false);
    h.run();
    EXPECT_EQ(h.record(t).sequences[0].tokens.size(), 60u);
    h.expect_greedy(a);
    h.expect_greedy(b);
    h.expect_sound();
    h.expect_all_ended();
  }
}

SamplingParams beams(int32_t width, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.beam_width = p.n = width;
  return p;
}

std::vector<std::vector<TokenId>> tokens_of(Harness& h, RequestId id) {
  std::vector<std::vector<TokenId>> all;
  for (const auto& [index, s] : h.record(id).sequences) all.push_back(s.tokens);
  return all;
}

// Whoever gives way does so with all its beams, and they find what an undisturbed search finds.
TEST(Swap, BeamsLeaveAndComeBackTogether) {
  std::vector<std::vector<TokenId>> expected;
  for (const int32_t blocks : {200, 28}) {
    for (const bool prefix_cache : {true, false}) {
      HarnessOptions o = tight();
      o.num_blocks = blocks;
      o.prefix_cache = prefix_cache;
      Harness h(o);
      const RequestId a = h.submit(ids(60), Harness::greedy(100));
      const RequestId b = h.submit(ids(44, 300), beams(3, 40));
      int64_t together = 0;
      while (!h.core().idle()) {
        ASSERT_TRUE(h.step());
        const SequenceGroup* group = h.core().scheduler().find(b);
        if (group == nullptr) continue;
        std::set<int32_t> distinct;
        int32_t out = 0;
        for (const auto& s : group->sequences) {
          if (!s->swapped.empty()) ++out;
          for (const SwappedBlock& block : s->swapped.blocks()) distinct.insert(value(block.host));
        }
        EXPECT_TRUE(out == 0 || out == 3) << out << " of 3 beams are out";
        if (out == 0) continue;
        ++together;
        EXPECT_EQ(h.core().cache().swap_pool().num_held(), static_cast<int64_t>(distinct.size()));
        EXPECT_LT(static_cast<int32_t>(distinct.size()), 3 * 6) << "the prompt lies there once";
      }
      EXPECT_EQ(together > 0, blocks == 28);
      EXPECT_EQ(counters(h).swap_outs, counters(h).preemptions);
      if (expected.empty()) expected = tokens_of(h, b);
      EXPECT_EQ(tokens_of(h, b), expected);
      h.expect_greedy(a);
      h.expect_sound();
      h.expect_all_ended();
    }
  }
}

// Both need a block of their own for the next token, and what there is a copy holds. The third has room for some tokens.
TEST(Swap, BeamsWithoutRoomWhileACopyIsUnderWayHoldNobodyUp) {
  int met = 0;
  for (int32_t prompt = 1; prompt <= 24; ++prompt) {
    Harness h(tight());
    h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 60'000}; });
    const RequestId a = h.submit(ids(60), beams(2, 40)), b = h.submit(ids(60, 300), Harness::greedy(100));
    const RequestId c = h.submit(ids(prompt, 600), Harness::greedy(100));
    if (until_swap_out(h, {a, b, c}) != b) continue;
    const bool waits = first_of(h, a).table.length() % 8 == 0 && first_of(h, a).num_in_flight == 0;
    const int32_t room = 8 - first_of(h, c).table.length() % 8, before = first_of(h, c).num_output_tokens();
    if (!waits || room < 3) continue;
    ++met;
    while (first_of(h, b).copying) ASSERT_TRUE(h.step());
    EXPECT_GE(first_of(h, c).num_output_tokens(), before + 3);
    h.run();
    h.expect_greedy(c);
    h.expect_sound();
    h.expect_all_ended();
  }
  EXPECT_GT(met, 0);
}

// One copy for all of them: when it fails they all run again, and a cancel leaves nothing behind.
TEST(Swap, ACopyOfBeamsThatFailsOrIsCancelledIsAllOfTheirs) {
  for (const int fails : {1, 2, 0}) {
    HarnessOptions o = tight();
    o.num_blocks = 28;
    Harness h(o);
    int n = 0;
    h.mover().set_fault([&] { return FakeMover::Fault{.fails = ++n == fails, .delay_us = 20'000}; });
    const RequestId a = h.submit(ids(60), Harness::greedy(100));
    const RequestId b = h.submit(ids(44, 300), beams(3, 40));
    while (fails == 0 && !first_of(h, b).copying) ASSERT_TRUE(h.step());
    if (fails == 0) h.abort(b);
    h.run();
    EXPECT_EQ(counters(h).swap_failures, fails == 0 ? 0 : 3);
    EXPECT_EQ(h.record(b).sequences[0].finish, fails == 0 ? FinishReason::kCancelled : FinishReason::kLength);
    h.expect_greedy(a);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Of twins each block is another's already once one of them has published it: what leaves is what was counted, with
// room on the host for just so much.
TEST(Swap, BeamsThatAreTwinsFitWhereTheyWereSaidTo) {
  int64_t swapped = 0;
  for (int32_t swap_blocks = 4; swap_blocks <= 24; ++swap_blocks) {
    for (const int32_t prompt : {12, 16, 20, 24, 28, 32, 36}) {
      HarnessOptions o = tight();
      o.num_swap_blocks = swap_blocks;
      o.num_blocks = 30;
      Harness h(o);
      std::vector<RequestId> twins;
      h.submit(ids(30, 600), Harness::greedy(100));
      for (int32_t i = 0; i < 4; ++i) twins.push_back(h.submit(ids(prompt, 300), beams(2, 40)));
      h.run();
      swapped += counters(h).swap_outs;
      for (const RequestId id : twins) EXPECT_EQ(tokens_of(h, id), tokens_of(h, twins.front()));
      h.expect_sound();
      h.expect_all_ended();
    }
  }
  EXPECT_GT(swapped, 100);
}

TEST(Swap, NegativeSpaceAndUnknownModesAreRefusedByName) {
  ManualClock clock;
  FakeExecutor executor({.num_blocks = 8, .block_tokens = 8});
  CoreOptions options;
  options.config.max_context_tokens = 16;
  options.cache = uniform_spec({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_tokens = 8}, 8);
  options.cache.swap_bytes = -1;
  EXPECT_EQ(EngineCore::create(options, executor, clock).error().field, "swap_space_bytes");
  options.cache.swap_bytes = 0;
  options.config.preemption_mode = "drop";
  EXPECT_EQ(EngineCore::create(options, executor, clock).error().message,
            "preemption_mode is `drop`; it must be auto, swap or recompute");
}

// K and V that did not come back are not found by others.
TEST(Swap, AFailedWayBackInsideAPromptPublishesNothing) {
  HarnessOptions o = tight();
  o.num_swap_blocks = 40;
  o.max_prefill_chunk_tokens = 16;
  Harness h(o);
  CoreRequest tova;
  tova.policy = {.kind = RetentionKind::kTova, .budget = 16};
  const RequestId lost = h.submit(ids(100), Harness::greedy(4), tova);
  for (int i = 0; i < 3; ++i) h.step();
  h.core().set_paused(lost, true);
  const RequestId other = h.submit(ids(170, 300), Harness::greedy(8));
  while (h.record(other).num_ends == 0) ASSERT_TRUE(h.step());
  ASSERT_GT(counters(h).swap_outs, 0);
  h.mover().set_fault([] { return FakeMover::Fault{.fails = true}; });
  h.core().set_paused(lost, false);
  h.run();
  h.mover().set_fault({});
  const RequestId again = h.submit(ids(100), Harness::greedy(4));
  h.run();
  h.expect_greedy(again);
  h.expect_sound();
  h.expect_all_ended();
}

}  // namespace
}  // namespace quire
