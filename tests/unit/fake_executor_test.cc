// The content check of the fake executor, which properties and simulations lean on: each fault that it is there for, in a plan made
// by hand, is a violation, and what is right is none.
#include "src/execute/fake_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "src/base/clock.h"
#include "src/execute/fake_mover.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int32_t kBlockTokens = 4;

std::vector<BlockId> blocks(std::initializer_list<int32_t> ids) {
  std::vector<BlockId> table;
  for (const int32_t id : ids) table.push_back(BlockId{id});
  return table;
}

std::vector<TokenId> counting(TokenId first, int32_t count) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(first + i);
  return tokens;
}

PlannedSequence sequence(uint64_t id, std::vector<TokenId> tokens, std::vector<BlockId> table,
                         int32_t first_position = 0) {
  PlannedSequence s;
  s.sequence = SequenceId{id};
  s.first_position = s.list_length_before = first_position;
  s.tokens = std::move(tokens);
  s.block_table = std::move(table);
  return s;
}

PlannedJoin join(uint64_t id, std::vector<TokenId> history) {
  return {.sequence = SequenceId{id},
          .sampling = std::make_shared<const SamplingParams>(),
          .history = std::move(history)};
}

class FakeContent : public testing::Test {
 protected:
  // One step; its number rises by one.
  StepResult run(std::vector<PlannedSequence> sequences, std::vector<PlannedJoin> joins = {},
                 std::vector<BlockCopy> copies = {}) {
    auto plan = std::make_shared<BatchPlan>();
    plan->step = ++step_;
    plan->sequences = std::move(sequences);
    plan->joins = std::move(joins);
    plan->copies = std::move(copies);
    executor_.submit(plan);
    return executor_.wait();
  }
  const std::vector<std::string>& violations() const { return executor_.violations(); }
  // Others may follow from it.
  std::string first_violation() const { return violations().empty() ? "none" : violations().front(); }

  FakeExecutor executor_{{.num_blocks = 16, .block_tokens = kBlockTokens}};
  uint64_t step_ = 0;
};

TEST_F(FakeContent, AChunkedPromptAndItsTokensAreRight) {
  run({sequence(1, counting(10, 6), blocks({3, 5}))});
  run({sequence(1, counting(16, 3), blocks({3, 5, 2}), 6)}, {join(1, counting(10, 9))});
  EXPECT_THAT(violations(), IsEmpty());
}

TEST_F(FakeContent, TwoTokensInOneSlot) {
  run({sequence(1, counting(10, 2), blocks({3})), sequence(2, counting(20, 2), blocks({3}))});
  EXPECT_THAT(first_violation(), HasSubstr("two tokens share slot 0 of block 3"));
}

TEST_F(FakeContent, ABlockOfAnother) {
  run({sequence(1, counting(10, 4), blocks({3})), sequence(2, counting(20, 4), blocks({4}))});
  run({sequence(1, {14}, blocks({4, 5}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("position 0 lies in slot 0 of block 4, which holds token 20"));
}

TEST_F(FakeContent, EqualTokensAfterAnotherPrefix) {
  run({sequence(1, counting(10, 8), blocks({3, 4}))});
  std::vector<TokenId> other = counting(50, 4), same = counting(14, 4);
  other.insert(other.end(), same.begin(), same.end());
  run({sequence(2, other, blocks({5, 6}))});
  run({sequence(2, {99}, blocks({5, 4, 7}), 8)});
  EXPECT_THAT(first_violation(), HasSubstr("not token 14 after this prefix"));
}

TEST_F(FakeContent, AMissingCopyOnWrite) {
  run({sequence(1, counting(10, 2), blocks({3}))}, {join(1, counting(10, 2)), join(2, counting(10, 2))});
  run({sequence(1, {30}, blocks({3}), 2)});
  run({sequence(2, {40}, blocks({3}), 2)});
  EXPECT_THAT(violations(), IsEmpty()) << "each holds what it reads until then";
  run({sequence(1, {31}, blocks({3}), 3)});
  EXPECT_THAT(first_violation(), HasSubstr("sequence 1: position 2 lies in slot 2 of block 3, which holds "
                                           "token 40"));
}

TEST_F(FakeContent, ACopyOnWriteThatIsMade) {
  run({sequence(1, counting(10, 2), blocks({3}))}, {join(1, counting(10, 2)), join(2, counting(10, 2))});
  run({sequence(1, {30}, blocks({3}), 2)});
  run({sequence(2, {40}, blocks({7}), 2)}, {}, {{BlockId{3}, BlockId{7}}});
  run({sequence(1, {31}, blocks({3}), 3), sequence(2, {41}, blocks({7}), 3)});
  EXPECT_THAT(violations(), IsEmpty());
}

TEST_F(FakeContent, ABlockThatIsCopiedOverAfterItWasSeen) {
  run({sequence(1, counting(10, 4), blocks({3})), sequence(2, counting(20, 4), blocks({4}))});
  run({sequence(1, {14}, blocks({3, 5}), 4)}, {}, {{BlockId{4}, BlockId{3}}});
  EXPECT_THAT(first_violation(), HasSubstr("position 0 lies in slot 0 of block 3, which holds token 20"));
}

TEST_F(FakeContent, AJoinWithAnotherHistory) {
  run({sequence(1, counting(10, 4), blocks({3}))});
  run({sequence(1, {14}, blocks({3, 5}), 4)}, {join(1, counting(11, 4))});
  EXPECT_THAT(first_violation(), HasSubstr("joins with another history than its slots hold"));
}

TEST_F(FakeContent, ATableCalledUnchangedThatIsNot) {
  run({sequence(1, counting(10, 4), blocks({3}))});
  run({sequence(2, counting(10, 4), blocks({6}))});
  PlannedSequence s = sequence(1, {14}, blocks({6, 5}), 4);
  s.num_unchanged_blocks = 1;
  run({s});
  EXPECT_THAT(first_violation(), HasSubstr("block 0 of its table is 6, was 3 and is called unchanged"));
}

// What a sibling was found to hold is believed for the same blocks, and for no others.
TEST_F(FakeContent, ASiblingsPrefixInOtherBlocks) {
  run({sequence(1, counting(10, 8), blocks({3, 4}))}, {join(1, counting(10, 8))});
  run({sequence(9, counting(60, 4), blocks({8}))});
  run({sequence(2, {18}, blocks({3, 8, 5}), 8)}, {join(2, counting(10, 8))});
  EXPECT_THAT(first_violation(), HasSubstr("sequence 2: position 4 lies in slot 0 of block 8, which holds "
                                           "token 60"));
}

TEST_F(FakeContent, ASiblingsBlockFromWhichItDiffersInTheMiddle) {
  run({sequence(1, counting(10, 8), blocks({3, 4}))}, {join(1, counting(10, 8))});
  std::vector<TokenId> history = counting(10, 6);
  history.insert(history.end(), {77, 78});
  run({sequence(2, {79}, blocks({3, 4, 5}), 8)}, {join(2, history)});
  EXPECT_THAT(first_violation(),
              HasSubstr("sequence 2: position 6 lies in slot 2 of block 4, which holds token 16"));
}

TEST_F(FakeContent, ASiblingThatGoesOnOtherwiseInItsOwnBlock) {
  run({sequence(1, counting(10, 8), blocks({3, 4}))}, {join(1, counting(10, 8))});
  std::vector<TokenId> history = counting(10, 6);
  history.insert(history.end(), {77, 78});
  run({sequence(2, {14, 15, 77, 78}, blocks({3, 5}), 4)}, {join(2, history)});
  EXPECT_THAT(violations(), IsEmpty());
}

TEST_F(FakeContent, ASiblingsPrefixInItsBlocksWrittenSince) {
  run({sequence(1, counting(10, 8), blocks({3, 4}))}, {join(1, counting(10, 8))});
  run({sequence(9, counting(60, 4), blocks({3}))});
  run({sequence(2, {18}, blocks({3, 4, 5}), 8)}, {join(2, counting(10, 8))});
  EXPECT_THAT(first_violation(), HasSubstr("sequence 2: position 0 lies in slot 0 of block 3, which holds "
                                           "token 60"));
}

// A prefix hit takes its chain from the slots, so what it found there is no proof for another, which computes its own.
TEST_F(FakeContent, AWrongPrefixHitIsNoWitnessForAnother) {
  run({sequence(9, counting(50, 8), blocks({3, 4}))});
  run({sequence(8, counting(10, 4), blocks({2}))});
  run({sequence(1, {58}, blocks({2, 4, 5}), 8)});  // block 4 was written after block 3, not 2: believed
  ASSERT_THAT(violations(), IsEmpty());
  std::vector<TokenId> history = counting(10, 4);
  for (TokenId t = 54; t <= 58; ++t) history.push_back(t);
  run({sequence(1, {59}, blocks({2, 4, 5}), 9)}, {join(1, history)});
  run({sequence(2, {58}, blocks({2, 4, 6}), 8)},
      {join(2, std::vector<TokenId>(history.begin(), history.end() - 1))});
  EXPECT_THAT(first_violation(), HasSubstr("sequence 2: position 4 lies in slot 0 of block 4, which holds "
                                           "token 54 of position 4, not token 54 after this prefix"));
}

TEST_F(FakeContent, ATokenThatNobodySampled) {
  run({sequence(1, counting(10, 4), blocks({3}))}, {join(1, counting(10, 4))});
  run({sequence(1, {kSampledLastStep}, blocks({3, 5}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("no token was sampled one step before for position 4"));
}

TEST_F(FakeContent, ATableTooShortOrOutOfTheArena) {
  run({sequence(1, counting(10, 5), blocks({3}))});
  run({sequence(2, counting(10, 4), blocks({16}))});
  EXPECT_THAT(violations(),
              ElementsAre(HasSubstr("1 blocks cannot hold 5 tokens"), HasSubstr("block 16 of 16")));
}

// Decodes of what is known take a way of their own, which sees the same.
class FakeDecodes : public FakeContent {
 protected:
  // Four tokens in block 3 and one more that is known: the next step decodes it into block 5.
  FakeDecodes() { run({sequence(1, counting(10, 4), blocks({3}))}, {join(1, counting(10, 5))}); }
};

TEST_F(FakeDecodes, OneThatIsRight) {
  run({sequence(1, {14}, blocks({3, 5}), 4)});
  run({sequence(1, {15}, blocks({3, 5}), 5)});
  EXPECT_THAT(violations(), IsEmpty());
}

TEST_F(FakeDecodes, TwoInOneSlot) {
  run({sequence(1, {14}, blocks({3, 5}), 4), sequence(2, {14}, blocks({3, 5}), 4)},
      {join(2, counting(10, 5))});
  EXPECT_THAT(first_violation(), HasSubstr("two tokens share slot 0 of block 5"));
}

TEST_F(FakeDecodes, OfAnotherToken) {
  run({sequence(1, {99}, blocks({3, 5}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("token 99 at position 4 was 14 before"));
}

TEST_F(FakeDecodes, OfATokenThatTheStepBeforeDidNotSample) {
  run({sequence(1, {kSampledLastStep}, blocks({3, 5}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("no token was sampled one step before for position 4"));
}

TEST_F(FakeDecodes, BehindABlockThatAnotherWroteInTheSameStep) {
  run({sequence(1, {14}, blocks({3, 5}), 4), sequence(2, counting(40, 4), blocks({3}))});
  EXPECT_THAT(first_violation(), HasSubstr("position 0 lies in slot 0 of block 3, which holds token 40"));
}

TEST_F(FakeDecodes, BehindABlockOfAnother) {
  run({sequence(2, counting(40, 4), blocks({4}))});
  run({sequence(1, {14}, blocks({4, 5}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("position 0 lies in slot 0 of block 4, which holds token 40"));
}

TEST_F(FakeDecodes, InABlockOutOfTheArena) {
  run({sequence(1, {14}, blocks({3, 16}), 4)});
  EXPECT_THAT(first_violation(), HasSubstr("block 16 of 16"));
}

// ---- the fake mover's clock ----

class FakeMoverTime : public testing::Test {
 protected:
  FakeMoverTime()
      : executor_({.num_blocks = 64, .check_content = false}, &clock_),
        mover_(executor_, &clock_,
               {.host_blocks = 64, .disk_blocks = 64, .host = {0, 10}, .disk = {0, 100}}) {}
  void submit(uint64_t id, TransferDirection direction, int32_t blocks, bool on_disk) {
    BlockTransfer transfer{.id = id, .direction = direction};
    for (int32_t i = 0; i < blocks; ++i) {
      TierCopy& copy = transfer.copies.emplace_back();
      copy.device = BlockId{i};
      if (on_disk)
        copy.disk = DiskBlockId{i};
      else
        copy.host = HostBlockId{i};
    }
    mover_.submit(std::move(transfer));
  }
  // The next one to end, and when.
  std::pair<uint64_t, int64_t> next() {
    std::vector<TransferEnd> ends;
    mover_.wait();
    mover_.poll(ends);
    EXPECT_EQ(ends.size(), 1u);
    return {ends.at(0).id, clock_.now_us()};
  }
  ManualClock clock_;
  FakeExecutor executor_;
  FakeMover mover_;
};

using IdAndTime = std::pair<uint64_t, int64_t>;

TEST_F(FakeMoverTime, AReadDoesNotWaitForWritesAndSharesTheDisksRate) {
  submit(1, TransferDirection::kToDisk, 10, true);
  submit(2, TransferDirection::kToDisk, 10, true);
  submit(3, TransferDirection::kToDevice, 2, true);
  EXPECT_EQ(next(), IdAndTime(3, 400)) << "at half of the rate";
  EXPECT_EQ(next(), IdAndTime(1, 1200)) << "800 us were left of it";
  EXPECT_EQ(next(), IdAndTime(2, 2200));
}

TEST_F(FakeMoverTime, BothWaysOfTheHostsLinkAreWhole) {
  submit(1, TransferDirection::kToHost, 10, false);
  submit(2, TransferDirection::kToDevice, 5, false);
  EXPECT_EQ(next(), IdAndTime(2, 50));
  EXPECT_EQ(next(), IdAndTime(1, 100));
}

TEST_F(FakeMoverTime, ADelayHoldsUpItsQueueAndNotTheDisk) {
  mover_.set_fault([n = 0]() mutable { return FakeMover::Fault{.delay_us = n++ == 0 ? 5000 : 0}; });
  submit(1, TransferDirection::kToDisk, 10, true);
  submit(2, TransferDirection::kToDevice, 10, true);
  EXPECT_EQ(next(), IdAndTime(2, 1000));
  EXPECT_EQ(next(), IdAndTime(1, 6000));
}

}  // namespace
}  // namespace quire
