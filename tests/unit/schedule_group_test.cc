// Requests of several sequences beside a reader that has stopped and keeps what it has: its policy would keep other
// tokens if it ran again, and the host has no room. Nobody may spin for its blocks, and nobody else waits in vain.
#include "src/policy/policy_spec.h"
#include "tests/property/engine_harness.h"

namespace quire {
namespace {

std::vector<TokenId> ids(int32_t count, int32_t first = 0) {
  std::vector<TokenId> v;
  for (int32_t i = 0; i < count; ++i) v.push_back((first + i) % 1000);
  return v;
}

// 24 blocks of 8, over-committed as far as it goes; nothing can be swapped.
HarnessOptions tight() {
  HarnessOptions o;
  o.num_blocks = 24;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

// A reader that holds 12 blocks and reads no more.
RequestId submit_paused(Harness& h) {
  CoreRequest h2o;
  h2o.policy = *parse_policy("h2o:heavy=100,recent=90");
  const RequestId reader = h.submit(ids(12 * 8 - 6, 300), Harness::greedy(5), h2o);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(h.step());
  h.core().set_paused(reader, true);
  return reader;
}

SamplingParams beams(int32_t width, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.beam_width = width;
  return p;
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

}  // namespace
}  // namespace quire
