// A request fails for want of room only where it has none even alone: not while it waits for a sibling, nor behind somebody
// who comes in before it, nor while a copy that is merely late holds blocks.
#include <utility>

#include "src/schedule/tier_transfers.h"
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

bool some_are_out(Harness& h, RequestId id) {
  const SequenceGroup* group = h.core().scheduler().find(id);
  if (group == nullptr) return false;
  return std::ranges::any_of(group->sequences,
                             [](const auto& s) { return s->state == SequenceState::kPreempted; });
}

bool ended(Harness& h, RequestId id) {
  return h.core().scheduler().find(id) == nullptr;
}

// Two beams give way to a better request, come back one after the other, and another better one that finds no room comes
// while the first waits for the second. False: they never met.
bool meet(int32_t beam_prompt, int32_t better_prompt, int32_t steps_later, bool prefix_cache) {
  HarnessOptions o;
  o.num_blocks = 28;
  o.max_step_tokens = 16;
  o.prefix_cache = prefix_cache;
  Harness h(o);
  SamplingParams two_beams = Harness::greedy(40);
  two_beams.beam_width = 2;
  CoreRequest low;
  low.priority = 1;
  const RequestId beams = h.submit(ids(beam_prompt), two_beams, low);
  for (int i = 0; i < beam_prompt / 16 + 4; ++i) h.step();
  const RequestId first = h.submit(ids(40, 300), Harness::greedy(110));
  bool were_out = false;
  while (!ended(h, first)) {
    EXPECT_TRUE(h.step());
    were_out = were_out || some_are_out(h, beams);
  }
  for (int i = 0; i < steps_later; ++i) h.step();
  const bool met = were_out && some_are_out(h, beams);
  const RequestId better = h.submit(ids(better_prompt, 600), Harness::greedy(8));
  h.run();
  for (const RequestId id : {beams, better})
    for (const auto& [index, s] : h.record(id).sequences)
      EXPECT_NE(s.finish, FinishReason::kFailed)
          << (id == beams ? "beams" : "better") << " of " << beam_prompt << " and " << better_prompt
          << ", after " << steps_later << " steps: " << s.error->message;
  h.expect_sound();
  h.expect_all_ended();
  return met;
}

TEST(Progress, BeamsThatComeBackDoNotFailBehindABetterRequest) {
  int met = 0;
  for (int32_t beam_prompt = 24; beam_prompt <= 88; beam_prompt += 16)
    for (int32_t better_prompt = 60; better_prompt <= 180; better_prompt += 40)
      for (int32_t steps_later = 1; steps_later <= 12; ++steps_later)
        for (const bool prefix_cache : {true, false})
          met += meet(beam_prompt, better_prompt, steps_later, prefix_cache) ? 1 : 0;
  EXPECT_GT(met, 50);
}

// Beams whose prompt comes back from the host share it: a copy for each of them may be more than admission has reckoned with.
void run_beams_beside_a_host_tier(uint64_t seed, int64_t& brought_back) {
  Random random(seed);
  const auto between = [&random](int32_t low, int32_t high) {
    return static_cast<int32_t>(random.between(low, high));
  };
  HarnessOptions o;
  o.num_blocks = between(20, 32);
  o.num_host_blocks = between(30, 80);
  o.max_sequences = 8;
  o.max_step_tokens = between(16, 64);
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  Harness h(o);
  std::vector<RequestId> all;
  for (int i = 0; i < 200; ++i) {
    if (random.chance(0.1)) {
      SamplingParams p = Harness::greedy(between(1, 60));
      if (random.chance(0.9)) p.beam_width = between(2, 4);
      if (const RequestId id = h.submit(ids(between(50, 110), between(0, 3) * 200), p)) all.push_back(id);
    }
    if (!all.empty() && random.chance(0.1))
      h.core().set_paused(all[random.below(all.size())], random.chance(0.5));
    h.step();
  }
  for (const RequestId id : all) h.core().set_paused(id, false);
  h.run();
  brought_back += h.core().scheduler().transfers().counters().blocks_to_device;
  for (const RequestId id : all)
    for (const auto& [index, s] : h.record(id).sequences)
      EXPECT_NE(s.finish, FinishReason::kFailed) << "seed " << seed << ": " << s.error->message;
  h.expect_sound();
  h.expect_all_ended();
}

TEST(Progress, BeamsWhosePromptComesBackFromTheHostDoNotFail) {
  int64_t brought_back = 0;
  for (uint64_t seed = 1; seed <= 500; ++seed) run_beams_beside_a_host_tier(seed, brought_back);
  EXPECT_GT(brought_back, 100);
}

// The disk takes so long over a prefix that nobody wants any more, and what it writes into is most of the cache.
void run_beside_a_late_copy(Harness& h, int64_t takes_us, RequestId& id) {
  for (const int32_t first : {0, 300, 600}) {
    h.submit(ids(168, first), Harness::greedy(2));
    h.run();
  }
  h.mover().set_disk_hang([&] { return std::exchange(takes_us, 0); });
  const RequestId reads = h.submit(ids(168), Harness::greedy(2));
  while (takes_us > 0) ASSERT_TRUE(h.step());
  h.abort(reads);
  h.clock().advance_us(kLongestTierWaitUs / 5);
  while (h.core().step()) {
  }
  ASSERT_EQ(h.core().scheduler().transfers().num_overdue(), 1);
  ASSERT_LT(h.core().cache().num_available(), 10);
  id = h.submit(ids(70, 900), Harness::greedy(20));
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

HarnessOptions with_disk() {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_disk_blocks = 100;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

TEST(Progress, ALateCopyIsWaitedForByWhoeverNeedsItsRoom) {
  Harness h(with_disk());
  RequestId id = 0;
  ASSERT_NO_FATAL_FAILURE(run_beside_a_late_copy(h, kLongestTierWaitUs / 2, id));
  EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength);
  h.expect_greedy(id);
}

TEST(Progress, WhoeverNeedsTheRoomOfACopyThatHangsFailsAfterTenSeconds) {
  Harness h(with_disk());
  RequestId id = 0;
  ASSERT_NO_FATAL_FAILURE(run_beside_a_late_copy(h, 360 * kLongestTierWaitUs, id));
  ASSERT_EQ(h.record(id).end.finish, FinishReason::kFailed);
  EXPECT_NE(h.record(id).sequences[0].error->message.find(
                "copies to or from the tiers below that have not returned (1 now)"),
            std::string::npos);
  EXPECT_NEAR(h.record(id).end.timings.total_ms, 0.8e-3 * kLongestTierWaitUs, 100);
}

// Blocks of the tree stay while one below them is held, though a sliding list has let go of them. Whatever is admitted ends all the same,
// with its own prefix in the tree, another's found there, and samples that share it.
TEST(Progress, WhoeverSlidesFindsRoomBesideWhatItHasPublished) {
  constexpr PolicySpec kWindow{.kind = RetentionKind::kWindow, .window = 26};
  constexpr PolicySpec kStream{.kind = RetentionKind::kStream, .sinks = 9, .recent = 22};
  int admitted = 0;
  for (const PolicySpec& policy : {kWindow, kStream})
    for (int32_t num_blocks = 5; num_blocks <= 40; ++num_blocks)
      for (const int32_t prompt : {1, 20, 32, 100})
        for (const int32_t n : {1, 2, 3}) {
          HarnessOptions o;
          o.num_blocks = num_blocks;
          o.max_prefill_chunk_tokens = num_blocks % 2 == 0 ? 1 : 0;
          Harness h(o);
          SCOPED_TRACE(testing::Message()
                       << num_blocks << " blocks, " << prompt << " prompt tokens, " << n << " samples");
          for (const int32_t output :
               {1, 90, 90}) {  // the second finds what the first has left, all of its prompt
            CoreRequest request;
            request.policy = policy;
            SamplingParams p = Harness::greedy(output);
            p.n = n;
            const RequestId id = h.submit(ids(prompt), p, request);
            if (id == 0) continue;
            ++admitted;
            h.run();
            EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength);
          }
          h.expect_sound();
        }
  EXPECT_GT(admitted, 500);
}

// What the second of two equal requests finds of its prompt.
int32_t cached_the_second_time(int32_t num_blocks, const PolicySpec& policy, int32_t prompt, int32_t output,
                               int32_t n) {
  HarnessOptions o;
  o.num_blocks = num_blocks;
  o.max_context_tokens = 1000;
  Harness h(o);
  RequestId id = 0;
  for (int i = 0; i < 2; ++i) {
    CoreRequest request;
    request.policy = policy;
    SamplingParams p = Harness::greedy(output);
    p.n = n;
    id = h.submit(ids(prompt), p, request);
    h.run();
    EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength);
  }
  h.expect_sound();
  return h.record(id).end.cached_tokens;
}

TEST(Progress, WhoeverSlidesFindsAllOfItsPromptWhereAllOfItFits) {
  constexpr PolicySpec kWide{.kind = RetentionKind::kWindow, .window = 200};
  for (const int32_t output : {10, 40})  // to 20 of the 24 blocks, and to all of them
    EXPECT_EQ(cached_the_second_time(24, kWide, 150, output, 1), 144)
        << "a tail that ends in a block has no room";
  EXPECT_EQ(cached_the_second_time(24, {}, 150, 40, 1), 144) << "as without a policy";
  EXPECT_EQ(cached_the_second_time(95, kWide, 150, 50, 3), 149) << "three lists of 25 blocks";
  constexpr PolicySpec kNarrow{.kind = RetentionKind::kWindow, .window = 26};
  EXPECT_EQ(cached_the_second_time(68, kNarrow, 64, 200, 4), 63) << "samples have their prompt's blocks once";
}

}  // namespace
}  // namespace quire
