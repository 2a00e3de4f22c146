// Who gets what there is: fair shares between tenants by what they cost, slots of readers that have stopped, and room for lists under
// KV policies.
#include <numeric>
#include <span>

#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {
namespace {

// Two tenants with eight requests each at all times, and what each has cost the engine.
class TwoTenants {
 public:
  struct Ask {
    int32_t prompt = 8, output = 16;
    int32_t beam_width = 0, abort_at = 0;  // 0: none, never
  };
  TwoTenants(Ask a, Ask b) : asks_{a, b} {
    HarnessOptions o;
    o.num_blocks = 400;
    o.max_sequences = 4;
    o.max_step_tokens = 64;
    o.max_context_tokens = 500;
    h_ = std::make_unique<Harness>(o);
    for (int i = 0; i < 8; ++i)
      for (int t = 0; t < 2; ++t) live_[t].push_back(submit(t));
  }
  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      h_->step();
      for (int t = 0; t < 2; ++t)
        for (RequestId& id : live_[t]) look_at(t, id);
    }
  }
  double cost(int t) const { return cost_[t]; }

 private:
  RequestId submit(int t) {
    CoreRequest more;
    more.tenant = std::string(1, t == 0 ? 'a' : 'b');
    more.bypass_prefix_cache = true;
    SamplingParams p = Harness::greedy(asks_[t].output);
    p.beam_width = asks_[t].beam_width;
    return h_->submit(ids(asks_[t].prompt), p, more);
  }
  // A row of output costs two; a prompt, its tokens, when it is seen to run first.
  void look_at(int t, RequestId& id) {
    const SequenceGroup* group = h_->core().scheduler().find(id);
    if (group == nullptr) {
      id = submit(t);
      return;
    }
    if (group->state != GroupState::kAdmitted) return;
    if (seen_.insert(id).second) cost_[t] += asks_[t].prompt;
    for (const auto& s : group->sequences) cost_[t] += s->running() ? 2 : 0;
    if (asks_[t].abort_at > 0 && group->sequences.front()->num_output_tokens() >= asks_[t].abort_at) {
      h_->abort(id);
      id = submit(t);
    }
  }

  Ask asks_[2];
  std::unique_ptr<Harness> h_;
  std::vector<RequestId> live_[2];
  std::set<RequestId> seen_;
  double cost_[2] = {};
};

void expect_equal_shares(TwoTenants tenants, double most = 1.4) {
  tenants.run(6000);
  EXPECT_GT(tenants.cost(0) * most, tenants.cost(1));
  EXPECT_LT(tenants.cost(0), tenants.cost(1) * most);
}

TEST(FairShares, LongOutputsArePaidFor) {
  expect_equal_shares({{.prompt = 8, .output = 120}, {.prompt = 8, .output = 4}});
}

TEST(FairShares, LongPromptsArePaidFor) {
  expect_equal_shares({{.prompt = 200, .output = 2}, {.prompt = 8, .output = 20}});
}

// Beams hold their slots while the host chooses among them: twice the steps for what they pay.
TEST(FairShares, BeamsPayForEachAlsoWhenTheyAreCancelled) {
  expect_equal_shares(
      {{.prompt = 8, .output = 100, .beam_width = 4, .abort_at = 95}, {.prompt = 8, .output = 100}}, 2.2);
  expect_equal_shares({{.prompt = 8, .output = 40, .beam_width = 4}, {.prompt = 8, .output = 40}}, 2.2);
}

// A reader that has stopped keeps its place in line, not its slot.
TEST(Slots, OfThoseWhoDoNotReadGoToThoseWhoWait) {
  HarnessOptions o;
  o.num_blocks = 600;
  o.max_sequences = 8;
  o.max_step_tokens = 64;
  Harness h(o);
  std::vector<RequestId> paused, waiting;
  for (int32_t i = 0; i < 8; ++i) paused.push_back(h.submit(ids(10, 20 * i), Harness::greedy(100)));
  for (int i = 0; i < 6; ++i) h.step();
  for (const RequestId id : paused) h.core().set_paused(id, true);
  for (int32_t i = 0; i < 20; ++i) waiting.push_back(h.submit(ids(10, 600 + 15 * i), Harness::greedy(20)));
  h.step();
  EXPECT_EQ(h.core().scheduler().counters().preemptions, 0) << "a short stop costs nobody its slot";
  h.clock().advance_us(300'000);
  for (int i = 0; i < 80; ++i) h.step();
  for (const RequestId id : waiting) EXPECT_EQ(h.record(id).num_ends, 1);
  for (const RequestId id : paused) h.core().set_paused(id, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  for (const RequestId id : paused) h.expect_greedy(id);
}

// Of a and whoever comes after it the reserve keeps free all that they may generate, once one of them has given way, and a
// hundredth less with each step.
TEST(KeptOut, WhoTheReserveKeepsOutComesInWhenItHasFallen) {
  HarnessOptions o;
  o.num_blocks = 60;
  o.max_context_tokens = 470;
  o.max_step_tokens = 512;
  o.reserve = {.least = 0.1, .rise = 0.9, .decay = 0.01};
  Harness h(o);
  const auto find = [&](RequestId id) { return h.core().scheduler().find(id); };
  const RequestId a = h.submit(ids(10), Harness::greedy(400));
  while (find(a)->num_output_tokens < 100) h.step();
  const RequestId b = h.submit(ids(200, 500), Harness::greedy(200));
  while (h.core().scheduler().counters().preemptions == 0) ASSERT_TRUE(h.step());
  h.abort(b);
  for (int i = 0; i < 3; ++i) h.step();
  EXPECT_GT(h.core().scheduler().reserve_ratio(), 0.9);
  const RequestId next = h.submit(ids(10, 300), Harness::greedy(400));
  h.step();
  int steps = 0;
  for (; find(next)->state == GroupState::kWaiting; ++steps) ASSERT_TRUE(h.step());
  EXPECT_GT(steps, 40) << "at 1 to 0.5 there is too little room for both";
  EXPECT_LT(steps, 90);
  EXPECT_NE(find(a), nullptr) << "it came in only when a had ended";
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

// Steps until a request of so many tokens has come in beside `others`, which began `ahead` steps before it. At none of them
// it is kept out though there is room.
void expect_let_in_as_soon_as_there_is_room(int32_t length, int ahead, std::span<const RequestId> others,
                                            Harness& h) {
  for (int i = 0; i < ahead; ++i) ASSERT_TRUE(h.step());
  const auto find = [&](RequestId id) { return h.core().scheduler().find(id); };
  const RequestId next = h.submit(ids(length, 500), Harness::greedy(1));
  while (find(next) != nullptr && find(next)->state == GroupState::kWaiting) {
    ASSERT_TRUE(h.step());
    ASSERT_EQ(h.core().scheduler().find_kept_out(), nullptr) << length << " tokens";
  }
  for (const RequestId other : others)
    EXPECT_NE(find(other), nullptr) << length << " tokens: it came in last";
  h.run();
  h.expect_sound();
  h.expect_all_ended();
}

HarnessOptions without_reserve(int32_t num_blocks) {
  HarnessOptions o;
  o.num_blocks = num_blocks;
  o.max_context_tokens = 300;
  o.max_step_tokens = 96;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

// While lists are appended to, a block each is kept free for what they will copy and one for what follows. Once they are full the
// last of those that share needs no copy, and nobody the block that follows.
TEST(KeptOut, WhoListsKeepOutComesInWhenTheyAreFull) {
  for (int32_t length = 20; length <= 220; length += 8) {
    Harness h(without_reserve(60));
    CoreRequest more;
    more.policy = {.kind = RetentionKind::kTova, .budget = 62};
    more.bypass_prefix_cache = true;
    SamplingParams four = Harness::greedy(150);
    four.n = 4;
    const RequestId lists = h.submit(ids(43), four, more);
    expect_let_in_as_soon_as_there_is_room(length, 6, {&lists, 1}, h);
  }
}

// What is kept free for a window is its list beside the next chunk, which is none once its prompt has ended.
TEST(KeptOut, WhoWindowsKeepOutComesInWhenTheirPromptsEnd) {
  for (int32_t length = 20; length <= 100; length += 8) {
    HarnessOptions o = without_reserve(64);
    o.max_prefill_chunk_tokens = 24;
    Harness h(o);
    CoreRequest more;
    more.policy = {.kind = RetentionKind::kWindow, .window = 100};
    std::vector<RequestId> windows;
    for (int32_t i = 0; i < 3; ++i) windows.push_back(h.submit(ids(90, 100 * i), Harness::greedy(60), more));
    expect_let_in_as_soon_as_there_is_room(length, 1, windows, h);
  }
}

// A low priority comes first, a middle one `later_us` after it, and both give way to a high one until the first of them or both have
// waited for a second. The room that comes free then is the first one's, though it stood last.
TEST(Overdue, WhoGaveWayComesBackInTheOrderOfArrival) {
  for (const int64_t later_us : {int64_t{0}, int64_t{800'000}}) {
    SCOPED_TRACE(later_us);
    HarnessOptions o = without_reserve(18);
    o.prefix_cache = false;
    o.max_step_tokens = 32;
    o.max_priority_wait_ms = 1000;
    Harness h(o);
    const auto submit = [&](int32_t first, int32_t priority) {
      CoreRequest more;
      more.priority = priority;
      return h.submit(ids(40, first), Harness::greedy(90), more);
    };
    const auto find = [&](RequestId id) { return h.core().scheduler().find(id); };
    const auto num_tokens = [&](RequestId id) { return h.record(id).sequences[0].tokens.size(); };
    const RequestId low = submit(0, 2);
    h.clock().advance_us(later_us);
    const RequestId middle = submit(100, 1), high = submit(200, 0);
    const auto is_out = [&](RequestId id) {
      return find(id)->sequences.front()->state == SequenceState::kPreempted;
    };
    while (!is_out(low) || !is_out(middle)) ASSERT_TRUE(h.step());
    const size_t low_had = num_tokens(low), middle_had = num_tokens(middle);
    h.clock().advance_us(1'100'000 - later_us);
    h.step();
    EXPECT_TRUE(find(low)->overdue);
    EXPECT_EQ(find(middle)->overdue, later_us == 0);
    h.abort(high);
    while (num_tokens(low) == low_had) {
      ASSERT_TRUE(h.step());
      ASSERT_EQ(num_tokens(middle), middle_had) << "it came second";
    }
    h.run();
    h.expect_greedy(low);
    h.expect_greedy(middle);
    h.expect_sound();
    h.expect_all_ended();
  }
}

// How many of 32 equal requests run at once in 64 blocks of 8.
int32_t most_running(const PolicySpec& policy, int32_t prompt, int32_t output) {
  HarnessOptions o;
  o.num_blocks = 64;
  o.max_sequences = o.max_step_tokens = 64;
  o.max_context_tokens = 500;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  o.num_swap_blocks = 64;
  Harness h(o);
  int32_t most = 0;
  for (int32_t i = 0; i < 32; ++i) {
    CoreRequest more;
    more.policy = policy;
    more.bypass_prefix_cache = true;
    EXPECT_GT(h.submit(ids(prompt, 37 * i), Harness::greedy(output), more), 0u) << h.last_refusal().message;
  }
  while (!h.core().idle() && h.step()) most = std::max(most, h.core().scheduler().num_running());
  h.expect_sound();
  h.expect_all_ended();
  EXPECT_EQ(h.core().counts().finished, 32);
  return most;
}

TEST(RoomForPolicies, AListThatIsNeverCutIsReservedOnce) {
  EXPECT_GE(most_running({.kind = RetentionKind::kTova, .budget = 63}, 40, 60), 7);  // 8 blocks each
  EXPECT_GE(most_running({.kind = RetentionKind::kTova, .budget = 512}, 40, 24), 7);
}

TEST(RoomForPolicies, AWindowIsReservedByItsOwnPromptNotByTheServersChunk) {
  EXPECT_GE(most_running({.kind = RetentionKind::kWindow, .window = 16}, 10, 300), 5);  // 5 to 12 blocks each
}

// The door lets in what fits alone.
TEST(RoomForPolicies, TheDoorCountsWhatIsHeldAtOnce) {
  EXPECT_EQ(peak_blocks({.kind = RetentionKind::kTova, .budget = 512}, 400, 100, 1, 2048, 8), 63);
  EXPECT_EQ(peak_blocks({.kind = RetentionKind::kTova, .budget = 63}, 40, 60, 1, 2048, 8), 8 + 5);
  EXPECT_EQ(peak_blocks({.kind = RetentionKind::kTova, .budget = 63}, 80, 60, 1, 2048, 8), 8 + 10);
  EXPECT_EQ(peak_blocks({.kind = RetentionKind::kWindow, .window = 32}, 40, 2500, 1, 2048, 16), 7);
}

}  // namespace
}  // namespace quire
