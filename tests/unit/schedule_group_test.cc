// Requests of several sequences give way, and come back, as one: what they share is free only once all have gone.
#include <tuple>

#include "src/policy/policy_spec.h"
#include "tests/property/engine_harness.h"

namespace quire {
namespace {

std::vector<TokenId> ids(int32_t count, int32_t first = 0) {
  std::vector<TokenId> v;
  for (int32_t i = 0; i < count; ++i) v.push_back((first + i) % 1000);
  return v;
}

// 24 blocks of 8, over-committed as far as it goes.
HarnessOptions tight(const char* mode) {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_swap_blocks = 24;
  o.preemption_mode = mode;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
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

SamplingParams samples(int32_t n, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.n = n;
  return p;
}

class GiveWay : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Groups, GiveWay, testing::Values("swap", "recompute", "auto"));

TEST_P(GiveWay, SamplesOfOneRequestDoAsOne) {
  Harness h(tight(GetParam()));
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(100));
  const RequestId id = h.submit(ids(64), samples(3, 40));
  int64_t times = 0;
  bool out = false;
  while (h.step() || h.core().wait_for_copy()) {
    const States now = states_of(h, id);
    const bool runs_alone = h.core().scheduler().find(first) == nullptr;
    if (runs_alone) break;
    if (now.preempted > 0 && !out) {
      EXPECT_EQ(now.running, 0) << "some run on where others could use what they share";
    }
    times += now.preempted > 0 && !out ? 1 : 0;
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
  Harness h(tight("swap"));
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(100));
  const RequestId id = h.submit(ids(64), samples(3, 40));
  while (states_of(h, id).preempted == 0) ASSERT_TRUE(h.step() || h.core().wait_for_copy());
  EXPECT_EQ(h.core().scheduler().counters().swap_outs, 3);
  EXPECT_LT(h.core().cache().swap_pool().num_held(), 3 * 9) << "what they share is on the host once";
  while (states_of(h, id).running == 0) ASSERT_TRUE(h.step() || h.core().wait_for_copy());
  EXPECT_EQ(states_of(h, id).running, 3);
  h.run();
  h.expect_greedy(first);
  h.expect_greedy(id);
  h.expect_all_ended();
}

bool some_out(Harness& h, RequestId id) {
  return states_of(h, id).preempted > 0;
}

// The reader of what runs beside stops. What waits gets the samples' blocks, and nothing of the prompt that they share
// stands on the host more than once.
TEST(Groups, PausedSamplesGiveWayAsOneToWhoWaits) {
  HarnessOptions o = tight("swap");
  o.num_swap_blocks = 40;
  Harness h(o);
  const RequestId id = h.submit(ids(64), samples(3, 36));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(h.step());
  h.core().set_paused(id, true);
  while (h.core().scheduler().num_in_flight() > 0) h.step();
  const int64_t held = h.core().cache().num_held();
  const RequestId waits = h.submit(ids(150, 300), Harness::greedy(20));
  while (!some_out(h, id)) ASSERT_TRUE(h.step());
  EXPECT_EQ(states_of(h, id).running, 0);
  EXPECT_LE(h.core().cache().swap_pool().num_held(), held) << "what they share leaves once";
  h.core().set_paused(id, false);
  h.run();
  h.expect_greedy(id);
  h.expect_greedy(waits);
  h.expect_sound();
  h.expect_all_ended();
}

// A paused reader's list cannot be had again, and stays. Samples that are out beside it come in one by one as they find
// room: nobody but them could use it.
TEST_P(GiveWay, SamplesEndBesideAPausedReaderThatKeepsWhatItHas) {
  for (const auto& [n, prompt, outputs] : {std::tuple(4, 40, 30), std::tuple(3, 40, 30)}) {
    HarnessOptions o = tight(GetParam());
    o.num_swap_blocks = 12;  // not enough for the reader's
    Harness h(o);
    CoreRequest h2o;
    h2o.policy = *parse_policy("h2o:heavy=100,recent=90");
    const RequestId reader = h.submit(ids(14 * 8 - 6, 300), Harness::greedy(5), h2o);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(h.step());
    h.core().set_paused(reader, true);
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

// It stops reading while the samples that went for it are out: what kept them out does so no more.
TEST(Groups, SwappedSamplesComeBackWhenTheReaderBesideThemPauses) {
  for (int steps = 2; steps < 60; ++steps) {
    HarnessOptions o = tight("swap");
    o.num_swap_blocks = 12;
    Harness h(o);
    CoreRequest h2o;
    h2o.policy = *parse_policy("h2o:heavy=100,recent=90");
    const RequestId reader = h.submit(ids(72, 300), Harness::greedy(39), h2o);
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

}  // namespace
}  // namespace quire
