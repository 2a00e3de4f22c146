// A prefix that takes about as long to copy from a tier below as to compute comes from both ends: its reader computes
// the front while the tail is copied (Jin et al., "Compute or Load KV Cache? Why Not Both?", 2410.03065). Step by step
// over a small cache and a fake executor, by a roofline of compute alone, and links of any speed.
#include <numeric>

#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

constexpr double kComputedUs = 27;  // a token
constexpr int32_t kChunk = 16;

// 24 blocks of 8 tokens on the device, which hold one prompt of 160; costs as the fake link and executor have them.
HarnessOptions linked(double copied_us_per_token) {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_host_blocks = 100;
  o.max_step_tokens = o.max_prefill_chunk_tokens = kChunk;
  o.roofline = {.overhead_us = 0, .weights_us = 0, .kv_us_per_token = 0, .compute_us_per_token = kComputedUs};
  o.host_link = {.transfer_us = 20, .us_per_block = 8 * copied_us_per_token};
  const double token_bytes = 64;
  o.costs = {.link_bytes_per_s = 1e6 * token_bytes / copied_us_per_token,
             .transfer_us = 20,
             .disk_bytes_per_s = 1e6 * token_bytes / copied_us_per_token,
             .flops_per_s = 1e12,
             .flops_per_token = 1e6 * kComputedUs,
             .flops_per_token_pair = 0,
             .step_us = 0,
             .least_chunk_tokens = kChunk};
  return o;
}

RequestId ask(Harness& h, int32_t first) {
  return h.submit(ids(160, first), Harness::greedy(2));
}
// The device has lost the first of them.
void fill(Harness& h) {
  for (const int32_t first : {0, 300, 600}) {
    ask(h, first);
    h.run();
  }
}
const Sequence& first_of(Harness& h, RequestId id) {
  return *h.core().scheduler().find(id)->sequences.front();
}
const TierCounters& counters(Harness& h) {
  return h.core().scheduler().transfers().counters();
}

TEST(BothEnds, TheFrontIsComputedWhileTheTailComes) {
  Harness h(linked(kComputedUs));
  fill(h);
  const RequestId again = ask(h, 0);
  h.step();
  const Sequence& s = first_of(h, again);
  EXPECT_TRUE(s.tail_comes && !s.copying);
  EXPECT_EQ(s.tail_from % 8, 0);
  EXPECT_NEAR(s.tail_from, 80, 16) << "half of 159";
  EXPECT_EQ(s.num_planned, kChunk);
  EXPECT_EQ(s.table.num_blocks() + s.tail.num_blocks(), 2 + 20 - s.tail_from / 8) << "and nothing between";
  while (s.tail_from > 0) ASSERT_TRUE(h.step());
  EXPECT_EQ(s.num_computed, 159);
  h.run();
  h.expect_greedy(again);
  EXPECT_NEAR(h.record(again).end.cached_tokens, 79, 16) << "what was computed is no hit";
  EXPECT_EQ(counters(h).host.hit_tokens, h.record(again).end.cached_tokens);
  EXPECT_EQ(counters(h).met, 1);
  const int64_t from_host = counters(h).host.hit_tokens;
  const RequestId then = ask(h, 0);
  h.run();
  h.expect_greedy(then);
  EXPECT_EQ(h.record(then).end.cached_tokens, 152)
      << "both ends are found, all but the last block for want of room";
  EXPECT_EQ(counters(h).host.hit_tokens, from_host) << "on the device";
  h.expect_sound();
  h.expect_all_ended();
}

double first_token_ms(const HarnessOptions& o) {
  Harness h(o);
  fill(h);
  const RequestId again = ask(h, 0);
  h.run();
  h.expect_greedy(again);
  h.expect_sound();
  h.expect_all_ended();
  return h.record(again).end.timings.first_token_ms;
}

// Over links from ten times faster than computing to ten times slower (docs of KV methods, Cake: no later than either
// alone by more than a chunk).
TEST(BothEnds, AreNoLaterThanEitherAloneAndSoonerWhereTheyAreAlike) {
  for (const double copied_us : {2.7, 5.0, 9.0, 14.0, 20.0, 27.0, 40.0, 60.0, 80.0, 150.0, 270.0}) {
    SCOPED_TRACE(copied_us);
    HarnessOptions o = linked(copied_us);
    const double both = first_token_ms(o);
    o.both_ends = BothEnds::kNever;
    const double either = first_token_ms(o);
    o.num_host_blocks = 0;
    const double computed = first_token_ms(o);
    EXPECT_LE(both, std::min(either, computed) + kChunk * kComputedUs / 1000);
    if (copied_us > 14 && copied_us < 60) {
      EXPECT_LT(both, 0.8 * std::min(either, computed));
    }
    if (copied_us < 5 || copied_us > 100) {
      EXPECT_EQ(both, either) << "nothing is gained";
    }
  }
}

// Where somebody else has a prompt to compute the time is not to spare: all of it comes from the tier.
TEST(BothEnds, AreForThoseBesideWhomNobodyHasAPromptToCompute) {
  for (const int32_t prompt : {100, 8}) {
    HarnessOptions o = linked(0.9 * kComputedUs);
    o.num_blocks = 40;
    o.max_step_tokens = 2 * kChunk;
    Harness h(o);
    fill(h);
    ask(h, 800);
    h.run();
    h.submit(ids(prompt, 950), Harness::greedy(30));
    for (int i = 0; i < 3; ++i) h.step();
    const RequestId again = ask(h, 0);
    for (int i = 0; i < 3; ++i) h.step();
    EXPECT_EQ(first_of(h, again).tail_from > 0, prompt == 8) << "who decodes bears a prompt beside it";
    EXPECT_EQ(first_of(h, again).copying, prompt == 100);
    h.run();
    h.expect_greedy(again);
    h.expect_sound();
    h.expect_all_ended();
  }
}

TEST(BothEnds, ACancelOrAFailureOnTheWayLeaksNothingAndPublishesNothing) {
  for (const bool cancels : {false, true})
    for (const int64_t delay_us : {0, 20'000}) {
      Harness h(linked(kComputedUs));
      fill(h);
      h.mover().set_fault([&] { return FakeMover::Fault{.fails = true, .delay_us = delay_us}; });
      const RequestId again = ask(h, 0);
      h.step();
      ASSERT_TRUE(first_of(h, again).tail_comes);
      if (cancels) h.abort(again);
      h.run();
      EXPECT_EQ(counters(h).host.read_failures, cancels ? 0 : 1);
      EXPECT_EQ(counters(h).host.hit_tokens, 0);
      h.mover().set_fault({});
      const RequestId then = ask(h, 0);
      h.run();
      if (!cancels) h.expect_greedy(again);
      h.expect_greedy(then);
      h.expect_sound();
      h.expect_all_ended();
    }
}

// The step that was to end the front fails with the tail there: of the front nothing is published, nor of the tail.
TEST(BothEnds, AreNotJoinedBeforeTheFrontIsComputed) {
  HarnessOptions o = linked(kComputedUs);
  o.host_link.us_per_block = 1;
  Harness h(o);
  fill(h);
  const RequestId again = ask(h, 0);
  h.step();
  const int32_t front = first_of(h, again).tail_from;
  ASSERT_GT(front, kChunk);
  h.executor().set_fault([&](const BatchPlan& plan) {
    const PlannedSequence& s = plan.sequences.front();
    const bool ends_front = s.first_position + static_cast<int32_t>(s.tokens.size()) == front;
    return ends_front ? Status(error(Code::kInternal, "injected fault")) : ok();
  });
  h.run();
  EXPECT_EQ(h.record(again).end.finish, FinishReason::kFailed);
  h.executor().set_fault({});
  const RequestId then = ask(h, 0);
  h.run();
  h.expect_greedy(then);
  h.expect_sound();
  h.expect_all_ended();
}

// It has computed what was before, and goes on from there; what the copy may still write stays held.
TEST(BothEnds, ATailThatHangsIsComputedToo) {
  HarnessOptions o = linked(kComputedUs);
  o.num_blocks = 48;  // 20 for the copy
  o.num_host_blocks = 0;
  o.num_disk_blocks = 200;
  Harness h(o);
  fill(h);
  ask(h, 800);
  h.run();
  h.mover().set_disk_hang([] { return int64_t{3'600'000'000}; });
  const int64_t start = h.clock().now_us();
  const RequestId again = ask(h, 0);
  h.step();
  ASSERT_TRUE(first_of(h, again).tail_comes);
  while (h.record(again).num_ends == 0) ASSERT_TRUE(h.step());
  EXPECT_LT(h.clock().now_us() - start, 2 * kLeastTierWaitUs);
  EXPECT_EQ(counters(h).waits_given_up, 1);
  EXPECT_GT(h.core().cache().num_held(), 0);
  h.expect_greedy(again);
  h.mover().set_disk_hang({});
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

// Its tail came early, its front is not computed yet, and those who run before it take the room for that.
void give_way(const std::string& means) {
  SCOPED_TRACE(means);
  HarnessOptions o = linked(kComputedUs);
  o.both_ends = BothEnds::kAlways;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  o.max_step_tokens = 2 * kChunk;
  o.host_link.us_per_block = 1;
  o.num_blocks = 30;
  o.num_swap_blocks = 40;
  o.preemption_mode = means;
  Harness h(o);
  for (const int32_t first : {0, 300, 600}) {
    ask(h, first);
    h.run();
  }
  std::vector<RequestId> grow;
  for (int32_t i = 0; i < 4; ++i) grow.push_back(h.submit(ids(8, 800 + 20 * i), Harness::greedy(40)));
  while (first_of(h, grow.back()).table.length() < 13) ASSERT_TRUE(h.step());
  CoreRequest more;
  more.priority = 1;
  const RequestId again = h.submit(ids(160, 0), Harness::greedy(2), more);
  h.step();
  ASSERT_GT(first_of(h, again).tail_from, 0);
  while (first_of(h, again).running()) ASSERT_TRUE(h.step());
  EXPECT_TRUE(first_of(h, again).tail.empty());
  h.run();
  for (const RequestId id : grow) h.expect_greedy(id);
  h.expect_greedy(again);
  EXPECT_EQ(h.core().scheduler().counters().preemptions, 1);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(BothEnds, WhoGivesWayWithItsTailThereLosesIt) {
  give_way("recompute");
  give_way("swap");
}

}  // namespace
}  // namespace quire
