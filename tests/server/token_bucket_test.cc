// What a client's requests may cost, and whose they are: numbers alone, without a server.
#include <gtest/gtest.h>

#include "server/client.h"
#include "server/token_bucket.h"

namespace quire::server {
namespace {

constexpr int64_t kSecondUs = 1'000'000;

// ---- token buckets ----

TEST(TokenBucket, BeginsFullAndFillsAtItsRate) {
  TokenBucket bucket(60, 0);
  EXPECT_EQ(bucket.wait_us(60, 0), 0);
  bucket.take(60, 0);
  EXPECT_EQ(bucket.wait_us(1, 0), kSecondUs);
  EXPECT_EQ(bucket.wait_us(1, kSecondUs - 1), 1);
  EXPECT_EQ(bucket.wait_us(1, kSecondUs), 0);
  EXPECT_EQ(bucket.wait_us(60, kSecondUs), 59 * kSecondUs);
}

TEST(TokenBucket, WaitsExactlyWhereTheRateDoesNotDivide) {
  TokenBucket bucket(7, 0);
  bucket.take(7, 0);
  EXPECT_EQ(bucket.wait_us(1, 0), 8'571'429);
  for (int64_t now = 0; now < 8'571'429; now += 1'000'003) EXPECT_EQ(bucket.wait_us(1, now), 8'571'429 - now);
  EXPECT_EQ(bucket.wait_us(1, 8'571'428), 1);
  EXPECT_EQ(bucket.wait_us(1, 8'571'429), 0);
}

TEST(TokenBucket, HoldsNoMoreThanAMinuteBrings) {
  TokenBucket bucket(10, 0);
  EXPECT_EQ(bucket.wait_us(10, 3600 * kSecondUs), 0);
  bucket.take(10, 3600 * kSecondUs);
  EXPECT_EQ(bucket.wait_us(1, 3600 * kSecondUs), 6 * kSecondUs);
  bucket.take(-100, 3600 * kSecondUs);
  EXPECT_EQ(bucket.left(), 10);
  EXPECT_EQ(bucket.wait_us(11, 3600 * kSecondUs), std::nullopt) << "however long one waits";
}

TEST(TokenBucket, WaitsOffWhatWasTakenFromBelowNothing) {
  TokenBucket bucket(60, 0);
  bucket.take(100, 0);
  EXPECT_EQ(bucket.left(), -40);
  EXPECT_EQ(bucket.wait_us(1, 0), 41 * kSecondUs);
  EXPECT_FALSE(bucket.is_full(99 * kSecondUs));
  EXPECT_TRUE(bucket.is_full(100 * kSecondUs));
}

TEST(TokenBucket, OverflowsWithNoAmountAndNoTime) {
  TokenBucket bucket(TokenBucket::kMostPerMinute, 0);
  for (int i = 0; i < 100; ++i) bucket.take(INT64_MAX, 0);
  EXPECT_LT(bucket.left(), 0);
  EXPECT_GT(*bucket.wait_us(1, 0), 0);
  EXPECT_EQ(bucket.wait_us(TokenBucket::kMostPerMinute, INT64_MAX), 0);
}

TEST(TokenBucket, OfNoLimitIsAlwaysFull) {
  TokenBucket bucket(0, 0);
  bucket.take(1'000'000, 0);
  EXPECT_EQ(bucket.wait_us(1'000'000, 0), 0);
  EXPECT_TRUE(bucket.is_full(0));
}

// ---- whose request, and what it may cost ----

TEST(Client, IsTheTenantOrElseTheAddressItComesFrom) {
  EXPECT_EQ(client_of("a", "ipv4:10.0.0.1:4711"), "tenant:a");
  EXPECT_EQ(client_of("", "ipv4:10.0.0.1:4711"), "clientip:10.0.0.1");
  EXPECT_EQ(client_of("", "ipv4:10.0.0.1:4712"), "clientip:10.0.0.1");
  EXPECT_EQ(client_of("", "ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711"), "clientip:2001:db8:1:2::/64");
  EXPECT_EQ(client_of("", "ipv6:[2001:db8:1:2::9]:4711"), "clientip:2001:db8:1:2::/64");
  EXPECT_EQ(client_of("", "ipv6:%5Bfe80::1%25eth0%5D:4711"), "clientip:fe80::/64");
  EXPECT_EQ(client_of("", "ipv6:%5B::ffff:10.0.0.1%5D:4711"), "clientip:10.0.0.1");
  EXPECT_EQ(client_of("", "unix:/run/quire.sock"), "clientip:unix");
  EXPECT_EQ(client_of("", "unix:"), "clientip:unix");
  EXPECT_NE(client_of("clientip:10.0.0.1", "unix:"), client_of("", "ipv4:10.0.0.1:1"))
      << "no name is an address";
}

TEST(Client, CostsItsPromptAndAllThatItsContinuationsMayBe) {
  const SamplingLimits limits{.max_n = 8, .max_beam_width = 4};
  Request request;
  request.prompt = std::vector<int32_t>(10, 1);
  request.sampling.max_tokens = 5;
  EXPECT_EQ(most_tokens(request, limits), 15);
  request.sampling.best_of = 3;
  EXPECT_EQ(most_tokens(request, limits), 25);
  request.sampling.n = 1 << 30;
  EXPECT_EQ(most_tokens(request, limits), 10 + 8 * 5) << "more are refused, and cost no more until then";
  request.sampling = {};
  request.sampling.max_tokens = -7;
  request.prompt = std::string("nine byte");
  EXPECT_EQ(most_tokens(request, limits), 3) << "a token for each 4 bytes of text";
  request.prompt =
      std::vector<ChatMessage>{{.role = "user", .content = "four"}, {.role = "x", .content = ""}};
  EXPECT_EQ(most_tokens(request, limits), 3);
}

}  // namespace
}  // namespace quire::server
