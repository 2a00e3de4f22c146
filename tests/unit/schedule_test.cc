// What the scheduler plans, step by step, over a small cache and a fake executor; each rule of
// src/engine/README.md (A step; Order and fairness) on a case made by hand.
#include <algorithm>
#include <cmath>

#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

HarnessOptions small() {
  HarnessOptions o;
  o.num_blocks = 32;
  return o;
}

const BatchPlan& last_plan(Harness& h) {
  return *h.core().scheduler().in_flight().back().plan;
}

TEST(Scheduler, MixesDecodesAndPromptChunksUnderOneBudget) {
  HarnessOptions o = small();
  o.max_step_tokens = 24;
  Harness h(o);
  h.submit(ids(8), Harness::greedy(20));
  h.step();
  h.submit(ids(60, 500), Harness::greedy(4));
  h.step();
  const BatchPlan& plan = last_plan(h);
  ASSERT_EQ(plan.sequences.size(), 2u);
  EXPECT_EQ(plan.sequences[0].tokens, std::vector<TokenId>{kSampledLastStep})
      << "the token is still being sampled";
  EXPECT_EQ(plan.sequences[1].tokens.size(), 23u);
  EXPECT_TRUE(plan.sequences[1].samples.empty());
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Scheduler, PlansNothingPastMaxTokens) {
  Harness h(small());
  const RequestId id = h.submit(ids(8), Harness::greedy(3));
  h.run();
  EXPECT_EQ(h.record(id).sequences[0].tokens.size(), 3u);
  EXPECT_EQ(h.core().scheduler().counters().steps, 3)
      << "one for the prompt, two decodes; the last id is never run";
}

TEST(Scheduler, DropsTheResultThatFollowsAnEndingId) {
  Harness probe(small());
  const std::vector<TokenId> expected = probe.executor().greedy(ids(8), 5);
  HarnessOptions o = small();
  o.eos = {expected[2]};
  Harness h(o);
  const RequestId id = h.submit(ids(8), Harness::greedy(50));
  h.run();
  h.expect_sound();
  EXPECT_EQ(h.record(id).sequences[0].tokens, std::vector<TokenId>(expected.begin(), expected.begin() + 3));
  EXPECT_EQ(h.record(id).sequences[0].finish, FinishReason::kStop);
  EXPECT_EQ(h.core().scheduler().counters().steps, 4) << "the step after the end ran, for nothing";
  h.expect_all_ended();
}

TEST(Scheduler, SamplesPrefillOnceShareFullBlocksAndCopyTheTail) {
  Harness h(small());
  SamplingParams p = Harness::greedy(4);
  p.n = 4;
  const RequestId id = h.submit(ids(20), p);  // two full blocks of 8, and 4 slots
  h.step();
  EXPECT_EQ(last_plan(h).sequences.size(), 1u);
  EXPECT_EQ(last_plan(h).sequences[0].samples.size(), 4u);
  EXPECT_EQ(last_plan(h).joins.size(), 4u);
  EXPECT_EQ(h.core().cache().num_held(), 3);
  h.step();
  EXPECT_EQ(h.core().cache().counters().copies_on_write, 3) << "the last holder writes in place";
  h.run();
  h.expect_sound();
  h.expect_greedy(id);
  const RequestEnd& end = h.record(id).end;
  EXPECT_EQ(end.kv.copies_on_write, 3);
  EXPECT_EQ(end.kv.blocks_peak, 2 + 4);
  EXPECT_EQ(end.kv.blocks_shared_peak, 3);
  EXPECT_EQ(h.core().scheduler().counters().prompt_tokens, 20);
}

TEST(Scheduler, SamplesDrawApartAndTheFirstAsTheRequestAlone) {
  SamplingParams p;
  p.max_tokens = 12;
  p.seed = 77;
  Harness alone(small());
  const RequestId one = alone.submit(ids(20), p);
  alone.run();
  p.n = 3;
  Harness h(small());
  const RequestId three = h.submit(ids(20), p);
  h.run();
  h.expect_sound();
  auto& s = h.record(three).sequences;
  EXPECT_EQ(s[0].tokens, alone.record(one).sequences[0].tokens);
  EXPECT_NE(s[1].tokens, s[0].tokens);
  EXPECT_NE(s[1].tokens, s[2].tokens);
}

TEST(Scheduler, TheLatestOfTheLowestPriorityIsPreempted) {
  HarnessOptions o = small();
  o.num_blocks = 12;
  o.prefix_cache = false;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  Harness h(o);
  CoreRequest low;
  low.priority = 1;
  const RequestId late_low = h.submit(ids(24, 100), Harness::greedy(40), low);
  h.step();
  const RequestId high = h.submit(ids(24, 200), Harness::greedy(40));
  while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(h.core().scheduler().find(late_low)->sequences[0]->state, SequenceState::kPreempted);
  EXPECT_EQ(h.core().scheduler().find(high)->sequences[0]->state, SequenceState::kRunning);
  h.run();
  h.expect_sound();
  h.expect_greedy(late_low);
  h.expect_greedy(high);
}

// Steps of 10 ms in which requests of the highest priority never leave room, until `id` has ended; at most
// `most` of them.
int32_t steps_under_pressure(Harness& h, RequestId id, int32_t most) {
  int32_t steps = 0;
  for (; steps < most && h.record(id).num_ends == 0; ++steps) {
    while (h.core().scheduler().num_waiting_groups() < 3)
      h.submit(ids(24, 100 + 30 * (steps % 20)), Harness::greedy(20));
    h.step();
    h.clock().advance_us(10'000);
  }
  return steps;
}

TEST(Scheduler, ALowPriorityStarvesNoLongerThanItsBound) {
  for (const int64_t bound_ms : {int64_t{1000}, int64_t{1} << 40}) {
    HarnessOptions o = small();
    o.num_blocks = 12;
    o.prefix_cache = false;
    o.max_priority_wait_ms = bound_ms;
    Harness h(o);
    CoreRequest low;
    low.priority = 1;
    for (int i = 0; i < 3; ++i) h.submit(ids(24, 100 * i), Harness::greedy(20));
    const RequestId starving = h.submit(ids(24, 700), Harness::greedy(4), low);
    const int32_t steps = steps_under_pressure(h, starving, 1000);
    if (bound_ms == 1000) {
      EXPECT_GE(steps, 100) << "until then its priority counts";
      EXPECT_LE(steps, 100 + 60) << "what runs ends in 21 steps, and so does each of those before it";
    } else {
      EXPECT_EQ(steps, 1000) << "without the bound it would wait for ever";
    }
    h.run();
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(Scheduler, APreemptedLowPriorityComesBackWithinItsBound) {
  HarnessOptions o = small();
  o.num_blocks = 12;
  o.prefix_cache = false;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  o.max_priority_wait_ms = 1000;
  Harness h(o);
  CoreRequest low;
  low.priority = 1;
  const RequestId victim = h.submit(ids(24, 700), Harness::greedy(40), low);
  h.step();
  h.submit(ids(24, 200), Harness::greedy(40));
  while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
  EXPECT_LE(steps_under_pressure(h, victim, 1000), 250);
  h.run();
  h.expect_sound();
  h.expect_greedy(victim);
}

// One at a time, so that the order of ends is the order of admission.
HarnessOptions one_slot() {
  HarnessOptions o = small();
  o.max_sequences = 1;
  return o;
}

TEST(Scheduler, OfATenantsLineWhoHasMostCachedGoesFirst) {
  Harness h(one_slot());
  h.submit(ids(33), Harness::greedy(1));
  h.run();
  const RequestId busy = h.submit(ids(8, 900), Harness::greedy(4));
  h.step();
  const RequestId fresh = h.submit(ids(33, 500), Harness::greedy(1));
  const RequestId cached = h.submit(ids(33), Harness::greedy(1));
  while (h.record(busy).num_ends == 0) h.step();
  while (h.record(cached).num_ends == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(h.record(fresh).num_ends, 0) << "it came first, and has nothing cached";
  EXPECT_EQ(h.record(cached).end.cached_tokens, 32);
  h.run();
  h.expect_all_ended();
}

TEST(Scheduler, NobodyIsOvertakenForEver) {
  Harness h(one_slot());
  h.submit(ids(33), Harness::greedy(1));
  h.run();
  h.submit(ids(8, 900), Harness::greedy(4));
  h.step();
  const RequestId fresh = h.submit(ids(33, 500), Harness::greedy(1));
  std::vector<RequestId> later;
  while (later.size() < 100 && h.record(fresh).num_ends == 0) {
    later.push_back(h.submit(ids(33), Harness::greedy(1)));
    h.step();
  }
  const auto before_it =
      std::count_if(later.begin(), later.end(), [&](RequestId id) { return h.record(id).num_ends > 0; });
  EXPECT_EQ(before_it, 16);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Scheduler, APromptOfOneTokenHasOneEntryOfPromptLogprobs) {
  Harness h(small());
  SamplingParams p = Harness::greedy(2);
  p.prompt_logprobs = 0;
  const RequestId id = h.submit(ids(1, 5), p);
  h.run();
  ASSERT_EQ(h.record(id).prompt_logprobs.size(), 1u);
  EXPECT_EQ(h.record(id).prompt_logprobs[0].token_id, 5);
  EXPECT_TRUE(std::isnan(h.record(id).prompt_logprobs[0].logprob));
  h.expect_all_ended();
}

TEST(Scheduler, APausedSequenceGivesWayFirst) {
  HarnessOptions o = small();
  o.num_blocks = 12;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  Harness h(o);
  const RequestId paused = h.submit(ids(40, 100), Harness::greedy(40));
  for (int i = 0; i < 10; ++i) h.step();
  h.core().set_paused(paused, true);
  const RequestId other = h.submit(ids(60, 200), Harness::greedy(30));
  for (int i = 0; i < 60; ++i) h.step();
  EXPECT_EQ(h.record(other).num_ends, 1);
  EXPECT_EQ(h.core().scheduler().find(paused)->sequences[0]->state, SequenceState::kPreempted);
  h.core().set_paused(paused, false);
  h.run();
  h.expect_sound();
  h.expect_greedy(paused);
}

TEST(Scheduler, ALargeRequestIsNotOvertaken) {
  HarnessOptions o = small();
  o.num_blocks = 16;
  Harness h(o);
  h.submit(ids(64, 100), Harness::greedy(20));
  h.step();
  const RequestId large = h.submit(ids(100, 300), Harness::greedy(4));
  std::vector<RequestId> little;
  for (int i = 0; i < 5; ++i) little.push_back(h.submit(ids(8, 600 + 10 * i), Harness::greedy(40)));
  while (h.record(large).num_ends == 0) ASSERT_TRUE(h.step());
  for (const RequestId id : little) EXPECT_EQ(h.record(id).num_ends, 0);
  h.run();
  h.expect_all_ended();
}

TEST(Scheduler, ADeadlineEndsARequestWaitingOrRunning) {
  HarnessOptions o = small();
  o.max_sequences = 1;
  Harness h(o);
  CoreRequest soon;
  soon.deadline_us = 20000;
  const RequestId running = h.submit(ids(8), Harness::greedy(100), soon);
  const RequestId waiting = h.submit(ids(8, 100), Harness::greedy(100), soon);
  h.run();
  for (const RequestId id : {running, waiting}) {
    EXPECT_EQ(h.record(id).sequences[0].finish, FinishReason::kDeadline);
    EXPECT_EQ(h.record(id).sequences[0].error->code, Code::kDeadlineExceeded);
  }
  EXPECT_GT(h.record(running).sequences[0].tokens.size(), 0u);
  h.expect_all_ended();
}

TEST(Scheduler, CancelledWhileInAStepBlocksAreFreeOnceItHasRun) {
  Harness h(small());
  const RequestId id = h.submit(ids(30), Harness::greedy(100));
  for (int i = 0; i < 5; ++i) h.step();
  ASSERT_GT(h.core().scheduler().num_in_flight(), 0);
  h.abort(id);
  EXPECT_GT(h.core().cache().num_held(), 0) << "a submitted step names them";
  while (h.step()) {
  }
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Scheduler, AFailedStepFailsItsSequencesAndNotTheEngine) {
  Harness h(small());
  const RequestId hit = h.submit(ids(8), Harness::greedy(10));
  bool fail = true;
  h.executor().set_fault([&](const BatchPlan&) {
    return std::exchange(fail, false) ? Status(error(Code::kInternal, "no")) : ok();
  });
  h.step();
  h.step();
  const RequestId spared = h.submit(ids(8, 300), Harness::greedy(10));
  h.run();
  h.expect_sound();
  EXPECT_EQ(h.record(hit).sequences[0].finish, FinishReason::kFailed);
  EXPECT_EQ(h.record(hit).sequences[0].error->message, "no");
  EXPECT_EQ(h.record(spared).sequences[0].finish, FinishReason::kLength);
  h.expect_all_ended();
  const RequestId again = h.submit(ids(8), Harness::greedy(2));
  h.run();
  EXPECT_EQ(h.record(again).end.cached_tokens, 0) << "nothing of a failed step is cached";
}

// The host reads each row of such a prompt, for which everybody's step waits.
TEST(Scheduler, PromptLogprobsComeInChunksThatALargeVocabularyMakesShort) {
  HarnessOptions o;
  o.vocab_size = 1 << 20;
  Harness h(o);
  SamplingParams p = Harness::greedy(4);
  p.prompt_logprobs = 2;
  const RequestId id = h.submit(ids(30), p);
  const RequestId other = h.submit(ids(40, 100), Harness::greedy(4));
  h.step();
  const auto planned = [&](RequestId r) {
    return h.core().scheduler().find(r)->sequences.front()->num_planned;
  };
  EXPECT_EQ(planned(id), 8);
  EXPECT_EQ(planned(other), 40);
  h.run();
  EXPECT_EQ(h.record(id).prompt_logprobs.size(), 30u);
  h.expect_sound();
}

TEST(Scheduler, WithoutGenerationThePromptIsScoredAndEnds) {
  Harness h(small());
  SamplingParams p = Harness::greedy(0);
  p.prompt_logprobs = 2;
  const RequestId id = h.submit(ids(30), p);
  h.run();
  const RequestRecord& r = h.record(id);
  ASSERT_EQ(r.prompt_logprobs.size(), 30u);
  EXPECT_TRUE(std::isnan(r.prompt_logprobs[0].logprob));
  for (int32_t i = 1; i < 30; ++i) EXPECT_EQ(r.prompt_logprobs[i].token_id, i);
  EXPECT_EQ(h.record(id).sequences[0].finish, FinishReason::kLength);
  h.expect_all_ended();
}

TEST(Scheduler, BeamsForkAndDropAndGiveEverythingBack) {
  Harness h(small());
  SamplingParams p = Harness::greedy(12);
  p.beam_width = 4;
  p.n = 3;
  const RequestId id = h.submit(ids(20), p);
  h.run();
  h.expect_sound();
  ASSERT_EQ(h.record(id).sequences.size(), 3u);
  for (const auto& [index, s] : h.record(id).sequences) EXPECT_EQ(s.tokens.size(), 12u);
  EXPECT_NE(h.record(id).sequences[0].tokens, h.record(id).sequences[1].tokens);
  EXPECT_GT(h.record(id).end.kv.copies_on_write, 0);
  h.expect_all_ended();
}

TEST(Scheduler, BeamsGiveTheSameWhenPreempted) {
  SamplingParams p = Harness::greedy(30);
  p.beam_width = 3;
  p.n = 3;
  std::vector<std::vector<TokenId>> expected;
  for (const int32_t blocks : {200, 20}) {
    HarnessOptions o = small();
    o.num_blocks = blocks;
    o.reserve = {.least = 0, .rise = 0, .decay = 0};
    Harness h(o);
    CoreRequest later;
    later.priority = 1;
    const RequestId beams = h.submit(ids(24), p, later);
    h.step();
    for (int i = 0; i < 3; ++i) h.submit(ids(20, 100 * (i + 1)), Harness::greedy(30));
    h.run();
    h.expect_sound();
    for (int32_t i = 0; i < 3; ++i) {
      if (blocks == 200) expected.push_back(h.record(beams).sequences[i].tokens);
      EXPECT_EQ(h.record(beams).sequences[i].tokens, expected[i]);
    }
    if (blocks == 20) {
      EXPECT_GT(h.core().scheduler().counters().preemptions, 0);
    }
  }
}

TEST(Scheduler, EveryRunningSequenceAdvancesEveryStepWhenTheBudgetIsAsSmallAsItMayBe) {
  HarnessOptions o = small();
  o.max_sequences = o.max_step_tokens = 4;
  Harness h(o);
  std::vector<RequestId> all;
  for (int i = 0; i < 6; ++i) all.push_back(h.submit(ids(10, 100 * i), Harness::greedy(10)));
  h.run();
  for (const RequestId id : all) h.expect_greedy(id);
  h.expect_all_ended();
}

TEST(EngineCore, RefusesAStepTooSmallForItsSequences) {
  ManualClock clock;
  FakeExecutor executor({.num_blocks = 8, .block_tokens = 8});
  CoreOptions options;
  options.config.max_sequences = 8;
  options.config.max_step_tokens = 4;
  options.config.max_context_tokens = 16;
  options.cache = uniform_spec({.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_tokens = 8}, 8);
  const auto made = EngineCore::create(options, executor, clock);
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().message,
            "max_step_tokens is 4 and max_sequences 8; a step must have a token for every running sequence");
}

}  // namespace
}  // namespace quire
