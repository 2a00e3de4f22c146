// Preemption that takes only the last blocks: what is computed again, what shared blocks count for, and that
// heads which wait hold nobody up.
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

// 24 blocks of 8, over-committed as far as it goes, no tier below and no cache to find a lost tail in.
HarnessOptions tight() {
  HarnessOptions o;
  o.num_blocks = 24;
  o.prefix_cache = false;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

const SchedulerCounters& counters(Harness& h) {
  return h.core().scheduler().counters();
}

const Sequence* find_preempted(Harness& h, RequestId id) {
  const SequenceGroup* group = h.core().scheduler().find(id);
  if (group == nullptr) return nullptr;
  for (const auto& s : group->sequences)
    if (s->state == SequenceState::kPreempted) return s.get();
  return nullptr;
}

// Positions run until everything has ended.
int64_t run_and_count(Harness& h) {
  int64_t run = 0;
  for (uint64_t last = 0; !h.core().idle();) {
    if (!h.step()) {
      ADD_FAILURE() << "stuck";
      break;
    }
    if (h.core().scheduler().in_flight().empty()) continue;
    const BatchPlan& plan = *h.core().scheduler().in_flight().back().plan;
    if (plan.step != std::exchange(last, plan.step)) run += plan.num_tokens();
  }
  return run;
}

TEST(DropTail, NoMoreIsComputedAgainThanOthersNeeded) {
  Harness h(tight());
  const RequestId a = h.submit(ids(60), Harness::greedy(100)),
                  b = h.submit(ids(60, 300), Harness::greedy(100));
  const int64_t run = run_and_count(h);
  EXPECT_EQ(counters(h).preemptions, 1);
  EXPECT_EQ(counters(h).tail_drops, 1);
  EXPECT_GT(counters(h).heads_shortened, 0) << "the first goes on to need more";
  // When they are short each has 12 blocks; until its end the first takes 8 more, and the second gives them.
  EXPECT_LE(run - 2 * (60 + 99), 9 * 8);
  EXPECT_GT(run - 2 * (60 + 99), 6 * 8);
  h.expect_greedy(a);
  h.expect_greedy(b);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DropTail, TheHeadStaysHeldAndTheSequenceGoesOnBehindIt) {
  Harness h(tight());
  h.submit(ids(60), Harness::greedy(100));
  const RequestId b = h.submit(ids(60, 300), Harness::greedy(100));
  while (find_preempted(h, b) == nullptr) ASSERT_TRUE(h.step());
  const Sequence& s = *find_preempted(h, b);
  EXPECT_GT(s.table.length(), 60);
  EXPECT_EQ(s.table.length(), s.num_computed);
  EXPECT_EQ(s.table.length() % 8, 0);
  while (find_preempted(h, b) != nullptr) {
    ASSERT_TRUE(h.step());
    const Sequence& now = *h.core().scheduler().find(b)->sequences.front();
    ASSERT_GT(now.num_computed, 0) << "its head is never lost as a whole";
  }
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DropTail, SwapIsTakenWhereItIsCheaperAndWhereItIsAskedFor) {
  for (const auto& [mode, link] : {std::pair("auto", 1e12), std::pair("auto", 1.0), std::pair("swap", 1.0)}) {
    HarnessOptions o = tight();
    o.num_swap_blocks = 24;
    o.preemption_mode = mode;
    o.costs.link_bytes_per_s = link;
    Harness h(o);
    h.submit(ids(60), Harness::greedy(100));
    h.submit(ids(60, 300), Harness::greedy(100));
    h.run();
    const bool swaps = std::string(mode) == "swap" || link > 1;
    EXPECT_EQ(counters(h).swap_outs > 0, swaps);
    EXPECT_EQ(counters(h).tail_drops > 0, !swaps);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// The second shares 8 blocks of its prompt with the first; both have begun.
RequestId submit_two_that_share(Harness& h, RequestId& first) {
  std::vector<TokenId> prompt = ids(72);
  first = h.submit(prompt, Harness::greedy(100));
  while (counters(h).output_tokens < 20) EXPECT_TRUE(h.step());
  prompt.resize(64);
  prompt.push_back(999);
  return h.submit(prompt, Harness::greedy(80));
}

HarnessOptions tight_and_shared(double reserve) {
  HarnessOptions o = tight();
  o.prefix_cache = true;
  o.reserve = {.least = reserve, .rise = 0, .decay = 0};
  return o;
}

TEST(DropTail, SharedBlocksCountForNothing) {
  int64_t drops = 0;
  for (int i = 0; i < 20; ++i) {
    Harness h(tight_and_shared(0.05 * i));
    RequestId first = 0;
    const RequestId id = submit_two_that_share(h, first);
    while (find_preempted(h, id) == nullptr && !h.core().idle()) ASSERT_TRUE(h.step());
    if (const Sequence* s = find_preempted(h, id)) {
      const bool has_head = !s->table.empty();
      drops += has_head ? 1 : 0;
      EXPECT_EQ(counters(h).tail_drops, has_head ? 1 : 0);
      EXPECT_TRUE(!has_head || s->table.length() >= 64) << "the prompt is the first's too; run " << i;
    }
    h.run();
    h.expect_greedy(first);
    h.expect_greedy(id);
    h.expect_sound();
    h.expect_all_ended();
  }
  EXPECT_GT(drops, 0);
}

// Who waits needs more than the second has alone: no tail of it is enough, and it gives way as a whole.
TEST(DropTail, WhereATailOfItsOwnIsNotEnoughAllOfItGoes) {
  Harness h(tight_and_shared(0));
  RequestId first = 0;
  const RequestId id = submit_two_that_share(h, first);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(h.step());
  for (const RequestId paused : {first, id}) h.core().set_paused(paused, true);
  while (h.step()) {
  }
  const RequestId waits = h.submit(ids(80, 300), Harness::greedy(5));
  while (find_preempted(h, id) == nullptr) ASSERT_TRUE(h.step());
  EXPECT_TRUE(find_preempted(h, id)->table.empty());
  EXPECT_EQ(counters(h).tail_drops, find_preempted(h, first) != nullptr ? 1 : 0);
  for (const RequestId paused : {first, id}) h.core().set_paused(paused, false);
  h.run();
  for (const RequestId each : {first, id, waits}) h.expect_greedy(each);
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DropTail, AHeadMakesRoomForWhoeverComesInBeforeIt) {
  Harness h(tight());
  h.submit(ids(60), Harness::greedy(100));
  CoreRequest low;
  low.priority = 1;
  const RequestId b = h.submit(ids(60, 300), Harness::greedy(100), low);
  while (find_preempted(h, b) == nullptr) ASSERT_TRUE(h.step());
  const int32_t before = find_preempted(h, b)->table.num_blocks();
  ASSERT_LT(h.core().cache().num_available(), 6);
  const RequestId c = h.submit(ids(40, 600), Harness::greedy(4));
  while (h.record(c).num_ends == 0) ASSERT_TRUE(h.step());
  ASSERT_NE(find_preempted(h, b), nullptr);
  EXPECT_LT(find_preempted(h, b)->table.num_blocks(), before);
  h.run();
  h.expect_greedy(b);
  h.expect_greedy(c);
  h.expect_sound();
  h.expect_all_ended();
}

// Of three that do not fit together two wait with a head each, and none may fail for want of room.
TEST(DropTail, HeadsThatWaitHoldNobodyUp) {
  Harness h(tight());
  std::vector<RequestId> all;
  for (int i = 0; i < 3; ++i) all.push_back(h.submit(ids(40, 300 * i), Harness::greedy(140)));
  h.run();
  EXPECT_GT(counters(h).tail_drops, 1);
  for (const RequestId id : all) {
    EXPECT_EQ(h.record(id).sequences[0].finish, FinishReason::kLength);
    h.expect_greedy(id);
  }
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DropTail, ACancelGivesTheHeadBack) {
  Harness h(tight());
  h.submit(ids(60), Harness::greedy(100));
  const RequestId b = h.submit(ids(60, 300), Harness::greedy(100));
  while (find_preempted(h, b) == nullptr) ASSERT_TRUE(h.step());
  h.abort(b);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

TEST(DropTail, WithThePrefixCacheWhatIsLeftOfTheTailIsFoundAgain) {
  HarnessOptions o = tight();
  o.prefix_cache = true;
  Harness h(o);
  h.submit(ids(60), Harness::greedy(40));
  const RequestId b = h.submit(ids(60, 300), Harness::greedy(60));
  const RequestId c = h.submit(ids(60, 600), Harness::greedy(20));
  h.run();
  EXPECT_GT(counters(h).tail_drops, 0);
  h.expect_greedy(b);
  h.expect_greedy(c);
  h.expect_sound();
  h.expect_all_ended();
}

}  // namespace
}  // namespace quire
