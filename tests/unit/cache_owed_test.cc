// Prefixes whose write to a tier below could not begin at once: a cache of 64 blocks reads 4 of them for writes at a time, so that of
// prompts of 2 blocks that end together two are written and the others owed.
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/unit/cache_tier_rig.h"

namespace quire {
namespace {

class Owed : public testing::Test {
 protected:
  void TearDown() override { sound(*cache_); }
  // A prompt of `blocks` blocks ends, and is to go down.
  void end(int32_t first, int32_t blocks = 2, const TierWritesAllowed& allowed = {}) {
    const std::vector<TokenId> tokens = ids(blocks * kTokens, first);
    publish(*cache_, ns_, tokens);
    cache_->write_below(ns_, tokens, {}, allowed, 1000, writes_);
  }
  // The first of the writes that are under way ends, and what is owed follows.
  void end_write(const TierWritesAllowed& allowed = {}) {
    TierWrite write = std::move(writes_.front());
    writes_.erase(writes_.begin());
    cache_->end_write(std::move(write), true, allowed, 1000, writes_);
    cache_->write_owed(allowed, 1000, writes_);
  }
  std::vector<TokenId> under_way() const {  // the first token of each
    std::vector<TokenId> first;
    for (const TierWrite& write : writes_) first.push_back(write.tokens.front());
    return first;
  }
  int32_t below(int32_t first, int32_t blocks = 2) const {
    return cache_->lookup_below(ns_, ids(blocks * kTokens, first), CacheTier::kHost);
  }

  // What is owed keeps its namespace open, what is owed no more does not: the tier below knows no name of it.
  void expect_last_user_closes() {
    cache_->close_namespace(ns_);
    EXPECT_THROW(below(100), std::out_of_range);
  }

  std::unique_ptr<KvCache> cache_ = make(64, 0);
  NamespaceId ns_ = cache_->open_namespace({});
  std::vector<TierWrite> writes_;
};

TEST_F(Owed, IsWrittenInTheOrderInWhichItWasAskedFor) {
  for (const int32_t first : {100, 200, 300, 400, 500}) end(first);
  EXPECT_EQ(under_way(), (std::vector<TokenId>{100, 200}));
  EXPECT_TRUE(cache_->owes_writes());
  end_write();
  EXPECT_EQ(under_way(), (std::vector<TokenId>{200, 300}));
  end_write();
  end_write();
  EXPECT_EQ(under_way(), (std::vector<TokenId>{400, 500}));
  EXPECT_FALSE(cache_->owes_writes());
  end_write();
  end_write();
  for (const int32_t first : {100, 200, 300, 400, 500}) EXPECT_EQ(below(first), 16) << first;
  expect_last_user_closes();
}

// What is asked for again before anything else is is owed once.
TEST_F(Owed, IsOwedOnceHoweverOftenItIsAskedFor) {
  for (const int32_t first : {100, 200, 300, 300, 300, 400}) end(first);
  end_write();
  end_write();
  EXPECT_EQ(under_way(), (std::vector<TokenId>{300, 400}));
  EXPECT_FALSE(cache_->owes_writes());
  end_write();
  end_write();
}

// Who may not read now owes nothing, nor does who may not write below: it is not for want of room.
TEST_F(Owed, IsNothingThatMayNotBeginAtAll) {
  end(100);
  end(200);
  end(300, 2, {.from_device = false});
  end(400, 2, {.to_host = false});
  EXPECT_FALSE(cache_->owes_writes());
  end_write();
  end_write();
}

// While nothing may be read it stays owed.
TEST_F(Owed, WaitsWhileTheTierMayNotBeRead) {
  for (const int32_t first : {100, 200, 300}) end(first);
  end_write({.from_device = false});
  end_write({.from_device = false});
  EXPECT_TRUE(writes_.empty());
  EXPECT_TRUE(cache_->owes_writes());
  cache_->write_owed({}, 1000, writes_);
  EXPECT_EQ(under_way(), (std::vector<TokenId>{300}));
  end_write();
}

// Eighteen prompts of two blocks, twice each: the list looks back at fewer, and takes them for as many more. It is of 34 when
// the tier has room for 32.
TEST_F(Owed, IsAtMostWhatTheTierHolds) {
  for (int round = 0; round < 2; ++round)
    for (int32_t i = 0; i < 18; ++i) end(100 + 20 * i);
  EXPECT_EQ(under_way(), (std::vector<TokenId>{100, 120}));
  end_write();
  EXPECT_EQ(under_way(), (std::vector<TokenId>{120, 180})) << "the oldest two are owed no more";
  while (!writes_.empty()) end_write();
  for (int32_t i = 0; i < 18; ++i) EXPECT_EQ(below(100 + 20 * i), 16) << i;
  EXPECT_FALSE(cache_->owes_writes());
  sound(*cache_);
}

// Eight prompts with a long front in common: the cache has room for all of them.
TEST_F(Owed, CountsWhatPromptsHaveInCommonOnce) {
  std::vector<std::vector<TokenId>> prompts;
  for (int32_t i = 0; i < 8; ++i) {
    std::vector<TokenId>& prompt = prompts.emplace_back(ids(30 * kTokens, 2000));
    for (const TokenId id : ids(2 * kTokens, 3000 + 100 * i)) prompt.push_back(id);
    publish(*cache_, ns_, prompt);
    cache_->write_below(ns_, prompt, {}, {}, 1000, writes_);
  }
  while (!writes_.empty()) end_write();
  for (const std::vector<TokenId>& prompt : prompts)
    EXPECT_EQ(cache_->lookup_below(ns_, prompt, CacheTier::kHost), 32 * kTokens) << prompt.back();
  EXPECT_FALSE(cache_->owes_writes());
  sound(*cache_);
}

// As at the process's end: nothing of it is written, and its namespace is as open as its requests hold it.
TEST_F(Owed, IsForgotten) {
  for (const int32_t first : {100, 200, 300, 400}) end(first);
  cache_->forget_owed();
  EXPECT_FALSE(cache_->owes_writes());
  end_write();
  end_write();
  EXPECT_TRUE(writes_.empty());
  EXPECT_EQ(below(200), 16);
  EXPECT_EQ(below(300), 0);
  expect_last_user_closes();
}

}  // namespace
}  // namespace quire
