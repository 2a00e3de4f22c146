// What one client may take: the sums, with a clock that is moved by hand.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "server/tenant_limits.h"

namespace quire::server {
namespace {

constexpr int64_t kSecondUs = 1'000'000;

std::shared_ptr<TenantLimiter> limiter_of(const TenantLimits& limits, const Clock& clock) {
  return std::make_shared<TenantLimiter>(limits, clock);
}

TEST(TenantLimiter, LimitsNothingByDefault) {
  const ManualClock clock;
  const auto limiter = limiter_of({}, clock);
  for (int i = 0; i < 10'000; ++i) EXPECT_FALSE(limiter->admit("tenant:a", 1 << 30).refusal);
  EXPECT_EQ(limiter->stats().tenants, 0);
}

TEST(TenantLimiter, AdmitsSoManyAtOnceOfEachTenant) {
  const ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 2}, clock);
  auto first = limiter->admit("tenant:a", 1), second = limiter->admit("tenant:a", 1);
  ASSERT_FALSE(first.refusal);
  ASSERT_FALSE(second.refusal);
  const auto third = limiter->admit("tenant:a", 1);
  ASSERT_TRUE(third.refusal);
  EXPECT_EQ(third.refusal->error.code, Code::kResourceExhausted);
  EXPECT_EQ(third.refusal->error.message,
            "tenant:a: 2 requests run; at most 2 may (max_tenant_parallel_requests)");
  EXPECT_FALSE(limiter->admit("tenant:b", 1).refusal);
  first.lease.settle(1);
  EXPECT_FALSE(limiter->admit("tenant:a", 1).refusal);
  EXPECT_EQ(limiter->stats().refused_parallel_total, 1);
}

TEST(TenantLimiter, FreesOnePlaceForEachLeaseHoweverOftenItIsTold) {
  const ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 2}, clock);
  auto first = limiter->admit("tenant:a", 1), second = limiter->admit("tenant:a", 1);
  first.lease.settle(1);
  first.lease.settle(1);
  const auto third = limiter->admit("tenant:a", 1), fourth = limiter->admit("tenant:a", 1);
  EXPECT_FALSE(third.refusal);
  EXPECT_TRUE(fourth.refusal);
}

TEST(TenantLimiter, GuessesTheWaitForAPlaceFromHowLongRequestsRan) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 2}, clock);
  for (int i = 0; i < 200; ++i) {
    auto run = limiter->admit("tenant:a", 1);
    clock.advance_us(8 * kSecondUs);
    run.lease.settle(1);
  }
  const auto first = limiter->admit("tenant:a", 1), second = limiter->admit("tenant:a", 1);
  const auto third = limiter->admit("tenant:a", 1);
  ASSERT_TRUE(third.refusal);
  EXPECT_NEAR(static_cast<double>(*third.refusal->error.retry_delay_ms), 4000, 10) << "two run, for 8 s each";
}

int64_t wait_ms(TenantLimiter& limiter, const std::string& tenant) {
  const auto refused = limiter.admit(tenant, 1);
  return refused.refusal ? refused.refusal->error.retry_delay_ms.value_or(-1) : 0;
}

// Or all would come for the place that the first gets.
TEST(TenantLimiter, SendsNoTwoToTheSamePlace) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 4}, clock);
  std::vector<TenantLimiter::Admission> run;
  for (int i = 0; i < 4; ++i) {
    auto ends = limiter->admit("tenant:a", 1);
    clock.advance_us(8 * kSecondUs);
    ends.lease.settle(1);
  }
  for (int i = 0; i < 4; ++i) run.push_back(limiter->admit("tenant:a", 1));
  for (const int64_t ms : {2000, 4000, 6000, 8000}) EXPECT_EQ(wait_ms(*limiter, "tenant:a"), ms);
  EXPECT_EQ(wait_ms(*limiter, "tenant:a"), 2000) << "no longer than one runs, however often it asks";
  clock.advance_us(kSecondUs);
  EXPECT_EQ(wait_ms(*limiter, "tenant:a"), 3000) << "after the one that was told 1 s from now";
  clock.advance_us(20 * kSecondUs);
  EXPECT_EQ(wait_ms(*limiter, "tenant:a"), 2000) << "what was promised is past";
}

TEST(TenantLimiter, JudgesAClientByItsOwnRequests) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 2}, clock);
  const auto slow = limiter->admit("tenant:slow", 1), quick = limiter->admit("tenant:quick", 1);
  for (int i = 0; i < 3; ++i) {
    auto ends = limiter->admit("tenant:slow", 1);
    clock.advance_us(8 * kSecondUs);
    ends.lease.settle(1);
    for (int k = 0; k < 100; ++k) {
      auto soon = limiter->admit("tenant:quick", 1);
      clock.advance_us(100'000);
      soon.lease.settle(1);
    }
  }
  const auto slower = limiter->admit("tenant:slow", 1), quicker = limiter->admit("tenant:quick", 1);
  EXPECT_EQ(wait_ms(*limiter, "tenant:slow"), 4000);
  EXPECT_EQ(wait_ms(*limiter, "tenant:quick"), 50);
}

// Or whoever sends nonsense would be told to come back at once, and so would everyone else.
TEST(TenantLimiter, LearnsNothingFromRequestsThatNeverRan) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 1}, clock);
  const auto run_one = [&] {
    auto run = limiter->admit("tenant:a", 1);
    clock.advance_us(8 * kSecondUs);
    run.lease.settle(1);
  };
  for (int i = 0; i < 3; ++i) run_one();
  const auto others = [&] {
    const auto running = limiter->admit("tenant:new", 1);
    return wait_ms(*limiter, "tenant:new");
  };
  const int64_t before_ms = others();
  for (int i = 0; i < 40; ++i) limiter->admit("tenant:a", 1).lease.settle(0);
  const auto running = limiter->admit("tenant:a", 1);
  EXPECT_EQ(wait_ms(*limiter, "tenant:a"), 8000);
  EXPECT_EQ(others(), before_ms);
}

TEST(TenantLimiter, KnowsForAMinuteHowLongATenantsRequestsRan) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 1}, clock);
  const auto run = [&](const std::string& tenant, int64_t seconds) {
    auto ends = limiter->admit(tenant, 1);
    clock.advance_us(seconds * kSecondUs);
    ends.lease.settle(1);
  };
  run("tenant:slow", 20);
  for (int i = 0; i < 50; ++i) run("tenant:quick", 1);
  {
    const auto running = limiter->admit("tenant:slow", 1);
    EXPECT_EQ(wait_ms(*limiter, "tenant:slow"), 20'000) << "it ran nothing for 50 s";
  }
  clock.advance_us(60 * kSecondUs);
  const auto running = limiter->admit("tenant:slow", 1);
  EXPECT_LT(wait_ms(*limiter, "tenant:slow"), 2000) << "as of one never seen";
}

TEST(TenantLimiter, TellsExactlyWhenTheNextRequestMayCome) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_requests_per_minute = 7}, clock);
  for (int i = 0; i < 7; ++i) EXPECT_FALSE(limiter->admit("tenant:a", 1).refusal);
  for (int round = 0; round < 20; ++round) {
    const auto refused = limiter->admit("tenant:a", 1);
    ASSERT_TRUE(refused.refusal);
    const int64_t retry_ms = *refused.refusal->error.retry_delay_ms;
    clock.advance_us((retry_ms - 1) * 1000);
    EXPECT_TRUE(limiter->admit("tenant:a", 1).refusal)
        << "a millisecond early; and who was refused has paid nothing";
    clock.advance_us(1000);
    EXPECT_FALSE(limiter->admit("tenant:a", 1).refusal);
  }
  EXPECT_EQ(limiter->stats().refused_requests_total, 40);
}

TEST(TenantLimiter, GivesBackTokensThatWereNotUsed) {
  const ManualClock clock;
  const auto limiter = limiter_of({.max_tokens_per_minute = 1000}, clock);
  auto first = limiter->admit("tenant:a", 900);
  ASSERT_FALSE(first.refusal);
  const auto refused = limiter->admit("tenant:a", 400);
  ASSERT_TRUE(refused.refusal);
  EXPECT_EQ(refused.refusal->error.message,
            "tenant:a: the request may use 400 tokens; of 1000 a minute 100 are left "
            "(max_tenant_tokens_per_minute)");
  EXPECT_EQ(refused.refusal->error.retry_delay_ms, 18'000) << "300 at 1000 a minute";
  first.lease.settle(600);
  EXPECT_FALSE(limiter->admit("tenant:a", 400).refusal);
}

TEST(TenantLimiter, ChargesWhatAnEstimateLeftOut) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_tokens_per_minute = 60}, clock);
  limiter->admit("tenant:a", 10).lease.settle(90);
  const auto refused = limiter->admit("tenant:a", 1);
  ASSERT_TRUE(refused.refusal);
  EXPECT_EQ(refused.refusal->error.retry_delay_ms, 31'000);
  clock.advance_us(31 * kSecondUs);
  EXPECT_FALSE(limiter->admit("tenant:a", 1).refusal);
}

TEST(TenantLimiter, PromisesNothingToARequestThatNeverFits) {
  const ManualClock clock;
  const auto limiter = limiter_of({.max_tokens_per_minute = 60}, clock);
  const auto refused = limiter->admit("tenant:a", 61);
  ASSERT_TRUE(refused.refusal);
  EXPECT_FALSE(refused.refusal->error.retry_delay_ms);
  EXPECT_EQ(refused.refusal->violations.size(), 1u);
  EXPECT_FALSE(limiter->admit("tenant:a", 60).refusal);
}

TEST(TenantLimiter, NamesEveryLimitThatIsReachedAndTheLongestWait) {
  const ManualClock clock;
  const auto limiter = limiter_of(
      {.max_parallel_requests = 1, .max_requests_per_minute = 1, .max_tokens_per_minute = 60}, clock);
  const auto running = limiter->admit("tenant:a", 59);
  const auto refused = limiter->admit("tenant:a", 2);
  ASSERT_TRUE(refused.refusal);
  ASSERT_EQ(refused.refusal->violations.size(), 3u);
  EXPECT_STREQ(refused.refusal->violations[0].limit, "max_tenant_parallel_requests");
  EXPECT_STREQ(refused.refusal->violations[1].limit, "max_tenant_requests_per_minute");
  EXPECT_STREQ(refused.refusal->violations[2].limit, "max_tenant_tokens_per_minute");
  EXPECT_EQ(refused.refusal->violations[2].value, 60);
  EXPECT_EQ(refused.refusal->violations[2].subject, "tenant:a");
  EXPECT_EQ(refused.refusal->error.retry_delay_ms, 60'000) << "of 1 s, 60 s and 1 s";
}

TEST(TenantLimiter, RemembersABoundedNumberOfTenantsAndNoneForLong) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_requests_per_minute = 10}, clock);
  const auto running = limiter->admit("tenant:running", 1);
  for (int i = 0; i < 100'000; ++i) limiter->admit(fmt::format("tenant:{}", i), 1);
  EXPECT_EQ(limiter->stats().tenants, static_cast<int64_t>(TenantLimiter::kMaxIdle) + 1);
  clock.advance_us(60 * kSecondUs);
  for (int i = 0; i < 1000; ++i) limiter->admit("tenant:late", 1);
  EXPECT_EQ(limiter->stats().tenants, 2) << "those whose buckets are full again are as good as never seen";
}

TEST(TenantLimiter, ForgetsNoneThatOwesOrRunsWhileThereIsRoom) {
  ManualClock clock;
  const auto limiter = limiter_of({.max_parallel_requests = 1, .max_requests_per_minute = 1}, clock);
  const auto running = limiter->admit("tenant:running", 1);
  limiter->admit("tenant:owes", 1);
  for (int i = 0; i < 1000; ++i) limiter->admit(fmt::format("tenant:{}", i), 1);
  EXPECT_TRUE(limiter->admit("tenant:owes", 1).refusal);
  EXPECT_TRUE(limiter->admit("tenant:running", 1).refusal);
  clock.advance_us(61 * kSecondUs);
  for (int i = 0; i < 5000; ++i) limiter->admit(fmt::format("tenant:more{}", i), 1);
  const auto refused = limiter->admit("tenant:running", 1);
  ASSERT_TRUE(refused.refusal);
  EXPECT_STREQ(refused.refusal->violations[0].limit, "max_tenant_parallel_requests");
}

TEST(TenantLimiter, OutlivesItsServerInALease) {
  const ManualClock clock;
  auto limiter = limiter_of({.max_tokens_per_minute = 10}, clock);
  auto admitted = limiter->admit("tenant:a", 5);
  limiter.reset();
  admitted.lease.settle(1);  // with a sanitizer: touches nothing that is gone
}

TEST(TenantLimiter, CountsRightUnderManyThreads) {
  const ManualClock clock;
  const auto limiter =
      limiter_of({.max_parallel_requests = 3, .max_tokens_per_minute = 1'000'000'000}, clock);
  std::array<std::atomic<int>, 4> running{};
  std::atomic<int> most = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        const size_t tenant = static_cast<size_t>(t + i) % running.size();
        auto admitted = limiter->admit(fmt::format("tenant:{}", tenant), 10);
        if (admitted.refusal) continue;
        const int now = ++running[tenant];
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        --running[tenant];
        admitted.lease.settle(10);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  for (int i = 0; i < 4; ++i)
    EXPECT_FALSE(limiter->admit(fmt::format("tenant:{}", i), 10).refusal) << "all left";
}

}  // namespace
}  // namespace quire::server
