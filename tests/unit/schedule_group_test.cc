// Requests of several sequences give way and come back as one: what they share is free only once all have gone.
#include <tuple>

#include "tests/unit/schedule_group_rig.h"

namespace quire {
namespace {

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
  EXPECT_NE(h.record(id).sequences[0].error->message.find("have not returned"), std::string::npos);
  h.clock().advance_us(kAnHourUs);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
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

}  // namespace
}  // namespace quire
