// Requests of several sequences give way, and come back, as one: what they share is free only once all have gone.
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

}  // namespace
}  // namespace quire
