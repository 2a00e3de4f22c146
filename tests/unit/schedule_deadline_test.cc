// Deadlines that cannot be met, told when a request comes. Method: prompts of known lengths over the fake executor, whose steps have
// known times; the work that stands before a request is reckoned by hand, and what is refused against what would have been met.
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

HarnessOptions wide() {
  HarnessOptions o;
  o.num_blocks = 400;
  o.max_context_tokens = 900;
  o.max_sequences = 2;
  return o;  // 64 tokens a step
}

class Deadlines : public ::testing::Test {
 protected:
  RequestId submit(std::vector<TokenId> prompt, CoreRequest more = {}) {
    return h_.submit(std::move(prompt), Harness::greedy(4), std::move(more));
  }
  WorkAhead ahead(RequestId id) { return h_.core().scheduler().work_ahead(*h_.core().scheduler().find(id)); }
  static CoreRequest of(const char* tenant, int32_t priority = 0) {
    CoreRequest more;
    more.tenant = tenant;
    more.priority = priority;
    return more;
  }
  CoreRequest within(int64_t us) {
    CoreRequest more;
    more.deadline_us = h_.clock().now_us() + us;
    return more;
  }
  Harness h_{wide()};
};

TEST_F(Deadlines, WorkAheadIsItsOwnTheRunningOnesAndWhoseTurnComesFirst) {
  const RequestId alone = submit(ids(200));
  EXPECT_EQ(ahead(alone).own, 200);
  h_.step();  // 64 of 200 are planned
  submit(ids(100, 300), of("other"));
  submit(ids(30, 500));
  submit(ids(40, 600), of("other", -1));
  submit(ids(50, 700), of("", 1));
  const RequestId last = submit(ids(20, 800));
  EXPECT_EQ(ahead(last).own, 20);
  EXPECT_EQ(ahead(last).running, 200 - 64);
  EXPECT_EQ(ahead(last).waiting, 30 + 40)
      << "its tenant's earlier one and the urgent one; of the other tenant's turn nothing is known";
  h_.run();
  h_.expect_sound();
}

TEST_F(Deadlines, WhatIsCachedOrSharedIsNoWork) {
  submit(ids(200));
  h_.step();
  const RequestId twin = submit(ids(240));
  EXPECT_EQ(ahead(twin).own, 240);
  EXPECT_EQ(ahead(twin).running, 0) << "all that the running one still computes is of its own prompt";
  const RequestId third = submit(ids(220));
  EXPECT_EQ(ahead(third).waiting, 20) << "beyond what they share";
  h_.run();
  const RequestId again = submit(ids(240));
  EXPECT_EQ(ahead(again).own, 1) << "one token is always run";
  h_.run();
  h_.expect_sound();
}

TEST_F(Deadlines, WhatSeveralWhoWaitBeginWithIsWorkOnce) {
  const std::vector<TokenId> system = ids(150, 300);
  for (int32_t i = 0; i < 5; ++i) {
    std::vector<TokenId> prompt = system;
    prompt.resize(170, 800 + i);
    submit(prompt);
  }
  std::vector<TokenId> alone = system;
  alone.resize(100);
  CoreRequest by_itself;
  by_itself.bypass_prefix_cache = true;
  submit(alone, std::move(by_itself));
  EXPECT_EQ(ahead(submit(ids(20))).waiting, 150 + 5 * 20 + 100);
  h_.run();
  h_.expect_sound();
}

// They wait for what the first computes of their prompts, though it leaves half of each step to others.
TEST_F(Deadlines, WhoHasSteppedAsideLetsItPass) {
  HarnessOptions o = wide();
  o.max_prefill_chunk_tokens = 32;
  Harness h(o);
  for (int32_t i = 0; i < 10; ++i) {
    std::vector<TokenId> prompt = ids(600, 200);
    prompt.resize(700, 900 + i);
    h.submit(prompt, Harness::greedy(4));
  }
  h.step();
  const RequestId other = h.submit(ids(10, 50), Harness::greedy(4));
  EXPECT_EQ(h.core().scheduler().work_ahead(*h.core().scheduler().find(other)).waiting, 0);
  h.run();
  for (RequestId id = 1; id < other; ++id)
    EXPECT_GT(h.record(id).end.timings.first_token_ms, h.record(other).end.timings.first_token_ms);
  h.expect_sound();
}

TEST_F(Deadlines, WhoHasLessCachedLetsItPass) {
  submit(ids(300));
  h_.run();
  const RequestId first = submit(ids(400, 400)), second = submit(ids(200, 600));
  const RequestId cached = submit(ids(310));
  EXPECT_EQ(ahead(cached).waiting, 0);
  EXPECT_EQ(ahead(second).waiting, 400);
  h_.run();
  EXPECT_LT(h_.record(cached).end.timings.first_token_ms, h_.record(first).end.timings.first_token_ms);
  h_.expect_sound();
}

// A sixteenth of each step is the running prompt's, which needs fifty: a short one is through with the first.
TEST_F(Deadlines, WhoComputesInChunksLeavesTheRestOfEachStep) {
  HarnessOptions o = wide();
  o.max_prefill_chunk_tokens = 4;
  Harness h(o);
  h.submit(ids(200), Harness::greedy(4));
  h.step();
  const RequestId next = h.submit(ids(30, 500), Harness::greedy(4));
  EXPECT_EQ(h.core().scheduler().work_ahead(*h.core().scheduler().find(next)).running, 0);
  h.run();
  h.expect_sound();
}

// Four share each step out among them: with three of five on the way still, whoever comes next is computed too.
TEST_F(Deadlines, WhoComesIsComputedBesideThoseWhoShareAStep) {
  HarnessOptions o = wide();
  o.max_prefill_chunk_tokens = o.max_step_tokens / 4;
  Harness h(o);
  for (int32_t i = 0; i < 5; ++i) h.submit(ids(100, 110 * i), Harness::greedy(4));
  const RequestId next = h.submit(ids(30, 700), Harness::greedy(4));
  EXPECT_EQ(h.core().scheduler().work_ahead(*h.core().scheduler().find(next)).waiting, 200);
  h.run();
  h.expect_sound();
}

// The rate is that of the steps of the first prompt: a deadline that this one would just miss is refused, at once and
// with a delay, and one that it meets is not; nor is the same prompt once it is cached.
TEST_F(Deadlines, WhatCannotBeMetIsRefusedAtOnce) {
  submit(ids(640));
  h_.run();
  ASSERT_GT(h_.core().tokens_per_s(), 0);
  const auto need_us = static_cast<int64_t>(1e6 * 500 / h_.core().tokens_per_s());
  const int64_t steps = h_.core().scheduler().counters().steps;
  const RequestId hopeless = submit(ids(500, 100), within(need_us * 3 / 4));
  h_.collect();
  const RequestRecord& refused = h_.record(hopeless);
  ASSERT_EQ(refused.num_ends, 1) << "before any step";
  EXPECT_EQ(refused.end.finish, FinishReason::kDeadline);
  EXPECT_EQ(h_.core().counts().refused, 1);
  EXPECT_EQ(h_.core().counts().failed, 0);
  const std::optional<Error>& error = refused.sequences.at(0).error;
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Code::kResourceExhausted);
  EXPECT_EQ(error->field, "deadline_ms");
  EXPECT_GE(error->retry_delay_ms.value_or(0), 1);
  EXPECT_NE(error->message.find("500 prompt tokens of its own, 0 that run and 0 that wait"),
            std::string::npos)
      << error->message;
  EXPECT_EQ(h_.core().scheduler().counters().steps, steps);
  EXPECT_EQ(h_.core().num_unfinished(), 0);

  const RequestId met = submit(ids(500, 100), within(need_us * 2));
  h_.run();
  EXPECT_EQ(h_.record(met).end.finish, FinishReason::kLength);
  const RequestId cached = submit(ids(500, 100), within(need_us * 3 / 4));
  h_.run();
  EXPECT_EQ(h_.record(cached).end.finish, FinishReason::kLength) << "nothing of it is computed again";
  h_.expect_sound();
  h_.expect_all_ended();
}

// Of short prompts alone nobody knows what a full step yields: what fits into one is not refused for them.
TEST_F(Deadlines, StepsThatWereNotFullPromiseNothing) {
  for (int32_t i = 0; i < 20; ++i) {
    submit(ids(4, 20 * i));
    h_.run();
  }
  const auto as_slow_us = static_cast<int64_t>(1e6 * 60 / h_.core().tokens_per_s());
  const RequestId met = submit(ids(60, 500), within(as_slow_us / 2));
  h_.run();
  EXPECT_EQ(h_.record(met).end.finish, FinishReason::kLength);
}

// If it were, nobody would be let in who could show that it was slow by chance.
TEST_F(Deadlines, ASlowStepIsNotHeldAgainstAllWhoComeForEver) {
  constexpr int64_t kSecond = 1'000'000;
  submit(ids(64));
  h_.step();
  h_.clock().advance_us(5 * kSecond);
  h_.run();
  const RequestId at_once = submit(ids(64, 200), within(kSecond));
  h_.clock().advance_us(60 * kSecond);
  const RequestId later = submit(ids(64, 400), within(kSecond)),
                  hopeless = submit(ids(64, 600), within(1000));
  h_.run();
  EXPECT_EQ(h_.record(at_once).end.finish, FinishReason::kDeadline);
  EXPECT_EQ(h_.record(later).end.finish, FinishReason::kLength);
  EXPECT_EQ(h_.record(hopeless).sequences.at(0).error->code, Code::kResourceExhausted);
  h_.expect_sound();
}

TEST_F(Deadlines, RunningPromptsAreReckonedWith) {
  submit(ids(640));
  h_.run();
  const auto need_us = static_cast<int64_t>(1e6 * 600 / h_.core().tokens_per_s());
  submit(ids(640, 200));
  h_.step();
  const RequestId late = submit(ids(10, 50), within(need_us / 2));
  h_.collect();
  EXPECT_EQ(h_.record(late).num_ends, 1);
  EXPECT_EQ(h_.record(late).end.finish, FinishReason::kDeadline);
  h_.run();
  h_.expect_sound();
}

}  // namespace
}  // namespace quire
