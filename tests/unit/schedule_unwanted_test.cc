// Copies of the disk tier that do not return, or that nobody waits for any more, step by step as in schedule_tiers_test.cc: who goes
// on without them, what they hold until when, and what they say of the disk.
#include "tests/unit/schedule_tiers_rig.h"

namespace quire {
namespace {

// Four prompts one after the other, all on the disk; a device of 44 blocks has the last two.
void fill_all(Harness& h) {
  for (const int32_t first : {0, 200, 400, 600}) {
    ask(h, first);
    h.run();
  }
  step_to_the_end(h);
}

// A call that does not return: its request computes after a tenth of a second, the blocks that are being written
// stay held, others do not ask the disk, and when it has returned all is as before.
TEST(DiskTier, ACopyThatHangsIsNotWaitedForLongerThanComputingTakes) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 44;
  Harness h(o);
  fill_all(h);
  int64_t hang_us = kAnHourUs;
  h.mover().set_disk_hang([&] { return std::exchange(hang_us, 0); });
  const int64_t start = h.clock().now_us();
  const RequestId again = ask(h, 0);
  h.step();
  ASSERT_TRUE(first_of(h, again).copying);
  step_until_ended(h, again);
  EXPECT_LT(h.clock().now_us() - start, 2 * kLeastTierWaitUs);
  EXPECT_EQ(counters(h).waits_given_up, 1);
  h.expect_greedy(again);
  EXPECT_TRUE(h.core().idle());
  EXPECT_EQ(h.core().scheduler().transfers().num_overdue(), 1);
  EXPECT_GT(h.core().cache().num_held(), 0) << "what the copy may still write";
  EngineStats stats;
  h.core().fill_stats(stats);
  EXPECT_EQ(stats.tier_waits_given_up_total, 1);

  const int64_t asked_us = h.clock().now_us();
  const RequestId other = ask(h, 200);
  step_until_ended(h, other);
  EXPECT_LT(h.clock().now_us() - asked_us, kLeastTierWaitUs) << "the disk is not asked while it hangs";
  EXPECT_EQ(counters(h).disk.hit_tokens, 0);
  h.expect_greedy(other);
  step_to_the_end(h);
  EXPECT_EQ(h.core().scheduler().transfers().size(), 0);
  EXPECT_EQ(counters(h).disk.read_failures, 0);
  EXPECT_EQ(counters(h).disk.hit_tokens, 0) << "it came too late to be one";
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DiskTier, ACancelWhileACopyHangsEndsTheRequestAndLeaksNothing) {
  Harness h(with_disk(0));
  fill(h);
  h.mover().set_disk_hang([] { return kAnHourUs; });
  const RequestId again = ask(h, 0);
  h.step();
  ASSERT_TRUE(first_of(h, again).copying);
  h.abort(again);
  h.step();
  EXPECT_EQ(h.record(again).num_ends, 1);
  step_to_the_end(h);
  EXPECT_EQ(counters(h).waits_given_up, 0) << "it computed nothing instead";
  h.expect_sound();
  h.expect_all_ended();
}

// 20 blocks at a tenth of a second each, of which the first two are read: what was to be written is free with the third.
TEST(DiskTier, ACopyThatNobodyWaitsForEndsWithItsBlock) {
  HarnessOptions o = with_disk(0);
  o.disk_link = {.transfer_us = 0, .us_per_block = 100'000};
  o.costs.flops_per_s = 1e6;  // computing would take far longer
  Harness h(o);
  fill(h);
  step_to_the_end(h);
  const RequestId again = ask(h, 0);
  h.core().step();
  ASSERT_TRUE(first_of(h, again).copying);
  h.clock().advance_us(250'000);
  h.abort(again);
  const int64_t start = h.clock().now_us();
  step_to_the_end(h);
  EXPECT_EQ(h.clock().now_us() - start, 50'000);
  EXPECT_EQ(h.core().cache().num_held(), 0);
  EXPECT_EQ(counters(h).disk.read_failures, 0) << "it was no failure of the disk";
  const RequestId then = ask(h, 0);
  h.run();
  h.expect_greedy(then);
  EXPECT_GT(h.record(then).end.cached_tokens, 100);
  h.expect_sound();
  h.expect_all_ended();
}

// Its reader is cancelled while another waits for the same prefix; and then that one too.
TEST(DiskTier, ACopyGoesOnForWhoWaitsForItsPrefix) {
  for (const bool both_go : {false, true}) {
    HarnessOptions o = with_disk(0);
    o.disk_link = {.transfer_us = 0, .us_per_block = 100'000};
    o.costs.flops_per_s = 1e6;
    Harness h(o);
    fill(h);
    step_to_the_end(h);
    const RequestId reader = ask(h, 0), waiter = ask(h, 0);
    h.core().step();
    ASSERT_TRUE(first_of(h, reader).copying);
    ASSERT_EQ(h.core().scheduler().find(waiter)->parked_on, &first_of(h, reader));
    h.clock().advance_us(250'000);
    h.abort(reader);
    if (both_go) h.abort(waiter);
    h.core().step();
    h.collect();
    EXPECT_EQ(h.record(reader).num_ends, 1);
    const int64_t start = h.clock().now_us();
    step_to_the_end(h);
    if (both_go) {
      EXPECT_EQ(h.clock().now_us() - start, 50'000);
    } else {
      h.expect_greedy(waiter);
      EXPECT_GT(h.record(waiter).end.cached_tokens, 150);
      EXPECT_LT(h.clock().now_us() - start, 1'900'000)
          << "of the 2 s of the copy a quarter second had passed";
    }
    EXPECT_EQ(counters(h).waits_given_up, 0);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// The disk's slow moment says nothing of it where nobody gave up: not either when it lasts longer than the request would have waited.
TEST(DiskTier, ACopyThatWasCancelledDoesNotTellHowSlowTheDiskIs) {
  for (const int64_t delay_us : {kLeastTierWaitUs / 2, 5 * kLeastTierWaitUs}) {
    HarnessOptions o = with_disk(0);
    o.num_blocks = 44;
    Harness h(o);
    fill_all(h);
    h.mover().set_fault([&] { return FakeMover::Fault{.delay_us = delay_us}; });
    const RequestId gone = ask(h, 0);
    h.core().step();
    ASSERT_TRUE(first_of(h, gone).copying);
    h.abort(gone);
    step_to_the_end(h);
    h.mover().set_fault({});
    const RequestId next = ask(h, 200);
    h.run();
    EXPECT_GT(h.record(next).end.cached_tokens, 100);
    h.expect_greedy(next);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Not even when the one before it hangs.
TEST(DiskTier, ACopyThatNobodyWaitsForDoesNotStandBehindAnother) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 44;
  o.costs.flops_per_s = 1e6;
  Harness h(o);
  fill_all(h);
  h.mover().set_disk_hang([] { return kAnHourUs; });
  const RequestId hangs = ask(h, 200), waits = ask(h, 0);
  h.core().step();
  ASSERT_TRUE(first_of(h, hangs).copying && first_of(h, waits).copying);
  const int64_t held = h.core().cache().num_held();
  h.clock().advance_us(kLongestTierWaitUs / 2);
  h.abort(waits);
  h.core().step();
  EXPECT_EQ(h.core().scheduler().transfers().size(), 1);
  EXPECT_LE(h.core().cache().num_held(), held - 19);
  step_until_ended(h, hangs);
  EXPECT_TRUE(h.core().copies_hang()) << "the time of the one that hangs goes on";
  h.expect_greedy(hangs);
  step_to_the_end(h);
  h.expect_sound();
  h.expect_all_ended();
}

// What was measured of it until then tells how slow the disk is.
TEST(DiskTier, ACopyThatIsGivenUpEndsWithItsBlockAndTheDiskIsKnownToBeSlow) {
  HarnessOptions o = with_disk(0);
  o.disk_link = {.transfer_us = 0, .us_per_block = 90'000};
  o.num_blocks = 44;
  Harness h(o);
  fill_all(h);
  const int64_t start = h.clock().now_us();
  const RequestId again = ask(h, 0);
  h.run();
  EXPECT_EQ(counters(h).waits_given_up, 1);
  step_to_the_end(h);
  EXPECT_LE(h.clock().now_us() - start, 2 * 90'000 + 5'000) << "it takes 1.8 s";
  h.expect_greedy(again);
  const RequestId other = ask(h, 200);
  h.core().step();
  EXPECT_FALSE(first_of(h, other).copying);
  h.run();
  h.expect_greedy(other);
  h.expect_sound();
  h.expect_all_ended();
}

// Room that a copy holds which does not return is nobody's: who cannot do without it is told so.
TEST(DiskTier, AWriteThatHangsHoldsNobodyUpForEver) {
  for (const int32_t num_blocks : {64, 21}) {
    HarnessOptions o = with_disk(0);
    o.num_blocks = num_blocks;
    Harness h(o);
    h.mover().set_disk_hang([] { return kAnHourUs; });
    ask(h, 0);
    while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step());
    h.step();
    ASSERT_EQ(h.core().scheduler().transfers().size(), 1);
    const int64_t start = h.clock().now_us();
    const RequestId other = ask(h, 300);
    for (int i = 0;; ++i) {
      const bool worked = h.core().step();
      h.collect();
      if (h.record(other).num_ends > 0) break;
      ASSERT_TRUE((worked || h.core().wait_for_copy()) && i < 20'000) << "it never ends";
    }
    EXPECT_LT(h.clock().now_us() - start, 2 * kLongestTierWaitUs);
    const SequenceRecord& end = h.record(other).sequences[0];
    EXPECT_EQ(end.finish, num_blocks == 64 ? FinishReason::kLength : FinishReason::kFailed);
    if (num_blocks == 21) {
      EXPECT_EQ(end.error->code, Code::kResourceExhausted);
      EXPECT_NE(end.error->message.find("that have not returned (1 now)"), std::string::npos)
          << end.error->message;
      EXPECT_EQ(end.error->retry_delay_ms, kLongestTierWaitUs / 1000);
    }
    step_to_the_end(h);
    h.expect_sound();
    h.expect_all_ended();
  }
}

}  // namespace
}  // namespace quire
