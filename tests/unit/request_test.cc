// Admission, the queue's budget and what a request is made of, by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "src/base/longest_time.h"
#include "src/request/admission.h"
#include "src/request/queue_budget.h"
#include "src/request/sequence_group.h"

namespace quire {
namespace {

AdmissionLimits limits() {
  AdmissionLimits l;
  l.vocab_size = 100;
  l.max_context_tokens = 64;
  l.max_sequences = 4;
  l.num_blocks = 6;
  l.block_tokens = 8;
  return l;
}

SamplingParams max_tokens(int32_t n) {
  SamplingParams p;
  p.max_tokens = n;
  return p;
}

std::string refusal(const SamplingParams& p, const std::vector<TokenId>& prompt) {
  const Status s = check_request(p, prompt, limits());
  return s ? "" : s.error().message;
}

TEST(Admission, NamesTheValueAndTheLimit) {
  const std::vector<TokenId> ok_prompt(8, 1);
  EXPECT_EQ(refusal(max_tokens(16), ok_prompt), "");
  EXPECT_EQ(refusal(max_tokens(1), {}), "the prompt has no tokens; it needs at least 1");
  EXPECT_EQ(refusal(max_tokens(1), {1, 100}), "prompt token 1 is 100; ids of this model run from 0 to 99");
  EXPECT_EQ(refusal(max_tokens(1), {-1}), "prompt token 0 is -1; ids of this model run from 0 to 99");
  EXPECT_EQ(
      refusal(max_tokens(1), std::vector<TokenId>(64, 1)),
      "prompt has 64 tokens; this model takes at most 63 (max_context_tokens 64, one of them generated)");
  EXPECT_EQ(refusal(max_tokens(57), ok_prompt),
            "prompt has 8 tokens and max_tokens is 57, together 65; this model holds 64 "
            "(max_context_tokens), so max_tokens may be at most 56");
  EXPECT_EQ(refusal(max_tokens(INT32_MAX), ok_prompt),
            "prompt has 8 tokens and max_tokens is 2147483647, together 2147483655; this model holds 64 "
            "(max_context_tokens), so max_tokens may be at most 56");
  EXPECT_EQ(refusal(max_tokens(-1), ok_prompt),
            "max_tokens is -1; it must lie in [0, the model's context less the prompt]");
  EXPECT_NE(refusal(max_tokens(42), ok_prompt).find("may need 7 cache blocks"), std::string::npos);
  SamplingParams many = max_tokens(1);
  many.n = 5;
  EXPECT_EQ(refusal(many, ok_prompt), "the request has 5 sequences; at most 4 run at once (max_sequences)");
  SamplingParams beams = max_tokens(4);
  beams.beam_width = 2;
  beams.stop = {"x"};
  EXPECT_EQ(refusal(beams, ok_prompt), "stop texts and beam_width exclude each other; use stop_token_ids");
}

TEST(Admission, APromptMayFillTheContextWhenNothingIsGenerated) {
  AdmissionLimits l = limits();
  l.num_blocks = 8;
  EXPECT_TRUE(check_request(max_tokens(0), std::vector<TokenId>(64, 1), l).has_value());
}

TEST(Admission, PeakBlocksShareThePromptAndNotTheTails) {
  EXPECT_EQ(peak_blocks(16, max_tokens(1), 8), 2) << "the last id is never run";
  EXPECT_EQ(peak_blocks(16, max_tokens(2), 8), 3);
  SamplingParams four = max_tokens(9);
  four.n = 4;
  EXPECT_EQ(peak_blocks(20, four, 8), 2 + 4 * 2 + 1)
      << "two full blocks shared, four tails and outputs, one copy under way";
}

TEST(Admission, ADeadlineThatTheWorkAheadMakesImpossibleIsRefusedWithADelay) {
  EXPECT_FALSE(refuse_hopeless(100'000, {.own = 1000}, 0)) << "no rate is known yet";
  EXPECT_FALSE(refuse_hopeless(100'000, {.running = 1000, .waiting = 500, .own = 500}, 20000));
  const std::optional<Error> e =
      refuse_hopeless(100'000, {.running = 1000, .waiting = 8000, .own = 1000}, 20000);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->code, Code::kResourceExhausted);
  EXPECT_EQ(e->retry_delay_ms, 400);
  EXPECT_EQ(
      e->message,
      "the deadline is in 100 ms (deadline_ms, or the call's timeout); 1000 prompt tokens of its own, 1000 "
      "that run and 8000 that wait before it need about 500 ms");
  for (const int64_t passed_us : {int64_t{0}, int64_t{-5'000'000}})
    EXPECT_FALSE(refuse_hopeless(passed_us, {.own = 1000}, 20000)) << "it is late, and no later try helps it";
  for (const WorkAhead& alone :
       {WorkAhead{.running = 2001}, WorkAhead{.waiting = 2001}, WorkAhead{.own = 2001}})
    EXPECT_TRUE(refuse_hopeless(100'000, alone, 20000));
  for (const int64_t ms : {int64_t{0}, kLongestMs + 1, INT64_MAX})
    EXPECT_EQ(check_deadline(ms).error().message,
              "deadline_ms is " + std::to_string(ms) + "; it must be from 1 to 1099511627776");
  EXPECT_TRUE(check_deadline(kLongestMs).has_value());
}

TEST(Admission, RetentionOutOfRangeIsNamedWithItsLimit) {
  EXPECT_TRUE(check_retention({}, {.max_class = 0, .max_cost = 1}).has_value());
  const RetentionLimits limits{.max_class = 3, .max_cost = 50};
  EXPECT_TRUE(check_retention({.retention_class = 3, .ttl_ms = 1, .cost = 50}, limits).has_value());
  const Status s = check_retention({.retention_class = 4, .ttl_ms = {}}, limits);
  EXPECT_EQ(s.error().message,
            "kv_retention.retention_class is 4; it must be from 0 to 3 (max_kv_retention_class)");
  EXPECT_EQ(check_retention({.retention_class = -1, .ttl_ms = {}}, limits).error().field,
            "kv_retention.retention_class");
  for (const int64_t ttl_ms : {int64_t{0}, INT64_MIN, INT64_MAX})
    EXPECT_EQ(check_retention({.ttl_ms = ttl_ms}, limits).error().field, "kv_retention.ttl_ms") << ttl_ms;
  for (const double cost : {0.0, -1.0, 50.5, 2e6, std::nan("")})
    EXPECT_EQ(check_retention({.ttl_ms = {}, .cost = cost}, limits).error().field, "kv_retention.cost")
        << cost;
  EXPECT_EQ(check_retention({.ttl_ms = {}, .cost = 50.5}, limits).error().message,
            "kv_retention.cost is 50.5; it must be above 0 and at most 50 (max_kv_retention_cost)");
}

TEST(QueueBudget, RefusesByRequestsAndByTokensAndGivesBack) {
  QueueBudget budget(2, 100);
  EXPECT_TRUE(budget.take(500, 7).has_value()) << "one may always wait alone";
  const Status tokens = budget.take(1, 7);
  ASSERT_FALSE(tokens.has_value());
  EXPECT_EQ(tokens.error().retry_delay_ms, 7);
  EXPECT_NE(tokens.error().message.find("at most 100"), std::string::npos);
  budget.give_back(500);
  EXPECT_TRUE(budget.take(40, 7).has_value());
  EXPECT_TRUE(budget.take(40, 7).has_value());
  EXPECT_NE(budget.take(1, 7).error().message.find("at most 2 may (max_queued_requests)"), std::string::npos);
  EXPECT_EQ(budget.num_tokens(), 80) << "a refusal takes nothing";
}

TEST(SequenceGroups, SamplesHaveSeedsOfTheirOwnAndTheFirstTheRequests) {
  EXPECT_EQ(seed_of_sample(42, 0), 42u);
  EXPECT_NE(seed_of_sample(42, 1), seed_of_sample(42, 2));
  EXPECT_EQ(seed_of_sample(42, 3), seed_of_sample(42, 3));
}

// Clients count seeds up: a sample of one request is none of the next one's.
TEST(SequenceGroups, SamplesOfNeighbouringSeedsShareNone) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 100; ++seed)
    for (int32_t index = 0; index < 16; ++index) seeds.insert(seed_of_sample(seed, index));
  EXPECT_EQ(seeds.size(), 1600u);
}

TEST(SequenceGroups, EndingIdsLeaveOutEosWhenIgnored) {
  GroupSetup setup;
  SamplingParams p;
  p.stop_token_ids = {9, 3};
  p.ignore_eos = true;
  setup.sampling = std::make_shared<const SamplingParams>(p);
  setup.prompt = {1};
  setup.eos_token_ids = {2};
  EXPECT_EQ(make_group(setup)->end_ids, (std::vector<TokenId>{3, 9}));
  p.ignore_eos = false;
  setup.sampling = std::make_shared<const SamplingParams>(p);
  EXPECT_EQ(make_group(setup)->end_ids, (std::vector<TokenId>{2, 3, 9}));
}

}  // namespace
}  // namespace quire
