// How much of the tiers copies may take, step by step as in schedule_tiers_test.cc: where a tier is small, the disk busy, or the card.
#include "tests/unit/schedule_tiers_rig.h"

namespace quire {
namespace {

// Memory that is added keeps nothing from the disk: a prompt that the host has no room for goes there straight.
TEST(DiskTier, AHostTierShorterThanAPromptKeepsItNotFromTheDisk) {
  for (const int32_t host_blocks : {0, 24, 16, 1}) {
    HarnessOptions o = with_disk(host_blocks);
    o.num_blocks = 64;
    Harness h(o);
    fill(h);
    EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 60) << "host tier of " << host_blocks;
    EXPECT_EQ(counters(h).disk.writes, 60) << "each once";
    if (host_blocks < 20 && host_blocks > 0) {
      EXPECT_EQ(counters(h).host.writes, 0);
    }
    h.expect_sound();
    h.expect_all_ended();
  }
}

// A sixteenth of the device is what writes may hold of it, the new one among them; the rest is evicted if it must be, and
// else follows.
TEST(DiskTier, AWriteHoldsAtMostASixteenthOfTheDevice) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 32;
  Harness h(o);
  h.mover().set_disk_hang([] { return 1'000'000; });
  ask(h, 0);
  while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step());
  EXPECT_EQ(h.core().cache().num_held(), 2);
  const RequestId other = ask(h, 300);
  const int64_t start = h.clock().now_us();
  while (h.record(other).num_ends == 0) ASSERT_TRUE(h.step());
  EXPECT_LT(h.clock().now_us() - start, 1'000'000) << "30 blocks are room for 21";
  h.run();
  EXPECT_GT(tier(h, CacheTier::kDisk).num_cached(), 2) << "what was still there followed";
  h.expect_sound();
  h.expect_all_ended();
}

// Over-committed as far as it goes, above a disk that is never full.
HarnessOptions with_roomy_disk() {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 64;
  o.num_disk_blocks = 1000;
  o.max_context_tokens = 600;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

// A prompt that has run goes down in parts of four blocks, each of which takes so long: the first is under way.
void begin_to_write_a_prompt(Harness& h, int64_t part_us) {
  h.mover().set_disk_hang([part_us] { return part_us; });
  ask(h, 0);
  while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step());
  h.collect();
  ASSERT_EQ(h.core().scheduler().transfers().size(), 1);
}

// What is written ahead of eviction holds nobody up: not for longer than a second, and what follows of it gives way.
TEST(DiskTier, DecodesWithoutRoomDoNotWaitForWhatIsWrittenAhead) {
  for (const int64_t takes_us : {int64_t{0}, int64_t{50'000}, int64_t{9'000'000}}) {
    Harness h(with_roomy_disk());
    ASSERT_NO_FATAL_FAILURE(begin_to_write_a_prompt(h, takes_us));
    const RequestId a = h.submit(ids(160, 300), Harness::greedy(200));
    const RequestId b = h.submit(ids(160, 600), Harness::greedy(200));
    int64_t longest_us = 0, last_us = h.clock().now_us();
    for (size_t seen = 0; h.record(a).num_ends == 0 || h.record(b).num_ends == 0;) {
      ASSERT_TRUE(h.step());
      const size_t tokens = h.record(a).sequences[0].tokens.size() + h.record(b).sequences[0].tokens.size();
      if (std::exchange(seen, tokens) == tokens) continue;
      longest_us = std::max(longest_us, h.clock().now_us() - std::exchange(last_us, h.clock().now_us()));
    }
    EXPECT_LT(longest_us, std::min(takes_us, kLongestRoomWaitUs) + 150'000)
        << "a part takes " << takes_us / 1000 << " ms";
    EXPECT_GT(h.core().scheduler().counters().preemptions, 0) << "there was no room for both";
    h.run();
    h.expect_greedy(a);
    h.expect_greedy(b);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Twenty that end together: what may not be read at once follows, and nobody's prefix is lost with the device.
TEST(TiersUnderLoad, WhatCouldNotBeWrittenAtOnceIsWrittenLater) {
  for (const bool to_disk : {false, true}) {
    SCOPED_TRACE(to_disk ? "disk" : "host");
    HarnessOptions o = to_disk ? with_disk(0) : two_tiers();
    o.num_blocks = 120;
    (to_disk ? o.num_disk_blocks : o.num_host_blocks) = 200;
    Harness h(o);
    for (int32_t i = 0; i < 20; ++i) h.submit(ids(40, 40 * i), Harness::greedy(2));
    h.run();
    EXPECT_EQ(tier(h, to_disk ? CacheTier::kDisk : CacheTier::kHost).num_cached(), 100);
    EXPECT_FALSE(h.core().cache().owes_writes());
    h.expect_sound();
    h.expect_all_ended();
  }
}

// A quarter of the host is read for the disk at a time, each write 5 ms long.
TEST(TiersUnderLoad, WhatTheHostOwesTheDiskIsWrittenToo) {
  HarnessOptions o = with_disk(100);
  o.num_blocks = 2000;
  Harness h(o);
  h.mover().set_disk_hang([] { return 5'000; });
  for (int32_t i = 0; i < 16; ++i) h.submit(ids(40, 40 * i), Harness::greedy(2));
  h.run();
  EXPECT_EQ(tier(h, CacheTier::kHost).num_cached(), 80);
  EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 80);
  h.expect_sound();
  h.expect_all_ended();
}

// Who gives way for want of room gives room: nothing of it is read for a write ahead of eviction.
TEST(HostTier, NothingIsWrittenOfWhoGivesWayForRoom) {
  HarnessOptions o = two_tiers();
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  Harness h(o);
  const RequestId a = h.submit(ids(80), Harness::greedy(100));
  const RequestId b = h.submit(ids(80, 300), Harness::greedy(100));
  while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(counters(h).blocks_from_device, 0);
  h.run();
  EXPECT_GT(counters(h).blocks_from_device, 0) << "what has ended is written";
  h.expect_greedy(a);
  h.expect_greedy(b);
  h.expect_sound();
  h.expect_all_ended();
}

// What a slow write reads is no room before it has ended: whoever waits with it loses nothing for others who would have nothing
// of it.
TEST(DiskTier, AHeadThatASlowWriteReadsIsKeptUntilItHasEnded) {
  Harness h(with_roomy_disk());
  ASSERT_NO_FATAL_FAILURE(begin_to_write_a_prompt(h, kLongestTierWaitUs - 500'000));
  const RequestId first = h.submit(ids(160, 300), Harness::greedy(340));
  const RequestId head = h.submit(ids(33), Harness::greedy(300));
  while (first_of(h, head).state != SequenceState::kPreempted)
    ASSERT_TRUE(h.step() && h.record(head).num_ends == 0);
  while (h.core().scheduler().transfers().size() > 0 && h.record(first).num_ends == 0) {
    ASSERT_GE(first_of(h, head).table.num_blocks(), 4) << "of what is read nothing goes";
    ASSERT_TRUE(h.step());
  }
  EXPECT_EQ(h.record(first).num_ends, 0) << "who found no more room waits for the write's end";
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(head);
  h.expect_sound();
  h.expect_all_ended();
}

// Busy is not hanging: time behind others does not count.
TEST(DiskTier, ADiskThatIsBusyDoesNotHang) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 1280;
  o.disk_state = "on";
  Harness h(o);
  h.mover().set_disk_hang([] { return 6'000'000; });
  const auto state = [&h] {
    EngineStats stats;
    h.core().fill_stats(stats);
    return stats.disk_kv_state;
  };
  for (const int32_t first : {0, 200, 400}) {  // written after 6, 12 and 18 s
    ask(h, first);
    while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step());
  }
  const int64_t start = h.clock().now_us();
  while (h.core().scheduler().transfers().size() > 1) {
    ASSERT_TRUE(h.step());
    EXPECT_EQ(state(), "on") << (h.clock().now_us() - start) / 1000 << " ms later";
  }
  EXPECT_GT(h.clock().now_us() - start, kLongestTierWaitUs)
      << "the third has waited longer than one may take";
  ask(h, 600);
  h.run();
  EXPECT_EQ(counters(h).disk.writes, 80) << "more are begun";
  EXPECT_EQ(tier(h, CacheTier::kDisk).num_cached(), 80);
  h.mover().set_disk_hang([] { return kAnHourUs; });
  ask(h, 800);
  while (h.core().num_unfinished() > 0) ASSERT_TRUE(h.core().step());
  while (state() == "on") ASSERT_TRUE(h.step());
  EXPECT_EQ(state(), "hangs: 1 copies have not returned");
  step_to_the_end(h);
  EXPECT_EQ(state(), "on");
  h.expect_sound();
  h.expect_all_ended();
}

// Nor of reads: whoever gives one up because others were before it says nothing of the disk.
TEST(DiskTier, AReadBehindAnotherDoesNotStallTheDisk) {
  HarnessOptions o = with_disk(0);
  o.num_blocks = 64;
  o.num_disk_blocks = 200;
  o.disk_state = "on";
  o.costs = {.transfer_us = 0,
             .disk_bytes_per_s = 64e6 / 8,  // 8 us a token
             .flops_per_s = 1e12,
             .flops_per_token = 5e8,  // 500 us
             .flops_per_token_pair = 0,
             .step_us = 0};
  Harness h(o);
  for (const int32_t first : {0, 170, 340, 510, 680}) {
    ask(h, first);
    h.run();
  }
  h.mover().set_disk_hang([] { return kLeastTierWaitUs * 6 / 10; });
  const RequestId before = ask(h, 0), behind = ask(h, 170);
  h.step();
  ASSERT_TRUE(first_of(h, before).copying && first_of(h, behind).copying);
  while (h.step()) {
    EngineStats stats;
    h.core().fill_stats(stats);
    EXPECT_EQ(stats.disk_kv_state, "on");
  }
  EXPECT_EQ(counters(h).waits_given_up, 1);
  h.run();
  for (const RequestId id : {before, behind}) h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// What a deadline is held against: nobody computes what a tier gives, whether it is the new one's or of those before it.
TEST(DiskTier, WhatItHasOfThoseWhoWaitIsNoWork) {
  for (const int32_t host_blocks : {24, 0}) {
    HarnessOptions o = with_disk(host_blocks);
    o.max_sequences = 1;
    Harness h(o);
    fill(h);
    ask(h, 450);
    h.step();
    ask(h, 0);
    const RequestId last = ask(h, 750);
    const Scheduler& scheduler = h.core().scheduler();
    EXPECT_EQ(scheduler.work_ahead(*scheduler.find(last)).waiting, 0) << "the first is found below";
    h.run();
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Copying that takes longer than computing is the sooner one where the card has others' prompts to compute first.
TEST(DiskTier, IsReadWhereComputingWouldWaitForTheCard) {
  enum class Others { kNone, kRun, kWait };
  for (const Others others : {Others::kNone, Others::kRun, Others::kWait}) {
    HarnessOptions o = with_disk(0);
    o.num_blocks = 128;
    o.num_disk_blocks = 300;
    o.max_context_tokens = 1000;
    o.max_step_tokens = 64;
    o.max_prefill_chunk_tokens = 32;
    o.both_ends = BothEnds::kNever;
    const double read_us = 159 * 8.0;  // of 8 us a token
    o.costs = {.transfer_us = 0,
               .disk_bytes_per_s = 64e6 / 8,
               .flops_per_s = 1e12,
               .flops_per_token = 4e6,  // 4 us
               .flops_per_token_pair = 0,
               .step_us = 0};
    Harness h(o);
    for (const int32_t first : {0, 100, 200, 300, 400, 500, 600}) {
      ask(h, first);
      h.run();
    }
    if (others == Others::kRun) {
      h.submit(ids(600, 700), Harness::greedy(2), {});
      h.step();
    }
    const RequestId again = ask(h, 0);
    if (others == Others::kWait)
      for (const int32_t first : {850, 900}) ask(h, first);
    h.step();
    const Sequence& s = first_of(h, again);
    EXPECT_EQ(s.copying, others != Others::kNone)
        << "computed in " << read_us / 2 << " us, or behind " << 600 * 4.0;
    h.run();
    h.expect_greedy(again);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// What each of them puts out is not published: what there is to be written is there with the prompt's end.
TEST(TiersUnderLoad, ThePromptOfBeamsIsWrittenWhenItHasRun) {
  Harness h(two_tiers());
  SamplingParams beams = Harness::greedy(6);
  beams.beam_width = 2;
  const RequestId id = h.submit(ids(40), beams);
  while (!h.core().scheduler().find(id)->forked) ASSERT_TRUE(h.step());
  EXPECT_EQ(h.core().scheduler().transfers().size(), 1);
  h.run();
  EXPECT_EQ(counters(h).host.writes, 5);
  EXPECT_EQ(tier(h, CacheTier::kHost).num_cached(), 5);
  h.expect_sound();
  h.expect_all_ended();
}

}  // namespace
}  // namespace quire
