// Admission, the queue's budget and its order, by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "src/base/longest_time.h"
#include "src/base/random.h"
#include "src/request/admission.h"
#include "src/request/queue_budget.h"
#include "src/request/waiting_queue.h"

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
  for (const WorkAhead& alone :
       {WorkAhead{.running = 2001}, WorkAhead{.waiting = 2001}, WorkAhead{.own = 2001}})
    EXPECT_TRUE(refuse_hopeless(100'000, alone, 20000));
  for (const int64_t ms : {int64_t{0}, kLongestMs + 1, INT64_MAX})
    EXPECT_EQ(check_deadline(ms).error().message,
              "deadline_ms is " + std::to_string(ms) + "; it must be from 1 to 1099511627776");
  EXPECT_TRUE(check_deadline(kLongestMs).has_value());
}

TEST(Admission, RetentionOutOfRangeIsNamedWithItsLimit) {
  EXPECT_TRUE(check_retention({}, 0).has_value());
  EXPECT_TRUE(check_retention({.retention_class = 3, .ttl_ms = 1, .cost = 1e6}, 3).has_value());
  const Status s = check_retention({.retention_class = 4, .ttl_ms = {}}, 3);
  EXPECT_EQ(s.error().message,
            "kv_retention.retention_class is 4; it must be from 0 to 3 (max_kv_retention_class)");
  EXPECT_EQ(check_retention({.retention_class = -1, .ttl_ms = {}}, 3).error().field,
            "kv_retention.retention_class");
  for (const int64_t ttl_ms : {int64_t{0}, INT64_MIN, INT64_MAX})
    EXPECT_EQ(check_retention({.ttl_ms = ttl_ms}, 3).error().field, "kv_retention.ttl_ms") << ttl_ms;
  for (const double cost : {0.0, -1.0, 2e6, std::nan("")})
    EXPECT_EQ(check_retention({.ttl_ms = {}, .cost = cost}, 3).error().field, "kv_retention.cost") << cost;
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

class Queue : public ::testing::Test {
 protected:
  SequenceGroup& add(const std::string& tenant, int32_t priority = 0) {
    GroupSetup setup;
    setup.request = ++serial_;
    setup.sampling = std::make_shared<const SamplingParams>();
    setup.prompt = {1};
    setup.tenant = tenant;
    setup.priority = priority;
    setup.order = serial_;
    groups_.push_back(make_group(std::move(setup)));
    queue_.enter(*groups_.back());
    queue_.push(*groups_.back());
    return *groups_.back();
  }
  SequenceGroup& take(double paid) {
    SequenceGroup* g = queue_.next();
    queue_.admit(*g);
    queue_.erase(*g);
    queue_.end_wait(*g);
    WaitingQueue::charge_prompt(*g, static_cast<int64_t>(paid));
    return *g;
  }
  // Requests of a tenant that are admitted before another's; each costs 1.
  int32_t turns_of(const std::string& tenant) {
    int32_t turns = 0;
    while (!queue_.empty() && queue_.next()->tenant == tenant) take(1), ++turns;
    return turns;
  }
  uint64_t serial_ = 0;
  std::vector<std::unique_ptr<SequenceGroup>> groups_;
  WaitingQueue queue_;
};

TEST_F(Queue, PriorityComesBeforeArrivalAndTenants) {
  SequenceGroup& late = add("a", 5);
  SequenceGroup& urgent = add("b", -1);
  EXPECT_EQ(&take(1000), &urgent);
  EXPECT_EQ(&take(1), &late);
  EXPECT_EQ(queue_.next(), nullptr);
}

TEST_F(Queue, WhoIsOverdueStandsAmongTheFirstByFairShares) {
  SequenceGroup& low = add("a", 5);
  low.times.arrival_us = 10;
  for (int i = 0; i < 3; ++i) add("b", -1).times.arrival_us = 50;
  queue_.promote(9);
  EXPECT_FALSE(low.overdue);
  EXPECT_EQ(take(1000).tenant, "b");
  queue_.promote(10);
  EXPECT_TRUE(low.overdue);
  EXPECT_EQ(&take(100), &low) << "its priority counts no more";
  SequenceGroup& again = add("a", 5);
  again.times.arrival_us = 10;
  queue_.promote(60);
  EXPECT_EQ(take(5000).tenant, "b") << "overdue too: it begins where a stands, and came before";
  EXPECT_EQ(take(1).tenant, "a");
  EXPECT_EQ(take(1).tenant, "b");
}

// Or one of a lower priority would pass it, until the next promotion.
TEST_F(Queue, TheOverdueOfTheFirstRankArePromotedWithTheOthers) {
  SequenceGroup& first = add("a", 0);
  SequenceGroup& second = add("b", 1);
  first.times.arrival_us = second.times.arrival_us = 10;
  queue_.promote(10);
  EXPECT_TRUE(first.overdue && second.overdue);
  EXPECT_EQ(&take(1), &first);
}

// The check of the order knows the order only from what stood in line at a promotion and from who was let in after it.
TEST_F(Queue, WhoIsPassedOverIsTold) {
  SequenceGroup& low = add("a", 5);
  low.times.arrival_us = 10;
  SequenceGroup& high = add("b", -1);
  high.times.arrival_us = 50;
  queue_.promote(9);
  queue_.admit(high);
  EXPECT_FALSE(queue_.find_passed_over()) << "it comes first";
  queue_.admit(low);
  ASSERT_TRUE(queue_.find_passed_over()) << "the other has a better rank";
  EXPECT_EQ(queue_.find_passed_over()->waiting, high.request);
  EXPECT_FALSE(queue_.find_passed_over()->overdue);
  queue_.erase(high);
  EXPECT_FALSE(queue_.find_passed_over());
}

TEST_F(Queue, WhoIsOverdueAndNotPromotedIsTold) {
  SequenceGroup& low = add("a", 5);
  low.times.arrival_us = 50;
  SequenceGroup& high = add("b", -1);
  high.times.arrival_us = 50;
  queue_.promote(40);
  low.times.arrival_us = 30;  // as if the promotion had not seen it
  queue_.admit(high);
  ASSERT_TRUE(queue_.find_passed_over());
  EXPECT_EQ(queue_.find_passed_over()->waiting, low.request);
  EXPECT_TRUE(queue_.find_passed_over()->overdue);
}

TEST_F(Queue, ATenantIsServedFirstComeFirst) {
  SequenceGroup& first = add("a");
  SequenceGroup& second = add("a");
  queue_.erase(first);
  queue_.push(first);  // back from where it stood aside
  EXPECT_EQ(&take(1), &first);
  EXPECT_EQ(&take(1), &second);
}

TEST_F(Queue, TenantsWhoAlwaysWaitGetEqualTokens) {
  std::map<std::string, double> paid;
  for (int i = 0; i < 200; ++i) add("big"), add("small");
  for (int i = 0; i < 120; ++i) {
    const std::string tenant = queue_.next()->tenant;
    const double cost = tenant == "big" ? 100 : 10;
    take(cost);
    paid[tenant] += cost;
    EXPECT_LE(std::abs(paid["big"] - paid["small"]), 100) << "one request's cost";
  }
}

TEST_F(Queue, IdlenessSavesNothing) {
  add("busy");
  take(10000);  // still present: it runs
  add("new");
  add("busy");
  int32_t news = 0;
  for (int i = 0; i < 10; ++i) add("new");
  while (queue_.next()->tenant == "new" && news < 12) take(1), ++news;
  EXPECT_LE(news, 2) << "a newcomer starts where who was admitted last stands";
}

// One long answer that began early costs little per step: who receives it has paid less than those who are served by
// the dozen, for as long as it runs.
TEST_F(Queue, WhoOnlyRunsHoldsTheFloorDownForNobody) {
  add("long answer");
  take(10);  // it runs on
  add("busy"), add("other");
  take(10000), take(10000);
  add("busy"), add("other");
  for (int i = 0; i < 10; ++i) add("new");
  EXPECT_LE(turns_of("new"), 2) << "a newcomer starts where the least of those who wait stands";
}

TEST_F(Queue, WhoOnlyRunsSavesNothing) {
  add("long answer");
  take(10);
  add("busy");
  take(10000);
  add("busy");
  for (int i = 0; i < 10; ++i) add("long answer");
  EXPECT_LE(turns_of("long answer"), 2) << "it had asked for no more until then";
}

// To keep one request waiting behind all others is no claim on what others get meanwhile where it did not ask.
TEST_F(Queue, WhoWaitsAtOneRankIsOwedNothingAtAnother) {
  add("patient", 5);
  for (int i = 0; i < 2; ++i) {
    add("busy", -1), add("other", -1);
    take(10000), take(10000);
    if (i == 0) add("busy", -1), add("other", -1);
    for (int k = 0; k < 10; ++k) add("patient", -1);
    if (i == 1) add("busy", -1), add("other", -1);
    EXPECT_LE(turns_of("patient"), 2) << (i == 0 ? "of those who wait" : "or were admitted last");
    EXPECT_FALSE(queue_.find_unlifted());
    while (queue_.next()->priority == -1) take(1);
  }
}

TEST_F(Queue, WhatATenantGetsAtOneRankDoesNotHoldItBackAtAnother) {
  add("both", 5), add("low", 5);
  for (int i = 0; i < 3; ++i) {
    add("both", -1);
    take(10000);
  }
  for (int i = 0; i < 4; ++i) add("low", 5), add("both", 5);
  for (int i = 0; i < 4; ++i) EXPECT_NE(take(10).tenant, take(10).tenant) << "in turn";
}

TEST_F(Queue, WhoIsPromotedBeginsWhereThoseWhoWereBeforeStand) {
  for (int i = 0; i < 3; ++i) add("early", 5);
  for (int i = 0; i < 10; ++i) add("late", 5).times.arrival_us = 20;
  add("high", -1).times.arrival_us = 50;
  queue_.promote(10);
  take(10000), take(10000);
  queue_.promote(20);
  EXPECT_EQ(queue_.next()->tenant, "early") << "as much, and it came before";
  take(1);
  EXPECT_EQ(turns_of("late"), 10) << "and nobody else is overdue";
}

// The check knows where the last began to wait, and that nobody stands below that.
TEST_F(Queue, WhoWaitsBelowWhereOthersBeginIsTold) {
  add("busy");
  take(1000);
  SequenceGroup& late = add("late");
  EXPECT_FALSE(queue_.find_unlifted());
  WaitingQueue::charge_prompt(late, -1);  // as if it had not been lifted
  ASSERT_TRUE(queue_.find_unlifted());
  EXPECT_EQ(queue_.find_unlifted()->tenant, "late");
  EXPECT_EQ(queue_.find_unlifted()->counter, 999);
  EXPECT_EQ(queue_.find_unlifted()->least, 1000);
}

// Who waits at a lower priority is served less than those above it: that is no measure for who comes to those.
TEST_F(Queue, ANewcomerStandsWhereThoseOfItsRankDo) {
  add("low", 5);
  for (int i = 0; i < 2; ++i) {
    add("busy", 0);
    take(10000);
    if (i == 0) add("busy", 0);
    for (int k = 0; k < 10; ++k) add("new " + std::to_string(i), 0);
    if (i == 1) add("busy", 0);
    EXPECT_LE(turns_of("new " + std::to_string(i)), 2)
        << (i == 0 ? "of those who wait" : "or were admitted last");
    while (queue_.next()->priority == 0) take(1);
  }
}

// It stands aside until another has computed its prefix, and has what it is owed when it is back.
TEST_F(Queue, WhoStandsAsideIsNotLiftedWhenItIsBack) {
  SequenceGroup& aside = add("aside");
  queue_.erase(aside);
  for (int i = 0; i < 3; ++i) {
    add("busy");
    take(1000);
  }
  add("busy");
  queue_.push(aside);
  add("aside");
  EXPECT_EQ(&take(1), &aside);
  EXPECT_EQ(take(1).tenant, "aside");
}

TEST_F(Queue, ATenantThatHasLeftHoldsTheFloorDownNoMore) {
  add("gone");
  queue_.leave(take(1));
  add("busy");
  take(10000);  // still present: it runs
  add("busy");
  for (int i = 0; i < 10; ++i) add("new");
  int32_t news = 0;
  while (queue_.next()->tenant == "new" && news < 10) take(1), ++news;
  EXPECT_LE(news, 2) << "a newcomer starts where the busy one stands, not where the one that left stood";
}

// Who was served alone, and everybody who was here, had gone before the others came.
TEST_F(Queue, WhatWasPaidWhileNobodyElseWasThereIsNotHeldAgainstATenant) {
  add("alone");
  queue_.leave(take(10000));
  for (int i = 0; i < 60; ++i) add("crowd");
  add("alone");
  int32_t before = 0;
  while (queue_.next()->tenant == "crowd" && before < 60) take(100), ++before;
  EXPECT_LE(before, 2);
}

// One who waits behind all others and pays nothing holds the floor at 0: nobody else is ever at or below it.
TEST_F(Queue, SoManyIdleTenantsAreRememberedAndNoMore) {
  SequenceGroup& stays = add("stays");
  queue_.erase(stays);  // aside
  add("heavy");
  queue_.leave(take(1e6));
  for (int i = 0; i < 3000; ++i) {
    add("guest " + std::to_string(i));
    queue_.leave(take(1 + i % 7));
    ASSERT_LE(queue_.num_shares(), WaitingQueue::kMaxIdleShares + 1);
  }
  add("heavy");
  SequenceGroup& other = add("other");
  EXPECT_EQ(&take(1), &other) << "who has paid most is not the one that is forgotten";
}

// Any number of ranks: clients choose them.
TEST_F(Queue, SoManyIdleRanksAreRememberedAndNoMore) {
  for (int32_t rank = 0; rank < 3000; ++rank) {
    add("one", rank);
    queue_.leave(take(1));
    ASSERT_LE(queue_.num_shares(), WaitingQueue::kMaxIdleShares);
  }
}

// Whose counter newcomers are measured by may be forgotten: they begin there still.
TEST_F(Queue, WhoWasAdmittedLastIsAMeasureWhenForgotten) {
  add("other"), add("measure");
  take(2000);
  queue_.leave(take(500));
  queue_.erase(add("stays", 7));  // aside: the guests are ahead of it
  for (int i = 0; i < 1024; ++i) {
    add("guest " + std::to_string(i), 7);
    queue_.leave(take(1000));
  }
  EXPECT_EQ(add("new").share->counter, 500);
}

// What is high at a rank where much is served is little there, and what is low at a quiet one may be much.
TEST_F(Queue, WhoIsAheadAtAQuietRankIsRemembered) {
  queue_.erase(add("stays", 5));  // aside
  add("heavy", 5);
  queue_.leave(take(500));
  for (int i = 0; i < 3000; ++i) {
    add("guest " + std::to_string(i), 0);
    queue_.leave(take(1e6));
  }
  EXPECT_EQ(add("heavy", 5).share->counter, 500);
}

// Counters against a plain scan of all tenants, in random order of arrival at three ranks, admission, payment and end.
TEST_F(Queue, WhoAsksAgainStandsWhereTheLeastThatWaitsDoes) {
  struct Plain {  // a tenant at a rank
    double counter = 0;
    std::vector<SequenceGroup*> waiting, running;
  };
  struct PlainRank {
    std::map<std::string, Plain> tenants;
    Plain* last = nullptr;  // admitted
    double floor = 0;
  };
  std::map<int32_t, PlainRank> ranks;
  Random random(1);
  for (int i = 0; i < 6000; ++i) {
    const std::string tenant(1, static_cast<char>('a' + random.below(9)));
    const auto rank = static_cast<int32_t>(random.below(3));
    PlainRank& here = ranks[rank];
    Plain& p = here.tenants[tenant];
    if (random.chance(0.3)) {
      if (p.waiting.empty()) {
        double least = std::numeric_limits<double>::infinity();
        for (const auto& [name, other] : here.tenants)
          if (!other.waiting.empty()) least = std::min(least, other.counter);
        if (std::isinf(least)) least = std::max(here.floor, here.last == nullptr ? 0 : here.last->counter);
        here.floor = std::max(here.floor, least);
        p.counter = std::max(p.counter, least);
      }
      p.waiting.push_back(&add(tenant, rank));
      ASSERT_EQ(p.waiting.back()->share->counter, p.counter) << tenant << " at " << i;
    } else if (!p.waiting.empty() && random.chance(0.6)) {
      SequenceGroup& g = *p.waiting.back();
      p.waiting.pop_back();
      const bool admitted = random.chance(0.8);
      if (admitted) queue_.admit(g);
      queue_.erase(g);
      queue_.end_wait(g);
      if (!admitted) {
        queue_.leave(g);
        continue;
      }
      here.last = &p;
      p.running.push_back(&g);
    } else if (!p.running.empty()) {
      const auto paid = static_cast<int64_t>(random.below(50));
      WaitingQueue::charge_output(*p.running.front(), paid);
      p.counter += 2.0 * static_cast<double>(paid);
      if (random.chance(0.6)) continue;
      queue_.leave(*p.running.back());
      p.running.pop_back();
    }
    ASSERT_FALSE(queue_.find_unlifted()) << "at " << i;
  }
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
