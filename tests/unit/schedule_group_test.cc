// Requests of several sequences give way and come back as one: what they share is free only once all have gone. Beside a
// reader that has stopped and keeps what it has (its policy would keep other tokens if it ran again, and the host has no
// room) nobody may spin for its blocks, and nobody else waits in vain.
#include <tuple>

#include "src/policy/policy_spec.h"
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

// 24 blocks of 8, over-committed as far as it goes.
HarnessOptions tight(const char* mode = "auto", int32_t num_swap_blocks = 0) {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_swap_blocks = num_swap_blocks;
  o.preemption_mode = mode;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

CoreRequest under_h2o() {
  CoreRequest h2o;
  h2o.policy = *parse_policy("h2o:heavy=100,recent=90");
  return h2o;
}

// A reader that holds so many blocks and reads no more.
RequestId submit_paused(Harness& h, int32_t num_blocks = 12) {
  const RequestId reader = h.submit(ids(num_blocks * 8 - 6, 300), Harness::greedy(5), under_h2o());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(h.step());
  h.core().set_paused(reader, true);
  return reader;
}

SamplingParams beams(int32_t width, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.beam_width = width;
  return p;
}

SamplingParams samples(int32_t n, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.n = n;
  return p;
}

struct States {
  int running = 0, preempted = 0;
};

States states_of(Harness& h, RequestId id) {
  States states;
  if (const SequenceGroup* group = h.core().scheduler().find(id))
    for (const auto& s : group->sequences) {
      states.running += s->running() ? 1 : 0;
      states.preempted += s->state == SequenceState::kPreempted ? 1 : 0;
    }
  return states;
}

void step_until_out(Harness& h, RequestId id) {
  while (states_of(h, id).preempted == 0) ASSERT_TRUE(h.step());
}

void step_until_still(Harness& h) {
  for (int i = 0; i < 4000 && h.step(); ++i) {
  }
}

// One beam comes back, all of it from the cache, and finds no room for its next token, nor its sibling for itself.
TEST(Groups, BeamsThatOnlyHaveEachOthersBlocksWaitForTheReader) {
  int64_t waits = 0;
  for (int32_t prompt = 24; prompt <= 64; prompt += 4) {
    Harness h(tight());
    const RequestId reader = submit_paused(h);
    const RequestId id = h.submit(ids(prompt), beams(2, 40));
    ASSERT_NE(id, 0) << h.last_refusal().message;
    step_until_still(h);
    waits += h.core().scheduler().find(id) != nullptr ? 1 : 0;
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
  EXPECT_NE(h.core().scheduler().find(id), nullptr);
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

class GiveWay : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Groups, GiveWay, testing::Values("swap", "recompute", "auto"));

TEST_P(GiveWay, SamplesOfOneRequestDoAsOne) {
  Harness h(tight(GetParam(), 24));
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(100));
  const RequestId id = h.submit(ids(64), samples(3, 40));
  int64_t times = 0;
  bool out = false;
  while (h.step() && h.core().scheduler().find(first) != nullptr) {
    const States now = states_of(h, id);
    if (now.preempted > 0 && !out) {
      EXPECT_EQ(now.running, 0) << "some run on where others could use what they share";
      ++times;
    }
    out = now.preempted > 0;
  }
  EXPECT_GT(times, 0);
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Groups, SwappedSamplesComeBackAsOneAndTheirPromptOnce) {
  Harness h(tight("swap", 24));
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(100));
  const RequestId id = h.submit(ids(64), samples(3, 40));
  step_until_out(h, id);
  EXPECT_EQ(h.core().scheduler().counters().swap_outs, 3);
  EXPECT_LT(h.core().cache().swap_pool().num_held(), 3 * 9) << "what they share is on the host once";
  while (states_of(h, id).running == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(states_of(h, id).running, 3);
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(id);
  h.expect_all_ended();
}

// Swap is dear here, and a few blocks are enough: the last samples lose theirs, and all keep whole blocks of the rest.
TEST(Groups, SamplesThatDropTheirTailsKeepAsMuchAsOthersNeedNot) {
  HarnessOptions o = tight();
  o.num_blocks = 30;
  o.prefix_cache = false;
  Harness h(o);
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(120));
  const RequestId id = h.submit(ids(64), samples(3, 40));
  step_until_out(h, id);
  EXPECT_EQ(h.core().scheduler().counters().tail_drops, 3);
  const SequenceGroup& group = *h.core().scheduler().find(id);
  int32_t most = 0, total = 0;
  for (const auto& s : group.sequences) {
    EXPECT_GE(s->table.length(), 64) << "the prompt is shared: it would free nothing";
    EXPECT_EQ(s->table.length(), s->num_computed);
    most = std::max(most, s->num_tokens() - 1);
    total += s->table.length();
  }
  EXPECT_GE(group.sequences.front()->table.length(), most / 8 * 8) << "the last loses its blocks first";
  EXPECT_GE(total, 3 * 64 + 8);
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// Who runs beside them cannot give way. Its list does not grow, and what they wait for is only theirs.
TEST(Groups, SamplesThatWaitKeepTheirHeadsFromEachOther) {
  HarnessOptions o = tight();
  o.prefix_cache = false;
  Harness h(o);
  CoreRequest short_list;
  short_list.policy = *parse_policy("h2o:heavy=16,recent=16");
  const RequestId beside = h.submit(ids(60, 300), Harness::greedy(130), short_list);
  const RequestId id = h.submit(ids(40), samples(3, 40));
  step_until_out(h, id);
  const auto kept_tokens = [&] {
    int32_t kept = 0;
    for (const auto& s : h.core().scheduler().find(id)->sequences) kept += s->table.length();
    return kept;
  };
  const int32_t kept = kept_tokens();
  EXPECT_EQ(kept, 3 * 72 - 8) << "a block is enough";
  int steps = 0;
  for (; h.core().scheduler().find(beside) != nullptr && states_of(h, id).running == 0; ++steps) {
    ASSERT_EQ(kept_tokens(), kept) << "one lost some for another that did not come in";
    ASSERT_TRUE(h.step());
  }
  EXPECT_GT(steps, 20);
  h.run();
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// It comes first, and has to give way: who runs beside it cannot.
TEST(Groups, SamplesThatAreFirstInOrderGiveWayAsOneToo) {
  HarnessOptions o = tight("recompute");
  o.num_blocks = 32;
  o.prefix_cache = false;
  Harness h(o);
  const RequestId id = h.submit(ids(40), samples(3, 40));
  ASSERT_TRUE(h.step());
  const RequestId beside = h.submit(ids(64, 300), Harness::greedy(60), under_h2o());
  step_until_out(h, id);
  EXPECT_EQ(states_of(h, id).preempted, 3);
  EXPECT_EQ(states_of(h, beside).running, 1);
  h.run();
  h.expect_greedy(id);
  h.expect_sound();
  h.expect_all_ended();
}

// One of four runs the prompt again, the others wait to share it. Their reader had stopped, and somebody needed all
// that they had.
RequestId submit_and_have_one_back(Harness& h) {
  const RequestId id = h.submit(ids(64), samples(4, 48));
  while (h.core().scheduler().counters().output_tokens < 4 * 40) EXPECT_TRUE(h.step());
  h.core().set_paused(id, true);
  for (int i = 0; i < 4; ++i) h.step();
  h.clock().advance_us(300'000);
  const RequestId between = h.submit(ids(270, 300), Harness::greedy(8));
  while (h.record(between).num_ends == 0) EXPECT_TRUE(h.step());
  EXPECT_EQ(states_of(h, id).preempted, 4);
  h.core().set_paused(id, false);
  EXPECT_TRUE(h.step());
  EXPECT_EQ(states_of(h, id).running, 1);
  return id;
}

HarnessOptions slow_prompts() {
  HarnessOptions o = tight("recompute");
  o.num_blocks = 40;
  o.max_context_tokens = 300;
  o.prefix_cache = false;
  o.max_prefill_chunk_tokens = 8;
  return o;
}

TEST(Groups, TheRoomOfThoseThatFollowIsKeptForThem) {
  Harness h(slow_prompts());
  const RequestId id = submit_and_have_one_back(h);
  const RequestId later = h.submit(ids(120, 500), Harness::greedy(8));
  while (states_of(h, id).running < 4) {
    ASSERT_TRUE(h.step());
    ASSERT_EQ(states_of(h, later).running, 0);
  }
  h.run();
  h.expect_greedy(id);
  h.expect_greedy(later);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Groups, TheSlotsOfThoseThatFollowAreKeptForThem) {
  HarnessOptions o = slow_prompts();
  o.max_sequences = 4;
  Harness h(o);
  const RequestId id = submit_and_have_one_back(h);
  const RequestId later = h.submit(ids(20, 500), Harness::greedy(60));
  while (states_of(h, id).running < 4) {
    ASSERT_TRUE(h.step());
    ASSERT_EQ(states_of(h, later).running, 0);
  }
  h.run();
  h.expect_greedy(id);
  h.expect_greedy(later);
  h.expect_sound();
  h.expect_all_ended();
}

// What waits gets the blocks of all of them, and nothing of the prompt that they share is on the host twice.
TEST(Groups, PausedSamplesGiveWayAsOneToWhoWaits) {
  Harness h(tight("swap", 40));
  const RequestId id = h.submit(ids(64), samples(3, 36));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(h.step());
  h.core().set_paused(id, true);
  while (h.core().scheduler().num_in_flight() > 0) h.step();
  const int64_t held = h.core().cache().num_held();
  const RequestId waits = h.submit(ids(150, 300), Harness::greedy(20));
  step_until_out(h, id);
  EXPECT_EQ(states_of(h, id).running, 0);
  EXPECT_LE(h.core().cache().swap_pool().num_held(), held) << "what they share leaves once";
  h.core().set_paused(id, false);
  h.run();
  h.expect_greedy(id);
  h.expect_greedy(waits);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Groups, SamplesOfAReaderThatStoppedGiveTheirSlotsAsOneAndTakeThemBackAsOne) {
  HarnessOptions o;
  o.max_sequences = 4;
  Harness h(o);
  const RequestId id = h.submit(ids(20), samples(3, 30));
  const RequestId beside = h.submit(ids(20, 300), Harness::greedy(60));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(h.step());
  h.core().set_paused(id, true);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(h.step());
  h.clock().advance_us(300'000);
  const RequestId waits = h.submit(ids(20, 600), Harness::greedy(20));
  step_until_out(h, id);
  EXPECT_EQ(states_of(h, id).preempted, 3);
  h.core().set_paused(id, false);
  const RequestId later = h.submit(ids(20, 800), Harness::greedy(20));
  while (states_of(h, id).running == 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(states_of(h, later).running, 0) << "it comes after all three";
  EXPECT_EQ(states_of(h, waits).running, 0) << "two slots are not enough";
  h.run();
  for (const RequestId each : {id, beside, waits, later}) h.expect_greedy(each);
  h.expect_sound();
  h.expect_all_ended();
}

// A paused reader's list cannot be had again, and stays. Samples that are out beside it come in one by one as they find
// room: nobody but them could use it.
TEST_P(GiveWay, SamplesEndBesideAPausedReaderThatKeepsWhatItHas) {
  for (const auto& [n, prompt, outputs] : {std::tuple(4, 40, 30), std::tuple(3, 40, 30)}) {
    Harness h(tight(GetParam(), 12));  // not enough for the reader's
    const RequestId reader = submit_paused(h, 14);
    const RequestId id = h.submit(ids(prompt), samples(n, outputs));
    for (int i = 0; i < 4000 && h.core().scheduler().find(id) != nullptr; ++i)
      if (!h.step()) break;
    EXPECT_EQ(states_of(h, id).preempted, 0) << n << " samples";
    EXPECT_EQ(h.record(id).num_ends, 1) << n << " samples";
    h.core().set_paused(reader, false);
    h.run();
    h.expect_greedy(id);
    h.expect_sound();
    h.expect_all_ended();
  }
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

// They come back alone, share all that they have, and each needs a block more; the rest is held by a copy that hangs. Who
// gave way would come back to the same blocks.
TEST(Groups, SamplesThatShareAllBesideACopyThatHangsFailAndSayWhy) {
  constexpr int64_t kAnHourUs = 3'600'000'000;
  HarnessOptions o = tight();
  o.num_disk_blocks = 100;
  Harness h(o);
  for (const int32_t first : {0, 300, 600}) {
    h.submit(ids(168, first), Harness::greedy(2));
    h.run();
  }
  h.submit(ids(16, 900), Harness::greedy(20));
  h.run();  // the disk has what they will compute, and nothing is written when they go
  const RequestId id = h.submit(ids(16, 900), samples(2, 20));
  while (states_of(h, id).running < 2 || h.record(id).sequences[1].tokens.size() < 10) ASSERT_TRUE(h.step());
  h.core().set_paused(id, true);
  int64_t hang_us = kAnHourUs;
  h.mover().set_disk_hang([&] { return std::exchange(hang_us, 0); });
  const RequestId hangs = h.submit(ids(168), Harness::greedy(2));
  while (hang_us > 0) ASSERT_TRUE(h.step());
  h.abort(hangs);
  h.clock().advance_us(kLongestTierWaitUs);
  while (h.core().step()) {
  }
  ASSERT_EQ(h.core().scheduler().transfers().num_overdue(), 1);
  ASSERT_EQ(states_of(h, id).preempted, 2);
  h.core().set_paused(id, false);
  while (h.core().step()) {
  }
  h.collect();
  EXPECT_EQ(h.record(id).end.finish, FinishReason::kFailed);
  ASSERT_TRUE(h.record(id).sequences[0].error.has_value());
  EXPECT_NE(h.record(id).sequences[0].error->message.find("do not return"), std::string::npos);
  h.clock().advance_us(kAnHourUs);
  h.run();
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

// The step in which a sample copies the tail that it shares fails: whether the copy was made nobody knows, so what the sample
// leaves behind is no prefix for others.
TEST(Groups, ATailWhoseCopyFailedIsNotPublished) {
  HarnessOptions o;
  Harness h(o);
  bool fails = true;
  h.executor().set_copy_fault([&] { return FakeExecutor::CopyFault{.fails = std::exchange(fails, false)}; });
  const RequestId id = h.submit(ids(12), samples(2, 5));
  h.run();
  ASSERT_FALSE(fails);
  EXPECT_EQ(h.record(id).end.finish, FinishReason::kFailed);
  const RequestId again = h.submit(ids(13), Harness::greedy(5));
  h.run();
  h.expect_greedy(again);
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
