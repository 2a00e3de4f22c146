// What the engine's figures say of KV policies: who runs under which and what lists hold, what policies dropped, what attention reads, and
// what went over the link. Method: requests whose lists are known to the slot, over the fake executor; figures are reckoned by hand.
#include "tests/property/engine_harness.h"

namespace quire {
namespace {

constexpr int32_t kPrompt = 40;

EngineStats stats_of(Harness& h) {
  EngineStats stats;
  h.core().fill_stats(stats);
  return stats;
}
const PolicyStats& of(const EngineStats& stats, std::string_view name) {
  for (const PolicyStats& policy : stats.policies)
    if (policy.name == name) return policy;
  check_failed("every policy has figures", __FILE__, __LINE__);
}
RequestId ask(Harness& h, const char* policy, int32_t max_tokens, int32_t first = 0) {
  std::vector<TokenId> prompt;
  for (int32_t i = 0; i < kPrompt; ++i) prompt.push_back(first + i);
  CoreRequest more;
  more.policy = *parse_policy(policy);
  more.bypass_prefix_cache = true;
  return h.submit(std::move(prompt), Harness::greedy(max_tokens), more);
}
// A token of the harness' cache: K and V of one layer and head of 8 float32.
constexpr int64_t kTokenBytes = 2 * 8 * 4;

struct Expected {
  const char* policy;
  const char* name;
  int64_t dropped, reads;  // slots, by the end
};

// Five tokens: the prompt gives the first, four decodes run, at positions 40 to 43, in blocks of 8.
constexpr int32_t kNewTokens = 5;
const Expected kExpected[] = {
    {"none", "none", 0, 41 + 42 + 43 + 44},
    // Rows 40 to 43 begin to see at 21 to 24: the two blocks before 16 are let go of, and with the last row's the third.
    {"window:size=20", "window", 24, 4 * 20},
    {"stream:sinks=8,recent=12", "stream", 24, 4 * 20},  // 8 to 28 at 40; 32 is first seen by 43
    // 40 are cut to 10, three of the four overwrite a victim.
    {"tova:budget=10", "tova", 30 + 3, 4 * 11},
    {"h2o:heavy=5,recent=5", "h2o", 30 + 3, 4 * 11},
    {"tova:budget=42", "tova", 1,
     41 + 42 + 43 + 43},  // full after the third, which makes the fourth overwrite
};

TEST(PolicyFigures, AreWhatTheListsSay) {
  for (const Expected& e : kExpected) {
    SCOPED_TRACE(e.policy);
    HarnessOptions o;
    o.max_context_tokens = 100;
    Harness h(o);
    const RequestId id = ask(h, e.policy, kNewTokens);
    bool seen = false;
    while (!h.core().idle()) {
      h.step();
      const SequenceGroup* group = h.core().scheduler().find(id);
      if (group == nullptr || h.core().scheduler().num_running() == 0) continue;
      const EngineStats now = stats_of(h);
      const BlockTable& table = group->sequences.front()->table;
      EXPECT_EQ(of(now, e.name).sequences, 1);
      EXPECT_EQ(of(now, e.name).slots, table.length());
      EXPECT_EQ(of(now, e.name).blocks, table.num_blocks());
      seen = true;
    }
    EXPECT_TRUE(seen);
    const EngineStats end = stats_of(h);
    EXPECT_EQ(of(end, e.name).sequences, 0);
    EXPECT_EQ(end.policy_dropped_tokens_total, e.dropped);
    EXPECT_EQ(end.attention_read_bytes_total, e.reads * kTokenBytes);
    EXPECT_EQ(end.bytes_from_device_total, 0);
    h.expect_sound();
  }
}

TEST(PolicyFigures, TheAnswerSaysHowThePromptRan) {
  Harness h;
  const std::pair<const char*, const char*> cases[] = {{"none", "full"},
                                                       {"window:size=8", "windowed"},
                                                       {"stream:sinks=1,recent=8", "windowed"},
                                                       {"tova:budget=8", "full_then_cut"},
                                                       {"h2o:heavy=4,recent=4", "full_then_cut"}};
  for (const auto& [policy, mode] : cases) {
    const RequestId id = ask(h, policy, 2);
    h.run();
    EXPECT_EQ(h.record(id).end.kv.prefill_mode, mode) << policy;
  }
}

TEST(PolicyFigures, BytesOverTheLinkAreWholeBlocks) {
  HarnessOptions o;
  o.num_blocks = 12;
  o.num_host_blocks = 40;
  o.num_disk_blocks = 40;
  Harness h(o);
  const auto run = [&](int32_t first) {
    std::vector<TokenId> prompt;
    for (int32_t i = 0; i < 64; ++i) prompt.push_back(first + i);
    h.submit(std::move(prompt), Harness::greedy(2));
    h.run();
  };
  run(0);
  constexpr int64_t kBlockBytes = 8 * kTokenBytes;
  EXPECT_EQ(stats_of(h).bytes_from_device_total, 8 * kBlockBytes);
  EXPECT_EQ(stats_of(h).bytes_host_to_disk_total, 8 * kBlockBytes);
  EXPECT_EQ(stats_of(h).bytes_to_device_total, 0);
  run(300);  // takes the room of the first
  run(0);
  const EngineStats end = stats_of(h);
  EXPECT_GT(end.bytes_to_device_total, 0);
  EXPECT_EQ(end.bytes_to_device_total % kBlockBytes, 0);
}

}  // namespace
}  // namespace quire
