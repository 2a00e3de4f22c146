// Beams under policies that go by scores: each fork has lists of its own in its request's part of the policies' memory, and they find room for
// the copies that overwriting asks of them, in caches of every size that lets them in.
#include <gtest/gtest.h>

#include <set>
#include <span>

#include "tests/unit/schedule_group_rig.h"

namespace quire {
namespace {

constexpr int32_t kPrompt = 30;  // of blocks of 8: its tail is shared too

CoreRequest under(const char* policy) {
  CoreRequest request;
  request.policy = *parse_policy(policy);
  return request;
}

// Cuts its prompt; fills up while it generates; keeps all that there will be.
constexpr const char* kPolicies[] = {"tova:budget=10", "h2o:heavy=20,recent=20", "tova:budget=400"};

TEST(BeamsByScores, FinishAloneInEveryCacheThatLetsThemIn) {
  int32_t let_in = 0;
  for (const char* policy : kPolicies)
    for (int32_t num_blocks = 8; num_blocks <= 40; ++num_blocks)
      for (const int32_t shared : {0, 7, 16, 24, 30}) {
        const std::unique_ptr<Harness> harness = with_cached_start(num_blocks, kPrompt, shared);
        Harness& h = *harness;
        const RequestId id = h.submit(ids(kPrompt), beams(4, 40), under(policy));
        if (id == 0) continue;  // refused: never as much room
        ++let_in;
        h.run();
        h.expect_sound();
        h.expect_all_ended();
        EXPECT_EQ(h.record(id).end.finish, FinishReason::kLength)
            << policy << ", " << num_blocks << " blocks, shared " << shared;
      }
  EXPECT_GE(let_in, 200);
}

TEST(BeamsByScores, SwapBesideOthersAndGoOn) {
  for (const char* policy : std::span(kPolicies).first(2)) {
    Harness h(tight("swap", 60));
    std::vector<RequestId> all;
    for (int32_t i = 0; i < 3; ++i)
      all.push_back(h.submit(ids(kPrompt, 100 * i), beams(3, 30), under(policy)));
    for (int32_t i = 0; i < 4; ++i) h.submit(ids(40, 1000 + 100 * i), Harness::greedy(60));
    h.run();
    h.expect_sound();
    h.expect_all_ended();
    EXPECT_EQ(h.core().counts().finished, 7) << policy;
    EXPECT_GT(h.core().scheduler().counters().swap_outs, 0) << policy;
  }
}

// Beams that overwrite need a block for each that two of them share. One who stands before them takes what a beam that dies
// has given back, and the rest a copy holds: they wait for its end, and whoever has room goes on meanwhile.
TEST(BeamsByScores, WithoutRoomToOverwriteWhileACopyIsUnderWayHoldNobodyUp) {
  int went_on =
      0;  // for more than one step in which the beams waited; else the copy's end is all that is waited for
  for (int32_t others = 40; others <= 90; others += 2)
    for (int32_t prompt = 1; prompt <= 24; prompt += 3) {
      Harness h(tight("swap", 60));
      h.mover().set_fault([] { return FakeMover::Fault{.delay_us = 60'000}; });
      const RequestId first = h.submit(ids(prompt, 600), Harness::greedy(100));
      const RequestId group = h.submit(ids(kPrompt), beams(3, 100), under("tova:budget=20"));
      const RequestId last = h.submit(ids(others, 300), Harness::greedy(100));
      const auto of = [&h](RequestId id) -> const Sequence& {
        return *h.core().scheduler().find(id)->sequences.front();
      };
      const auto lives = [&h](RequestId id) { return h.core().scheduler().find(id) != nullptr; };
      while (lives(last) && !of(last).copying) ASSERT_TRUE(h.step());
      int32_t tokens_of_group = 0, steps_waited = 0;
      while (lives(first) && lives(group) && lives(last) && of(last).copying) {
        const int32_t before = of(first).num_output_tokens(), room = 8 - of(first).table.length() % 8;
        const bool waits = of(group).num_tokens() == std::exchange(tokens_of_group, of(group).num_tokens()) &&
                           of(group).num_in_flight == 0;
        ASSERT_TRUE(h.step());
        if (!waits || room == 8 || !lives(first) || !lives(last) || !of(last).copying) continue;
        ++steps_waited;
        EXPECT_GT(of(first).num_output_tokens(), before) << others << ", " << prompt;
      }
      went_on += steps_waited > 1 ? 1 : 0;
      h.run();
      h.expect_sound();
      h.expect_all_ended();
    }
  EXPECT_GT(went_on, 100) << "of 208";
}

// Places are a beam's own, whoever dies and is forked.
TEST(BeamsByScores, HaveAPlaceOfTheirOwnInTheirRequestsMemory) {
  Harness h(tight());
  const RequestId id = h.submit(ids(kPrompt), beams(4, 20), under("tova:budget=10"));
  std::set<int32_t> seen;
  while (h.step()) {
    const SequenceGroup* group = h.core().scheduler().find(id);
    if (group == nullptr) break;
    std::set<int32_t> places;
    for (const auto& s : group->sequences) {
      if (s->finished()) continue;
      EXPECT_TRUE(places.insert(s->list_place).second);
      EXPECT_LT(s->list_place, group->num_slots());
    }
    seen.insert(places.begin(), places.end());
  }
  EXPECT_EQ(seen, (std::set<int32_t>{0, 1, 2, 3}));
  h.expect_sound();
}

}  // namespace
}  // namespace quire
