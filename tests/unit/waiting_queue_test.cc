// Who is admitted next, by hand and against a plain scan.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/base/random.h"
#include "src/request/waiting_queue.h"

namespace quire {
namespace {

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
  SequenceGroup& take(double paid) { return take(*queue_.next(), paid); }
  SequenceGroup& take(SequenceGroup& g, double paid) {
    queue_.admit(g);
    queue_.erase(g);
    queue_.end_wait(g);
    WaitingQueue::charge_prompt(g, static_cast<int64_t>(paid));
    return g;
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
  queue_.step_out(aside);
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

// What it waits for may take long: those who stand in line would wait for whoever comes meanwhile, and comes again.
TEST_F(Queue, WhoHasSteppedOutOfLineHoldsTheFloorDownForNobody) {
  SequenceGroup& out = add("out");
  queue_.step_out(out);
  add("busy");
  take(10000);
  add("busy");
  for (int i = 0; i < 10; ++i) add("new");
  EXPECT_LE(turns_of("new"), 2);
  queue_.push(out);
  for (int i = 0; i < 10; ++i) add("newer");
  EXPECT_FALSE(queue_.find_unlifted());
  EXPECT_EQ(&take(1), &out) << "and has what it is owed when it is back";
  EXPECT_EQ(take(1).tenant, "busy") << "who came while it stood there begins where others have begun";
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

// One who stands in line all the time, and pays nothing, holds the floor at 0: nobody else is ever at or below it.
TEST_F(Queue, SoManyIdleTenantsAreRememberedAndNoMore) {
  SequenceGroup& stays = add("stays");
  queue_.leave(take(add("heavy"), 1e6));
  for (int i = 0; i < 3000; ++i) {
    queue_.leave(take(add("guest " + std::to_string(i)), 1 + i % 7));
    ASSERT_LE(queue_.num_shares(), WaitingQueue::kMaxIdleShares + 1);
  }
  add("heavy");
  SequenceGroup& other = add("other");
  EXPECT_EQ(&take(1), &stays);
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
  add("stays", 7);  // the guests are ahead of it
  for (int i = 0; i < 1024; ++i) queue_.leave(take(add("guest " + std::to_string(i), 7), 1000));
  EXPECT_EQ(add("new").share->counter, 500);
}

// What is high at a rank where much is served is little there, and what is low at a quiet one may be much.
TEST_F(Queue, WhoIsAheadAtAQuietRankIsRemembered) {
  add("stays", 5);
  queue_.leave(take(add("heavy", 5), 500));
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

}  // namespace
}  // namespace quire
