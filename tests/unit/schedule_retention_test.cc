// kv_retention from request to eviction: what is said of a prefix is said of its last block, before which none of the others
// can go, and outlives those who go on behind it.
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

constexpr int64_t kSecond = 1'000'000;

class KvRetentionOfAPrefix : public ::testing::Test {
 protected:
  void pin(const KvRetention& retention) { pin(retention, Harness::greedy(0), {}); }
  void pin(const KvRetention& retention, const SamplingParams& sampling, const PolicySpec& policy) {
    CoreRequest request;
    request.retention = retention;
    request.policy = policy;
    h_.submit(ids(system_prompt_), sampling, std::move(request));
    h_.run();
  }
  // An ordinary request that goes on behind it.
  void ask(int32_t question) {
    std::vector<TokenId> prompt = ids(system_prompt_);
    const std::vector<TokenId> rest = ids(12, question);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    h_.submit(prompt, Harness::greedy(2));
    h_.run();
  }
  // Tokens of the system prompt that are still cached once others have filled the cache three times over.
  int32_t cached_after_a_flood() {
    for (int32_t i = 1; i <= 3 * 64 * 8 / 80; ++i) {
      h_.submit(ids(78, 100 + 45 * i), Harness::greedy(2));
      h_.run();
    }
    const RequestId again = h_.submit(ids(system_prompt_), Harness::greedy(2));
    h_.run();
    h_.expect_sound();
    return h_.record(again).end.cached_tokens;
  }

  int32_t system_prompt_ = 33;  // four blocks of 8 and a token
  Harness h_;
};

TEST_F(KvRetentionOfAPrefix, OrdinaryBlocksDoNotOutliveAFlood) {
  pin({.ttl_ms = {}});
  ask(600);
  EXPECT_EQ(cached_after_a_flood(), 0);
}

TEST_F(KvRetentionOfAPrefix, IsRenewedByWhoeverFindsItCached) {
  const KvRetention a_minute{.retention_class = 1, .ttl_ms = 60'000};
  pin(a_minute);
  h_.clock().advance_us(40 * kSecond);
  pin(a_minute);
  ask(600);  // fills the fifth block, of which the system prompt has one token
  h_.clock().advance_us(40 * kSecond);
  EXPECT_EQ(cached_after_a_flood(), 32);
}

// The block in which it ends is filled by whoever goes on behind it: what was said of five of its tokens is said of all.
TEST_F(KvRetentionOfAPrefix, HoldsForTheBlockInWhichItEnds) {
  system_prompt_ = 37;
  pin({.retention_class = 1, .ttl_ms = {}});
  ask(600);
  EXPECT_EQ(cached_after_a_flood(), 36);
}

TEST_F(KvRetentionOfAPrefix, IsRaisedByWhoeverFindsItCached) {
  pin({.ttl_ms = {}});
  pin({.retention_class = 5, .ttl_ms = {}});
  ask(600);
  EXPECT_EQ(cached_after_a_flood(), 32);
}

// Of a prompt whose whole blocks are cached these publish nothing more.
TEST_F(KvRetentionOfAPrefix, IsRaisedByBeamsThatFindItCached) {
  pin({.ttl_ms = {}});
  SamplingParams beams = Harness::greedy(3);
  beams.beam_width = 2;
  pin({.retention_class = 5, .ttl_ms = {}}, beams, {});
  EXPECT_EQ(cached_after_a_flood(), 32);
}

TEST_F(KvRetentionOfAPrefix, IsRaisedByAPolicyThatFindsItCached) {
  pin({.ttl_ms = {}});
  pin({.retention_class = 5, .ttl_ms = {}}, Harness::greedy(3), {.kind = RetentionKind::kTova, .budget = 20});
  EXPECT_EQ(cached_after_a_flood(), 32);
}

TEST_F(KvRetentionOfAPrefix, IsNotTakenAwayByOrdinaryRequestsThatFindItCached) {
  pin({.retention_class = 1, .ttl_ms = 60'000});
  pin({.ttl_ms = {}}, Harness::greedy(3), {.kind = RetentionKind::kTova, .budget = 20});
  h_.clock().advance_us(61 * kSecond);
  EXPECT_EQ(cached_after_a_flood(), 0);
}

TEST_F(KvRetentionOfAPrefix, AndItsCostIsTheLargest) {
  pin({.ttl_ms = {}});
  pin({.ttl_ms = {}, .cost = 5});
  ask(600);
  EXPECT_EQ(cached_after_a_flood(), 32);
}

// An expiry belongs to the class that was asked with it: an ordinary request has none, and does not take that of a higher class away.
TEST_F(KvRetentionOfAPrefix, ExpiresThoughOrdinaryRequestsHadItToo) {
  pin({.retention_class = 1, .ttl_ms = 60'000});
  ask(600);
  h_.clock().advance_us(61 * kSecond);
  EXPECT_EQ(cached_after_a_flood(), 0);
}

}  // namespace
}  // namespace quire
