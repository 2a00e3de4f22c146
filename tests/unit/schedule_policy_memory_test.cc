// Memory beside the cache for policies that go by scores: who is admitted takes its part, who finds none waits, and who needs more than
// there is is refused; and a step that cannot carry one sequence ends that request and no other.
#include <algorithm>

#include "src/policy/policy_memory.h"
#include "tests/unit/schedule_group_rig.h"

namespace quire {
namespace {

constexpr int32_t kPrompt = 30, kOutput = 20;
constexpr PolicySpec kH2o{.kind = RetentionKind::kH2o, .recent = 5, .heavy = 10};

int64_t bytes_of_one(int32_t samples = 1) {
  return policy_request_bytes(kH2o, kPrompt, kPrompt + kOutput, samples,
                              {.num_layers = 2, .num_kv_heads = 3});
}

HarnessOptions options_for(int64_t bytes) {
  HarnessOptions o;
  o.num_swap_blocks = 64;
  o.policy_memory = {.bytes = bytes, .num_layers = 2, .num_kv_heads = 3};
  return o;
}

RequestId submit(Harness& h, int32_t first, const PolicySpec& policy, int32_t n = 1) {
  CoreRequest request;
  request.policy = policy;
  SamplingParams p = Harness::greedy(kOutput);
  p.n = n;
  return h.submit(ids(kPrompt, first), p, request);
}

TEST(PolicyMemoryOfRequests, WhoFindsNoRoomWaitsUntilAnotherIsGone) {
  Harness h(options_for(2 * bytes_of_one()));
  for (int32_t i = 0; i < 5; ++i) submit(h, 100 * i, kH2o);
  h.step();
  EXPECT_EQ(h.core().scheduler().num_running(), 2);
  EXPECT_EQ(h.core().scheduler().policy_memory().used(), 2 * bytes_of_one());
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 5);
  EXPECT_EQ(h.core().scheduler().policy_memory().used(), 0);
}

// What the prompt shares with one that is cached is another's block for all samples once it has run. Where that were so for the
// first alone the others would hold their own, and there would be no room for all cuts at once.
TEST(PolicyMemoryOfRequests, SamplesCutTheirPromptOneAfterTheOtherWhereRoomIsTight) {
  for (int32_t num_blocks = 12; num_blocks <= 30; ++num_blocks) {
    for (const int32_t shared : {0, 7, 16, 24, 30}) {
      const std::unique_ptr<Harness> harness = with_cached_start(num_blocks, kPrompt, shared);
      Harness& h = *harness;
      const RequestId id = submit(h, 0, kH2o, 6);
      if (id == 0) continue;  // refused: never as much room
      h.run();
      h.expect_sound();
      h.expect_all_ended();
      EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength) << num_blocks << " blocks, shared " << shared;
    }
  }
}

TEST(PolicyMemoryOfRequests, OthersRunBesideThoseThatWait) {
  Harness h(options_for(bytes_of_one()));
  submit(h, 0, kH2o);
  submit(h, 500, {});
  h.step();
  EXPECT_EQ(h.core().scheduler().num_running(), 2);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(PolicyMemoryOfRequests, EverySampleHasListsOfItsOwn) {
  Harness h(options_for(bytes_of_one(3)));
  submit(h, 0, kH2o, 3);
  submit(h, 500, kH2o);
  h.step();
  EXPECT_EQ(h.core().scheduler().policy_memory().used(), bytes_of_one(3));
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 2);
}

TEST(PolicyMemoryOfRequests, MoreThanThereIsIsRefusedWithBothNumbers) {
  Harness h(options_for(bytes_of_one() - 1));
  EXPECT_EQ(submit(h, 0, kH2o), 0u);
  const std::string said = h.last_refusal().message;
  EXPECT_NE(said.find(std::to_string(bytes_of_one())), std::string::npos) << said;
  EXPECT_NE(said.find(std::to_string(bytes_of_one() - 1) + " (kv_policy_bytes)"), std::string::npos) << said;
  EXPECT_EQ(h.last_refusal().field, "kv_policy");
}

// What is paused keeps its part. Whoever waits for it must not be told that it cannot run even alone, whoever else gives way.
TEST(PolicyMemoryOfRequests, WhoWaitsForAPausedOnesPartIsNotFailed) {
  Harness h(options_for(bytes_of_one()));
  const RequestId holder = submit(h, 0, kH2o);
  for (int i = 0; i < 4; ++i) h.step();
  h.core().set_paused(holder, true);
  const RequestId waiting = submit(h, 500, kH2o);
  for (int i = 0; i < 50; ++i) h.step();
  EXPECT_EQ(h.record(waiting).num_ends, 0);
  h.core().set_paused(holder, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 2);
}

TEST(PolicyMemoryOfRequests, ACancelledOneGivesItsPartBackOnceItsStepsHaveRun) {
  Harness h(options_for(bytes_of_one()));
  const RequestId first = submit(h, 0, kH2o);
  h.step();
  const RequestId second = submit(h, 500, kH2o);
  h.abort(first);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.record(second).end.finish, FinishReason::kLength);
}

// Prompts of one cached prefix have more slots together than the cache: their last chunks run one after another, since executors have
// room for the scores of as many slots as there are.
TEST(PolicyMemoryOfRequests, AStepHasNoMoreSlotsToScoreThanTheCacheHas) {
  HarnessOptions o = options_for(1 << 20);
  o.num_blocks = 16;
  Harness h(o);
  std::vector<TokenId> prompt;
  for (int32_t i = 0; i < 73; ++i) prompt.push_back(i);
  h.submit(prompt, Harness::greedy(1));
  h.run();
  CoreRequest request;
  request.policy = {.kind = RetentionKind::kTova, .budget = 10};
  for (int32_t i = 0; i < 2; ++i) {
    prompt.back() = 900 + i;
    h.submit(prompt, Harness::greedy(6), request);
  }
  int32_t most = 0, most_running = 0;
  while (!h.core().idle() && h.step()) {
    for (const SubmittedStep& step : h.core().scheduler().in_flight()) {
      int32_t slots = 0;
      for (const PlannedSequence& s : step.plan->sequences) slots += s.list_length_after();
      most = std::max(most, slots);
    }
    most_running = std::max(most_running, h.core().scheduler().num_running());
  }
  EXPECT_EQ(most_running, 2) << "they share their prompt";
  EXPECT_EQ(most, 73) << "both would be 146 of 128";
  h.expect_sound();
  h.expect_all_ended();
}

// Two steps are under way: the one after the failure names the sequence still.
TEST(SequenceFailures, EndTheirRequestAndNoOther) {
  for (const int32_t fails_at : {0, kPrompt + 3}) {
    Harness h(options_for(1 << 20));
    const RequestId bad = submit(h, 0, kH2o, 2), good = submit(h, 300, kH2o), plain = submit(h, 600, {});
    std::optional<SequenceId> failed;
    h.executor().set_sequence_fault([&](const PlannedSequence& s) -> Status {
      const bool first = !failed && s.policy.kind == RetentionKind::kH2o && s.first_position >= fails_at;
      if (!first && failed != s.sequence) return ok();
      failed = s.sequence;
      return error(Code::kResourceExhausted, "no memory for one sequence");
    });
    h.run();
    h.expect_sound();
    h.expect_all_ended();
    ASSERT_TRUE(failed.has_value());
    EXPECT_EQ(h.core().counts().failed, 1);
    EXPECT_EQ(h.core().counts().finished, 2);
    EXPECT_EQ(h.record(bad).end.finish, FinishReason::kFailed);
    EXPECT_EQ(h.record(bad).sequences[0].error->code, Code::kResourceExhausted);
    EXPECT_EQ(h.record(bad).sequences[0].error->message, "no memory for one sequence");
    h.expect_greedy(plain);
    EXPECT_EQ(h.record(good).num_ends, 1);
    EXPECT_EQ(h.core().scheduler().policy_memory().used(), 0);
  }
}

// A sample's next step, in which it copies the block where the prompt ended, is under way when its first token is its last.
TEST(SequenceFailures, EndTheirRequestAlsoWhereTheSampleHasHadItsLastToken) {
  Harness h(options_for(0));
  const RequestId id = submit(h, 0, {}, 3);
  const auto sample = [&] { return h.core().scheduler().find(id)->sequences[0].get(); };
  const SequenceId failing = sample()->id;
  h.executor().set_sequence_fault([&](const PlannedSequence& s) -> Status {
    const bool fails = s.sequence == failing && s.first_position == kPrompt;
    return fails ? Status(error(Code::kInternal, "no copy")) : ok();
  });
  while (sample()->num_output_tokens() == 0) ASSERT_TRUE(h.step());
  ASSERT_GT(sample()->num_in_flight, 0);
  h.core().stop(id, 0);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  auto& ends = h.record(id).sequences;
  EXPECT_EQ(ends[0].finish, FinishReason::kStop);
  for (const int other : {1, 2}) {
    EXPECT_EQ(ends[other].finish, FinishReason::kFailed) << other;
    EXPECT_EQ(ends[other].error->message, "no copy");
  }
}

// Blocks of a prompt that failed are nobody's prefix.
TEST(SequenceFailures, PublishNothingOfTheStep) {
  Harness h(options_for(0));
  bool once = true;
  h.executor().set_sequence_fault([&](const PlannedSequence&) -> Status {
    return std::exchange(once, false) ? Status(error(Code::kResourceExhausted, "no memory")) : ok();
  });
  submit(h, 0, {});
  h.run();
  EXPECT_EQ(h.core().counts().failed, 1);
  const RequestId again = submit(h, 0, {});
  h.run();
  h.expect_sound();
  EXPECT_EQ(h.record(again).end.cached_tokens, 0);
  h.expect_greedy(again);
}

// The holder has been swapped out; whoever waits for its part stands before it by priority, and must not keep it from coming back.
TEST(PolicyMemoryOfRequests, APreemptedHolderComesBackBeforeWhoWaitsForItsPart) {
  HarnessOptions o = options_for(bytes_of_one());
  o.num_blocks = 24;
  o.preemption_mode = "swap";
  Harness h(o);
  const RequestId holder = submit(h, 0, kH2o);
  while (h.core().scheduler().find(holder)->sequences[0]->num_output_tokens() < 3) h.step();
  h.core().set_paused(holder, true);
  std::vector<TokenId> long_prompt;
  for (int32_t i = 0; i < 170; ++i) long_prompt.push_back(300 + i);
  h.submit(long_prompt, Harness::greedy(8));
  while (h.core().scheduler().counters().swap_outs == 0) ASSERT_TRUE(h.step());
  CoreRequest urgent;
  urgent.policy = kH2o;
  urgent.priority = -1;
  h.submit(ids(kPrompt, 700), Harness::greedy(kOutput), urgent);
  h.core().set_paused(holder, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 3);
}

TEST(PolicyMemoryOfRequests, WhoNeedsNoneIsNotHeldUpByWhoWaitsForIt) {
  Harness h(options_for(bytes_of_one()));
  const RequestId holder = submit(h, 0, kH2o);
  h.step();
  h.core().set_paused(holder, true);
  const RequestId waits = submit(h, 700, kH2o), waits_too = submit(h, 800, kH2o);
  std::vector<RequestId> others;
  for (int32_t i = 1; i < 6; ++i) others.push_back(submit(h, 100 * i, {}));
  for (int i = 0; i < 60; ++i) h.step();
  for (const RequestId other : others) EXPECT_EQ(h.record(other).num_ends, 1);
  h.core().set_paused(waits, true);  // parked as it is
  h.core().set_paused(waits, false);
  h.abort(waits_too);
  h.core().set_paused(holder, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 7);
}

// Half of the memory is somebody's for long; one that needs more than the other half waits, and one behind it that does not.
struct WaitsBehind {
  Harness h;
  RequestId holder, big, small;
  explicit WaitsBehind(int32_t priority_of_big = 0, int32_t priority_of_small = 0, HarnessOptions o = {})
      : h(tight(o)) {
    holder = ask(0, 1, 150, 0);
    for (int i = 0; i < 4; ++i) h.step();
    big = ask(300, 2, kOutput, priority_of_big);
    h.step();
    small = ask(600, 1, 5, priority_of_small);
    h.step();
  }
  static int64_t half() {
    return policy_request_bytes(kH2o, kPrompt, kPrompt + 150, 1, {.num_layers = 2, .num_kv_heads = 3});
  }
  static HarnessOptions tight(HarnessOptions o) {
    o.num_blocks = 400;
    o.policy_memory = {.bytes = 2 * half(), .num_layers = 2, .num_kv_heads = 3};
    return o;
  }
  RequestId ask(int32_t first, int32_t n, int32_t output, int32_t priority,
                int64_t deadline_us = kNoDeadline) {
    CoreRequest request;
    request.policy = kH2o;
    request.priority = priority;
    request.deadline_us = deadline_us;
    SamplingParams p = Harness::greedy(output);
    p.n = n;
    return h.submit(ids(kPrompt, first), p, request);
  }
  bool waits(RequestId id) { return h.core().scheduler().find(id)->waits_for_memory; }
  void expect_soon(RequestId id) {
    for (int i = 0; i < 20 && h.record(id).num_ends == 0; ++i) h.step();
    EXPECT_EQ(h.record(id).num_ends, 1);
    EXPECT_EQ(h.record(holder).num_ends, 0) << "it waited until somebody gave memory back";
  }
  void end() {
    h.run();
    h.expect_sound();
    h.expect_all_ended();
    EXPECT_EQ(h.core().scheduler().policy_memory().used(), 0);
  }
};

TEST(PolicyMemoryOfRequests, WhoIsCancelledWhileItWaitsWakesThoseBehindIt) {
  WaitsBehind t;
  ASSERT_TRUE(t.waits(t.big) && t.waits(t.small));
  t.h.abort(t.big);
  t.expect_soon(t.small);
  t.end();
}

TEST(PolicyMemoryOfRequests, WhoseDeadlinePassesWhileItWaitsWakesThoseBehindIt) {
  WaitsBehind t;
  t.h.abort(t.big);
  t.expect_soon(t.small);
  const RequestId late = t.ask(300, 2, kOutput, 0, t.h.clock().now_us() + 60'000);
  t.h.step();
  const RequestId behind = t.ask(700, 1, 5, 0);
  t.h.step();
  ASSERT_TRUE(t.waits(late) && t.waits(behind));
  while (t.h.record(late).num_ends == 0) ASSERT_TRUE(t.h.step());
  EXPECT_EQ(t.h.record(late).end.finish, FinishReason::kDeadline);
  t.expect_soon(behind);
  t.end();
}

TEST(PolicyMemoryOfRequests, WhoseReaderStopsWhileItWaitsWakesThoseBehindIt) {
  WaitsBehind t;
  t.h.core().set_paused(t.big, true);
  t.expect_soon(t.small);
  EXPECT_FALSE(t.waits(t.big));
  t.h.core().set_paused(t.big, false);
  t.h.step();
  EXPECT_TRUE(t.waits(t.big));
  t.end();
}

TEST(PolicyMemoryOfRequests, NobodyPassesWhoWaitsAtItsOwnRankOrABetterOne) {
  for (const int32_t priority_of_small : {0, 1}) {
    WaitsBehind t(0, priority_of_small);
    for (int i = 0; i < 40; ++i) t.h.step();
    EXPECT_TRUE(t.waits(t.big) && t.waits(t.small)) << priority_of_small;
    t.end();
    EXPECT_LE(t.h.record(t.big).end.timings.queued_ms, t.h.record(t.small).end.timings.queued_ms + 1000);
  }
}

TEST(PolicyMemoryOfRequests, ABetterRankDoesNotWaitForAWorseOne) {
  WaitsBehind t(5, -5);
  EXPECT_TRUE(t.waits(t.big));
  t.expect_soon(t.small);
  t.h.step();
  EXPECT_TRUE(t.waits(t.big));
  t.end();
}

// The worst of priorities needs all of the memory. One of the best after the other takes half, before the last has ended: when
// that gives its half back nobody stands in line but the first.
TEST(PolicyMemoryOfRequests, AWorseRankIsPassedNoLongerThanMaxPriorityWait) {
  HarnessOptions o;
  o.max_priority_wait_ms = 2000;
  WaitsBehind t(5, 6, o);
  t.h.abort(t.small);
  for (int i = 0; i < 120; ++i) t.h.step();
  for (int32_t i = 0; t.h.record(t.big).num_ends == 0 && i < 40; ++i) {
    const RequestId urgent = t.ask(10 * i, 1, 60, -5);
    for (int step = 0; step < 40; ++step) t.h.step();
    EXPECT_TRUE(t.h.clock().now_us() > 2'000'000 || t.h.record(urgent).sequences.contains(0));
  }
  EXPECT_EQ(t.h.record(t.big).num_ends, 1);
  EXPECT_LT(t.h.record(t.big).end.timings.queued_ms, 2000 + 65 * 5.5) << "then those end that have some";
  t.end();
}

TEST(PolicyMemory, PartsComeBackAsOneRun) {
  PolicyMemory memory(1000);
  const auto a = memory.take(300), b = memory.take(300), c = memory.take(300);
  ASSERT_TRUE(a && b && c);
  EXPECT_FALSE(memory.take(200));
  memory.give_back(*a, 300);
  memory.give_back(*c, 300);
  EXPECT_EQ(memory.take(400), 600);
  memory.give_back(600, 400);
  memory.give_back(*b, 300);
  EXPECT_EQ(memory.take(1000), 0);
  EXPECT_EQ(memory.used(), 1000);
}

// A budget beyond what the request can come to costs what the request can come to.
TEST(PolicyMemory, ListsAreNoLongerThanTheirSequence) {
  EXPECT_EQ(list_room({.kind = RetentionKind::kTova, .budget = INT32_MAX}, 100), 100);
  EXPECT_EQ(list_room({.kind = RetentionKind::kTova, .budget = 40}, 100), 41);
  EXPECT_EQ(list_room({.kind = RetentionKind::kWindow, .window = 40}, 100), 0);
}

}  // namespace
}  // namespace quire
