// Beside a reader that has stopped and keeps what it has (its policy would keep other tokens if it ran again, and the host has no
// room) nobody may spin for its blocks, nobody else waits in vain, and nothing is kept free that nobody could use.
#include "tests/unit/schedule_group_rig.h"

namespace quire {
namespace {

// One beam comes back, all of it from the cache, and finds no room for its next token, nor its sibling for itself.
TEST(Groups, BeamsThatOnlyHaveEachOthersBlocksWaitForTheReader) {
  int64_t waits = 0;
  for (int32_t prompt = 24; prompt <= 64; prompt += 4) {
    Harness h(tight());
    const RequestId reader = submit_paused(h);
    const RequestId id = h.submit(ids(prompt), beams(2, 40));
    ASSERT_NE(id, 0) << h.last_refusal().message;
    step_until_still(h);
    waits += states_of(h, id).running == 2 ? 1 : 0;
    EXPECT_EQ(h.core().scheduler().counters().preemptions, 0)
        << prompt << " tokens: they gave way to themselves";
    h.core().set_paused(reader, false);
    h.run();
    EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength) << prompt << " tokens";
    h.expect_greedy(reader);
    h.expect_sound();
    h.expect_all_ended();
  }
  EXPECT_GT(waits, 0);
}

// It has no room for its next token beside the paused reader: giving way would bring it nothing, but one of a higher
// priority waits, and has room then.
TEST(Groups, WhoWaitsForTheReaderGivesWayToWhomComesBefore) {
  Harness h(tight());
  const RequestId reader = submit_paused(h);
  const RequestId id = h.submit(ids(60), Harness::greedy(100));
  step_until_still(h);
  EXPECT_EQ(states_of(h, id).running, 1) << "it gave way to itself";
  CoreRequest first;
  first.priority = -1;
  const RequestId before = h.submit(ids(40, 600), Harness::greedy(20), first);
  step_until_still(h);
  EXPECT_EQ(h.record(before).num_ends, 1);
  EXPECT_EQ(h.record(id).num_ends, 0);
  h.core().set_paused(reader, false);
  h.run();
  for (const RequestId each : {reader, id, before}) h.expect_greedy(each);
  h.expect_sound();
  h.expect_all_ended();
}

// All of them need a block at once, none is left, and nobody but them could use what all have.
TEST(Groups, SamplesBesideAReaderThatStoppedMakeRoomForEachOther) {
  HarnessOptions o = tight("recompute");
  o.prefix_cache = false;
  Harness h(o);
  const RequestId reader = submit_paused(h, 13);
  const RequestId id = h.submit(ids(40), samples(3, 30));
  step_until_still(h);
  EXPECT_EQ(h.record(id).num_ends, 1);
  EXPECT_GT(h.core().scheduler().counters().preemptions, 0);
  h.core().set_paused(reader, false);
  h.run();
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// What those who run may generate is kept free of others. Beside a reader that has stopped nobody would use it.
TEST(Groups, BesideAReaderThatStoppedWhatMayFollowIsNotKeptFree) {
  const RetentionKind window = RetentionKind::kWindow;
  for (const PolicySpec& policy : {PolicySpec{}, PolicySpec{.kind = window, .window = 60}}) {
    HarnessOptions o = tight();
    o.reserve = {.least = 1, .rise = 0, .decay = 0};
    Harness h(o);
    const RequestId reader = submit_paused(h, 4);
    CoreRequest under;
    under.policy = policy;
    const RequestId id = h.submit(ids(40), Harness::greedy(110), under);
    step_until_still(h);
    EXPECT_EQ(h.record(id).num_ends, 1) << to_string(policy);
    const RequestId later = h.submit(ids(60), Harness::greedy(80), under);
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(h.step());
    h.core().set_paused(reader, false);
    h.run();
    EXPECT_EQ(h.record(reader).end.finish, FinishReason::kLength) << "it had its room back";
    EXPECT_EQ(h.record(later).end.finish, FinishReason::kLength);
    h.expect_greedy(reader);
    if (policy.kind == RetentionKind::kKeepAll) h.expect_greedy(id);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// A reserve that keeps whatever it has risen to.
HarnessOptions with_reserve() {
  HarnessOptions o = tight("recompute");
  o.reserve = {.least = 0.1, .rise = 0.2, .decay = 0};
  return o;
}

// Nothing was kept free for the reader that reads on, and whoever gives way to it was let in at that price.
TEST(Groups, WhoGivesWayToAReaderThatReadsOnSaysNothingAboutTheReserve) {
  Harness h(with_reserve());
  const RequestId reader = h.submit(ids(90, 300), Harness::greedy(90));
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(h.step());
  h.core().set_paused(reader, true);
  const RequestId id = h.submit(ids(40), Harness::greedy(110));
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(h.step());
  h.core().set_paused(reader, false);
  step_until_out(h, id);
  EXPECT_EQ(states_of(h, reader).running, 1);
  EXPECT_EQ(h.core().scheduler().reserve_ratio(), 0.1);
  h.run();
  h.expect_greedy(reader);
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// Whether the other waits for its room, or runs beside it and grows.
TEST(Groups, AReaderThatStoppedAndGivesWaySaysNothingAboutTheReserve) {
  for (const int32_t prompt : {120, 40}) {
    Harness h(with_reserve());
    const RequestId reader = h.submit(ids(90, 300), Harness::greedy(90));
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(h.step());
    h.core().set_paused(reader, true);
    const RequestId id = h.submit(ids(prompt), Harness::greedy(160 - prompt));
    step_until_out(h, reader);
    EXPECT_EQ(h.core().scheduler().reserve_ratio(), 0.1) << "beside a prompt of " << prompt;
    h.core().set_paused(reader, false);
    h.run();
    h.expect_greedy(reader);
    h.expect_greedy(id);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(Groups, WhoGivesWayToOneThatWasPromisedRoomRaisesTheReserve) {
  Harness h(with_reserve());
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(110));
  const RequestId second = h.submit(ids(40), Harness::greedy(110));
  step_until_out(h, second);
  EXPECT_DOUBLE_EQ(h.core().scheduler().reserve_ratio(), 0.3);
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(second);
  h.expect_sound();
  h.expect_all_ended();
}

// Under a policy that lets nobody take its blocks back it would hold the reader up for ever.
TEST(Groups, WhoCannotGiveWayComesInOnlyWhereBothCanEnd) {
  Harness h(tight());
  const RequestId reader = h.submit(ids(90, 300), Harness::greedy(60), under_h2o());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(h.step());
  h.core().set_paused(reader, true);
  // Twelve blocks are free: enough for it alone, with eleven, but the reader may ask for seven more meanwhile.
  const RequestId id = h.submit(ids(40), Harness::greedy(40), under_h2o());
  step_until_still(h);
  EXPECT_EQ(h.record(id).sequences[0].tokens.size(), 0u) << "neither could end once the reader goes on";
  h.core().set_paused(reader, false);
  h.run();
  EXPECT_EQ(h.record(reader).end.finish, FinishReason::kLength);
  EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength);
  h.expect_sound();
  h.expect_all_ended();
}

// One of two beams has room beside the reader, both have not: alone it could do nothing but keep the room of those behind.
TEST(Groups, BeamsComeInBesideAReaderThatStoppedOnlyWhereAllHaveRoom) {
  HarnessOptions o = tight("recompute");
  o.prefix_cache = false;
  Harness h(o);
  CoreRequest low;
  low.priority = 1;
  const RequestId reader = h.submit(ids(60, 300), Harness::greedy(96), under_h2o());
  const RequestId two = h.submit(ids(8), beams(2, 76), low);
  step_until_out(h, two);
  h.core().set_paused(reader, true);
  step_until_still(h);
  EXPECT_EQ(states_of(h, two).running, 0);
  const RequestId behind = h.submit(ids(24, 600), Harness::greedy(8), low);
  step_until_still(h);
  EXPECT_EQ(h.record(behind).num_ends, 1);
  EXPECT_EQ(h.record(two).num_ends, 0);
  h.core().set_paused(reader, false);
  h.run();
  EXPECT_EQ(h.record(two).end.finish, FinishReason::kLength);
  h.expect_greedy(behind);
  h.expect_sound();
  h.expect_all_ended();
}

// Four slots, of which the reader keeps one: who needs all of them waits for it, those behind do not.
TEST(Groups, WhoWaitsForTheSlotOfAReaderThatStoppedHoldsNobodyUp) {
  HarnessOptions o;
  o.max_sequences = 4;
  Harness h(o);
  const RequestId reader = submit_paused(h, 2);
  h.clock().advance_us(300'000);
  const RequestId four = h.submit(ids(20), samples(4, 10));
  std::vector<RequestId> behind;
  for (int32_t i = 0; i < 8; ++i) behind.push_back(h.submit(ids(20, 400 + 30 * i), Harness::greedy(10)));
  step_until_still(h);
  for (const RequestId id : behind) EXPECT_EQ(h.record(id).num_ends, 1);
  EXPECT_EQ(h.record(four).num_ends, 0);
  h.core().set_paused(reader, false);
  const RequestId later = h.submit(ids(20, 900), Harness::greedy(40));
  while (h.record(four).num_ends == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(h.record(later).num_ends, 0) << "it stands in line again, in front";
  h.run();
  h.expect_greedy(four);
  h.expect_sound();
  h.expect_all_ended();
}

// Nobody lacks room: of what it has computed it keeps all whole blocks, also where there is no more than these.
TEST(Groups, AReaderThatStoppedGivesItsSlotAndNoBlock) {
  int whole = 0;
  for (int32_t tokens = 1; tokens <= 20; ++tokens) {
    HarnessOptions o = tight();
    o.max_sequences = 1;
    Harness h(o);
    const RequestId reader = h.submit(ids(21), Harness::greedy(60));
    const Sequence& s = *h.core().scheduler().find(reader)->sequences.front();
    while (s.num_output_tokens() < tokens) ASSERT_TRUE(h.step());
    h.core().set_paused(reader, true);
    step_until_still(h);
    const int32_t computed = s.num_computed;
    whole += computed % 8 == 0 ? 1 : 0;
    h.clock().advance_us(300'000);
    const RequestId other = h.submit(ids(10, 300), Harness::greedy(5));
    while (h.record(other).num_ends == 0) ASSERT_TRUE(h.step());
    EXPECT_EQ(s.state, SequenceState::kPreempted);
    EXPECT_EQ(s.table.num_blocks(), computed / 8) << computed << " tokens computed";
    h.core().set_paused(reader, false);
    h.run();
    h.expect_greedy(reader);
    h.expect_sound();
    h.expect_all_ended();
  }
  EXPECT_GT(whole, 0);
}

// Likewise for room, whether it waits for the first time or has given way; and it is there for a cancel.
TEST(Groups, WhoFindsTooLittleRoomBesideAReaderThatStoppedHoldsNobodyUp) {
  for (const bool ran : {false, true}) {
    Harness h(tight("recompute"));
    RequestId large = ran ? h.submit(ids(100), Harness::greedy(60)) : 0;
    const RequestId first = ran ? h.submit(ids(30, 800), Harness::greedy(10)) : 0;
    if (ran) {
      while (h.record(large).sequences[0].tokens.size() < 20) ASSERT_TRUE(h.step());
      h.core().set_paused(large, true);
    }
    const RequestId reader = h.submit(ids(90, 300), Harness::greedy(5), under_h2o());
    while (h.record(reader).sequences[0].tokens.empty()) ASSERT_TRUE(h.step());
    h.core().set_paused(reader, true);
    if (ran) {
      step_until_still(h);
      EXPECT_EQ(states_of(h, large).preempted, 1) << "the reader took its room";
      EXPECT_EQ(h.record(first).num_ends, 1);
      h.core().set_paused(large, false);
    } else {
      large = h.submit(ids(110), Harness::greedy(60));
    }
    const RequestId small = h.submit(ids(30, 600), Harness::greedy(10));
    step_until_still(h);
    EXPECT_EQ(h.record(small).num_ends, 1) << (ran ? "behind one that had given way" : "behind a new one");
    EXPECT_EQ(h.record(large).num_ends, 0);
    const RequestId cancelled = h.submit(ids(110, 200), Harness::greedy(60));
    step_until_still(h);
    h.abort(cancelled);
    h.core().set_paused(reader, false);
    h.run();
    EXPECT_EQ(h.record(large).end.finish, FinishReason::kLength);
    h.expect_greedy(large);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// It stops reading while the samples that went for it are out: what kept them out does so no more.
TEST(Groups, SwappedSamplesComeBackWhenTheReaderBesideThemPauses) {
  for (int steps = 2; steps < 60; ++steps) {
    Harness h(tight("swap", 12));
    const RequestId reader = h.submit(ids(72, 300), Harness::greedy(39), under_h2o());
    const RequestId id = h.submit(ids(40), samples(4, 30));
    for (int i = 0; i < steps; ++i) h.step();
    h.core().set_paused(reader, true);
    for (int i = 0; i < 4000 && h.core().scheduler().find(id) != nullptr; ++i)
      if (!h.step()) break;
    EXPECT_EQ(h.record(id).num_ends, 1) << "paused after " << steps << " steps";
    h.core().set_paused(reader, false);
    h.run();
    h.expect_greedy(id);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// Of its prompt it has a few blocks still, and runs none of it again: beside a reader that keeps what it has it asks for those and
// the next, not for a whole prompt.
TEST(Groups, AWindowThatComesBackAsksForNoMoreThanItsWindow) {
  for (const bool prefix_cache : {false, true}) {
    HarnessOptions o = tight("swap", 4);
    o.prefix_cache = prefix_cache;
    Harness h(o);
    CoreRequest window;
    window.policy = {.kind = RetentionKind::kWindow, .window = 16};
    const RequestId id = h.submit(ids(100), Harness::greedy(60), window);
    for (int i = 0; i < 6; ++i) ASSERT_TRUE(h.step());
    h.core().set_paused(id, true);
    h.submit(ids(160, 500), Harness::greedy(20));  // takes all there is
    step_until_still(h);
    ASSERT_EQ(states_of(h, id).preempted, 1);
    ASSERT_EQ(h.core().scheduler().counters().swap_outs, 1);
    const RequestId reader = submit_paused(h, 16);
    h.core().set_paused(id, false);
    step_until_still(h);
    EXPECT_EQ(h.record(id).num_ends, 1) << "8 blocks are free; it waits for the reader";
    h.core().set_paused(reader, false);
    h.run();
    h.expect_greedy(reader);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// What a sample that is out will take when it follows is kept free for it, until its reader stops: whoever waits for that room
// hears of it, though others run.
TEST(Groups, WhoWaitsForRoomHearsThatAReaderHasStopped) {
  HarnessOptions o = tight("recompute");
  o.prefix_cache = false;
  Harness h(o);
  const RequestId runs = h.submit(ids(72, 300), Harness::greedy(12), under_h2o());
  for (int i = 0; i < 2; ++i) h.step();
  h.core().set_paused(runs, true);
  const RequestId stops = h.submit(ids(40), samples(2, 60));
  step_until_out(h, stops);
  CoreRequest first;
  first.priority = -1;
  const RequestId waits = h.submit(ids(4, 600), Harness::greedy(2), first);
  const auto is_outside = [&] {
    const SequenceGroup* group = h.core().scheduler().find(waits);
    return group != nullptr && group->state == GroupState::kWaiting;
  };
  h.core().set_paused(runs, false);
  for (int i = 0; i < 3; ++i) h.step();
  EXPECT_TRUE(is_outside());
  h.core().set_paused(stops, true);
  for (int i = 0; i < 3; ++i) h.step();
  EXPECT_FALSE(is_outside());
  EXPECT_EQ(h.record(runs).num_ends, 0) << "its end would have told";
  h.core().set_paused(stops, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

// Else the next reader that stops would keep its room from whoever stood aside for it, and so on.
TEST(Groups, WhoCouldNotGiveWayAgainPassesNobodyWhoStandsAside) {
  Harness h(tight());
  const RequestId reader = submit_paused(h);
  const RequestId too_long = h.submit(ids(110, 500), Harness::greedy(4));
  CoreRequest tova;
  tova.policy = *parse_policy("tova:budget=16");
  const RequestId keeps = h.submit(ids(12, 700), Harness::greedy(4), tova);
  const RequestId passes = h.submit(ids(12, 800), Harness::greedy(4));
  for (int i = 0; i < 4000 && h.step(); ++i) {
  }
  EXPECT_EQ(h.record(passes).num_ends, 1);
  EXPECT_EQ(h.record(too_long).num_ends, 0);
  EXPECT_EQ(h.record(keeps).num_ends, 0);
  h.core().set_paused(reader, false);
  h.run();
  h.expect_greedy(too_long);
  h.expect_sound();
  h.expect_all_ended();
}

}  // namespace
}  // namespace quire
