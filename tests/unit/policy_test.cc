// Method: decisions against golden vectors of a plain float64 program written from the papers' rules (T = 32 tokens, prompt 24, 4 query and 2 KV heads of 8,
// inputs from a linear congruential generator, all in float64), and against a plain restatement on random cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "src/base/random.h"
#include "src/policy/policy_memory.h"
#include "src/policy/policy_spec.h"
#include "src/policy/reject.h"
#include "src/policy/retention.h"

namespace quire {
namespace {

constexpr int kTokens = 32, kPrompt = 24, kDim = 8, kHeads = 4, kKvHeads = 2, kGroup = kHeads / kKvHeads;
using Row = std::array<double, kDim>;

std::vector<Row> generate(uint64_t seed, double scale) {
  std::vector<Row> rows(kTokens);
  uint64_t x = seed;
  for (Row& row : rows)
    for (double& value : row) {
      x = (1103515245ull * x + 12345ull) % (1ull << 31);
      value = scale * (2.0 * static_cast<double>(x) / static_cast<double>(1ull << 31) - 1.0);
    }
  return rows;
}

Row rotate(const Row& v, int position) {
  Row out = v;
  for (int i = 0; i < kDim / 2; ++i) {
    const double angle = position * std::pow(10000.0, -2.0 * i / kDim), c = std::cos(angle),
                 s = std::sin(angle);
    out[i] = v[i] * c - v[i + kDim / 2] * s;
    out[i + kDim / 2] = v[i + kDim / 2] * c + v[i] * s;
  }
  return out;
}

// The micro-vectors' queries and keys, rotated at their true positions.
struct Toy {
  std::vector<std::vector<Row>> q, k;

  Toy() {
    for (int h = 0; h < kHeads; ++h) q.push_back(rotated(generate(101 + h, 8.0)));
    for (int h = 0; h < kKvHeads; ++h) k.push_back(rotated(generate(201 + h, 1.0)));
  }

  static std::vector<Row> rotated(std::vector<Row> rows) {
    for (int t = 0; t < kTokens; ++t) rows[t] = rotate(rows[t], t);
    return rows;
  }

  // Scaled logits of query head h at position t over the given key positions, and their log-sum-exp.
  std::pair<std::vector<float>, float> logits(int h, int t, const std::vector<int32_t>& positions) const {
    std::vector<float> out;
    double highest = -1e300, sum = 0;
    for (const int32_t j : positions) {
      const double dot = std::inner_product(q[h][t].begin(), q[h][t].end(), k[h / kGroup][j].begin(), 0.0) /
                         std::sqrt(double{kDim});
      out.push_back(static_cast<float>(dot));
      highest = std::max(highest, dot);
    }
    for (const float s : out) sum += std::exp(static_cast<double>(s) - highest);
    return {out, static_cast<float>(highest + std::log(sum))};
  }
};

std::vector<int32_t> all_positions(const RetentionList& list) {
  std::vector<int32_t> positions;
  for (int32_t slot = 0; slot < list.num_slots(); ++slot) positions.push_back(list.position_of(slot));
  return positions;
}

// Logits of several heads as one [heads][n] array, and the lse of each.
std::pair<std::vector<float>, std::vector<float>> stacked(const Toy& toy, int first_head, int num_heads,
                                                          int t, const std::vector<int32_t>& positions) {
  std::vector<float> logits, lse;
  for (int h = first_head; h < first_head + num_heads; ++h) {
    const auto [row, z] = toy.logits(h, t, positions);
    logits.insert(logits.end(), row.begin(), row.end());
    lse.push_back(z);
  }
  return {logits, lse};
}

TEST(Tova, KeepsWhatTheMicroVectorsKeep) {
  const Toy toy;
  const PolicySpec spec = *parse_policy("tova:budget=10");
  RetentionList list;
  for (int t = 0; t < kPrompt; ++t) list.append(t);
  const auto probabilities = [&](int t) {
    const std::vector<int32_t> positions = all_positions(list);
    const auto [logits, lse] = stacked(toy, 0, kHeads, t, positions);
    std::vector<float> mean(positions.size());
    mean_probabilities(logits, static_cast<int64_t>(positions.size()), lse, mean);
    return mean;
  };
  list.cut(spec, probabilities(kPrompt - 1));
  EXPECT_EQ(list.live_positions(), (std::vector<int32_t>{2, 3, 6, 11, 14, 17, 19, 21, 22, 23}));
  for (int t = kPrompt; t < kTokens; ++t) {
    list.append(t);
    list.on_decode_row(spec, probabilities(t));
  }
  EXPECT_EQ(list.live_positions(), (std::vector<int32_t>{6, 17, 22, 24, 26, 27, 28, 29, 30, 31}));
  EXPECT_EQ(list.num_slots(), 11);
}

std::vector<float> column_sums(const Toy& toy, int kv_head) {
  std::vector<float> sums(kPrompt, 0.0f);
  for (int t = 0; t < kPrompt; ++t) {
    std::vector<int32_t> positions(static_cast<size_t>(t) + 1);
    std::iota(positions.begin(), positions.end(), 0);
    const auto [logits, lse] = stacked(toy, kv_head * kGroup, kGroup, t, positions);
    add_probabilities(logits, t + 1, lse, std::span<float>(sums).first(positions.size()));
  }
  return sums;
}

struct H2oGolden {
  int kv_head;
  std::vector<int32_t> at_prompt, at_end;
  float first_score;
};

TEST(H2o, KeepsWhatTheMicroVectorsKeep) {
  const Toy toy;
  const PolicySpec spec = *parse_policy("h2o:heavy=5,recent=5");
  const H2oGolden goldens[] = {
      {0, {0, 1, 2, 3, 7, 19, 20, 21, 22, 23}, {0, 1, 2, 3, 7, 27, 28, 29, 30, 31}, 7.703978f},
      {1, {0, 1, 2, 3, 4, 19, 20, 21, 22, 23}, {0, 1, 2, 3, 4, 27, 28, 29, 30, 31}, 14.492352f}};
  for (const H2oGolden& golden : goldens) {
    RetentionList list;
    for (int t = 0; t < kPrompt; ++t) list.append(t);
    list.cut(spec, column_sums(toy, golden.kv_head));
    EXPECT_EQ(list.live_positions(), golden.at_prompt);
    for (int t = kPrompt; t < kTokens; ++t) {
      list.append(t);
      const std::vector<int32_t> positions = all_positions(list);
      const auto [logits, lse] = stacked(toy, golden.kv_head * kGroup, kGroup, t, positions);
      std::vector<float> sums(positions.size(), 0.0f);
      add_probabilities(logits, static_cast<int64_t>(positions.size()), lse, sums);
      list.on_decode_row(spec, sums);
    }
    EXPECT_EQ(list.live_positions(), golden.at_end);
    EXPECT_NEAR(list.scores()[0], golden.first_score, 1e-5);
  }
}

// A plain restatement: the list as a set of positions, everything sorted anew at each step.
struct PlainList {
  std::vector<std::pair<int32_t, double>> entries;  // position, score

  void trim(const PolicySpec& spec, const std::vector<double>& ranking) {  // ranking by entry
    const auto limit = static_cast<size_t>(capacity(spec));
    if (entries.size() <= limit) return;
    const size_t recent = spec.kind == RetentionKind::kH2o ? static_cast<size_t>(spec.recent) : 0;
    std::vector<size_t> order(entries.size() - recent);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return ranking[a] != ranking[b] ? ranking[a] > ranking[b] : entries[a].first > entries[b].first;
    });
    order.resize(limit - recent);
    std::sort(order.begin(), order.end());
    std::vector<std::pair<int32_t, double>> kept;
    for (const size_t i : order) kept.push_back(entries[i]);
    kept.insert(kept.end(), entries.end() - static_cast<int64_t>(recent), entries.end());
    entries = kept;
  }
};

class RandomDecisions : public testing::TestWithParam<const char*> {};

TEST_P(RandomDecisions, EqualAPlainRestatement) {
  const PolicySpec spec = *parse_policy(GetParam());
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Random random(seed);
    const auto prompt = static_cast<int32_t>(random.between(1, 40));
    RetentionList list;
    PlainList plain;
    std::vector<float> scores;
    std::vector<double> ranking;
    for (int32_t t = 0; t < prompt; ++t) {
      list.append(t);
      scores.push_back(static_cast<float>(random.uniform()));
      ranking.push_back(scores.back());
      plain.entries.emplace_back(t, spec.kind == RetentionKind::kH2o ? ranking.back() : 0.0);
    }
    list.cut(spec, scores);
    plain.trim(spec, ranking);
    for (int32_t t = prompt; t < prompt + 30; ++t) {
      list.append(t);
      plain.entries.emplace_back(t, 0.0);
      std::vector<float> by_slot(static_cast<size_t>(list.num_slots()));
      std::vector<double> by_entry(plain.entries.size());
      for (size_t e = 0; e < plain.entries.size(); ++e) {
        const float p = static_cast<float>(random.uniform());
        for (int32_t slot = 0; slot < list.num_slots(); ++slot)
          if (list.position_of(slot) == plain.entries[e].first) by_slot[static_cast<size_t>(slot)] = p;
        plain.entries[e].second = static_cast<float>(plain.entries[e].second) + p;
        by_entry[e] = spec.kind == RetentionKind::kH2o ? plain.entries[e].second : p;
      }
      list.on_decode_row(spec, by_slot);
      plain.trim(spec, by_entry);
      std::vector<int32_t> expected;
      for (const auto& [position, score] : plain.entries) expected.push_back(position);
      ASSERT_EQ(list.live_positions(), expected) << "seed " << seed << " position " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, RandomDecisions,
                         testing::Values("tova:budget=1", "tova:budget=10", "tova:budget=100",
                                         "h2o:heavy=5,recent=5", "h2o:heavy=0,recent=3",
                                         "h2o:heavy=50,recent=50"));

// Random scores are never equal.
TEST(Ties, TheNewerWins) {
  const std::vector<float> scores = {0.25f, 0.25f, 0.5f, 0.25f};
  EXPECT_EQ(keep_highest(scores, std::vector<int32_t>{5, 9, 3, 7}, 3), (std::vector<int32_t>{1, 2, 3}));
  const PolicySpec spec = *parse_policy("tova:budget=3");
  RetentionList list;
  for (const int32_t position : {0, 1, 2, 3}) list.append(position);
  list.on_decode_row(spec, scores);
  EXPECT_EQ(list.live_positions(), (std::vector<int32_t>{1, 2, 3}));
}

TEST(PolicySpec, ParsesWhatItPrints) {
  for (const char* text :
       {"window:size=128", "stream:sinks=4,recent=124", "tova:budget=128", "h2o:heavy=64,recent=64"})
    EXPECT_EQ(to_string(*parse_policy(text)), text);
  EXPECT_EQ(parse_policy("")->kind, RetentionKind::kKeepAll);
  EXPECT_EQ(parse_policy("none")->kind, RetentionKind::kKeepAll);
}

TEST(PolicySpec, AMistakeIsNamed) {
  const std::pair<const char*, const char*> cases[] = {{"lru:size=3", "unknown kv_policy 'lru'"},
                                                       {"window", "needs size"},
                                                       {"window:size=0", "size is '0'"},
                                                       {"window:width=3", "no setting 'width=3'"},
                                                       {"window:size=3,size=4", "twice"},
                                                       {"tova:budget=x", "budget is 'x'"},
                                                       {"tova:budget=99999999999", "budget is"},
                                                       {"h2o:heavy=3", "needs recent"},
                                                       {"stream:sinks=-1,recent=4", "sinks is '-1'"},
                                                       {"window:size", "no setting 'size'"},
                                                       {"window:size=4,", "an empty setting"},
                                                       {"window:", "an empty setting"},
                                                       {"tova:,budget=4", "an empty setting"},
                                                       {"none:", "an empty setting"},
                                                       {"window:size=4,tova:budget=4", "choose one"},
                                                       {"window:size=4,none", "choose one"},
                                                       {"w\n\x1b", "'w\\n\\u001b'"},
                                                       {"window:\n=4", "no setting '\\n=4'"},
                                                       {"window:size=\n", "size is '\\n'"}};
  for (const auto& [text, expected] : cases) {
    const auto parsed = parse_policy(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_NE(parsed.error().message.find(expected), std::string::npos) << parsed.error().message;
    EXPECT_EQ(parsed.error().field, "kv_policy");
  }
}

TEST(PolicySpec, ATextBeyondTheLimitIsRefusedAndNotShown) {
  const std::string longest = "window:size=" + std::string(1024 - 13, '0') + "4";
  EXPECT_EQ(parse_policy(longest)->window, 4);
  const auto parsed = parse_policy(longest + "4");
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().message, "kv_policy has 1025 bytes; at most 1024");
  EXPECT_EQ(parsed.error().field, "kv_policy");
}

TEST(PolicyBound, IsWhatALongRunNeeds) {
  EXPECT_EQ(bound(*parse_policy(""), 100, 50, 32).peak_slots, 150);
  EXPECT_EQ(bound(*parse_policy("window:size=64"), 100, 50, 32).peak_slots, 64 - 1 + 32);
  EXPECT_EQ(bound(*parse_policy("stream:sinks=4,recent=60"), 1000, 5000, 1).steady_slots, 64);
  EXPECT_EQ(bound(*parse_policy("tova:budget=64"), 100, 50, 32).peak_slots, 100);
  EXPECT_EQ(bound(*parse_policy("tova:budget=64"), 100, 50, 32).steady_slots, 65);
  EXPECT_EQ(bound(*parse_policy("h2o:heavy=8,recent=8"), 4, 3, 32).steady_slots, 7);
}

// A list of its capacity overwrites when one token more is run; the last token of an output never is.
TEST(PolicyBlocks, OfWhoOverwritesAreThePromptsFullOnes) {
  const PolicySpec tova = *parse_policy("tova:budget=8");
  EXPECT_FALSE(cuts_prompt(tova, 8));
  EXPECT_TRUE(cuts_prompt(tova, 9));
  EXPECT_EQ(overwrite_copies(tova, 7, 9, 4), 0);
  EXPECT_EQ(overwrite_copies(tova, 7, 10, 4), 1);
  EXPECT_EQ(overwrite_copies(tova, 8, 10, 4), 2);
  EXPECT_EQ(overwrite_copies(*parse_policy("window:size=8"), 8, 10, 4), 0);
}

// Each has its window beside a chunk, one block more where that begins inside one, and all of them the prompt that they come from.
TEST(PolicyBlocks, OfSamplesThatSlideArePromptAndLists) {
  const PolicySpec window = *parse_policy("window:size=8"), stream = *parse_policy("stream:sinks=5,recent=8");
  EXPECT_EQ(list_blocks(window, 32, 8, 4), 5);
  EXPECT_EQ(list_blocks(stream, 32, 8, 4), 7);
  EXPECT_EQ(list_blocks(window, 12, 8, 4), 3) << "no more than its tokens";
  EXPECT_EQ(peak_blocks(window, 16, 16, 1, 8, 4), 5);
  EXPECT_EQ(peak_blocks(window, 16, 16, 2, 8, 4), 2 * 5 + 4);
  EXPECT_EQ(peak_blocks(window, 16, 500, 1, 4096, 4), (7 + 64 + 3) / 4 + 1) << "chunks of 64 at most";
}

// Two layers of three KV heads, four bytes a number, in parts of 256: a list's positions and its free slot, where sums decide its scores
// too, and sums over the prompt.
TEST(PolicyMemoryOf, AListIsItsSlotsAndItsScores) {
  const PolicyMemoryLimits shape{.num_layers = 2, .num_kv_heads = 3};
  const PolicySpec tova = *parse_policy("tova:budget=40"), h2o = *parse_policy("h2o:heavy=8,recent=7");
  EXPECT_EQ(policy_list_bytes(tova, 41, shape), 512) << "2 x (41 + 1) x 4";
  EXPECT_EQ(policy_list_bytes(h2o, 16, shape), 1024) << "6 x (16 + 1 + 16) x 4";
  EXPECT_EQ(policy_sum_bytes(tova, 100, shape), 0);
  EXPECT_EQ(policy_sum_bytes(h2o, 100, shape), 2560) << "6 x 100 x 4";
  EXPECT_EQ(policy_request_bytes(h2o, 100, 200, 3, shape), 2560 + 3 * 1024);
  EXPECT_EQ(policy_request_bytes(*parse_policy("window:size=8"), 100, 200, 3, shape), 0);
}

TEST(PolicyVisible, IsTheNarrowerOfThePolicysWindowAndTheModels) {
  using Positions = std::vector<int32_t>;
  const PolicySpec window = *parse_policy("window:size=4"), stream = *parse_policy("stream:sinks=2,recent=3");
  EXPECT_EQ(visible_positions(window, 20, 0), (Positions{17, 18, 19, 20}));
  EXPECT_EQ(visible_positions(window, 20, 2), (Positions{19, 20}));
  EXPECT_EQ(visible_positions(window, 20, 9), (Positions{17, 18, 19, 20}));
  EXPECT_EQ(visible_positions(window, 2, 0), (Positions{0, 1, 2}));
  EXPECT_EQ(visible_positions(stream, 20, 0), (Positions{0, 1, 18, 19, 20}));
  EXPECT_EQ(visible_positions(stream, 3, 0), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(visible_positions({}, 3, 2), (Positions{2, 3}));
}

// Which policy goes with what, said once more: a row that is missing refuses nothing.
TEST(PolicyReject, IsWhatTheMatrixHasAndNoMore) {
  using Setting = PolicySetting;
  struct Column {
    bool Setting::* setting;
    std::vector<std::string_view> refused;
  };
  for (const Column& column : {Column{&Setting::model_has_sliding_window, {"stream", "tova", "h2o"}},
                               Column{&Setting::dynamic_ntk_rope, {"stream"}},
                               Column{&Setting::shares_kv_across_layers, {"tova", "h2o"}},
                               Column{&Setting::prompt_logprobs, {"window", "stream"}},
                               Column{&Setting::recompute_preemption, {"tova", "h2o"}}}) {
    PolicySetting setting;
    setting.*(column.setting) = true;
    std::vector<std::string_view> refused;
    for (const char* text :
         {"none", "window:size=8", "stream:sinks=1,recent=8", "tova:budget=8", "h2o:heavy=8,recent=8"}) {
      const PolicySpec spec = *parse_policy(text);
      if (!check_policy(spec, setting)) refused.push_back(name_of(spec.kind));
    }
    EXPECT_EQ(refused, column.refused);
  }
}

TEST(PolicyReject, EveryRowOfTheMatrixRefusesAndSaysWhy) {
  for (const PolicyRejection& row : policy_rejections()) {
    PolicySpec spec{.kind = row.kind, .window = 8, .sinks = 1, .recent = 8, .budget = 8, .heavy = 8};
    PolicySetting setting;
    EXPECT_TRUE(check_policy(spec, setting));
    setting.*(row.setting) = true;
    const Status status = check_policy(spec, setting);
    ASSERT_FALSE(status);
    EXPECT_NE(status.error().message.find(row.why), std::string::npos);
  }
}

}  // namespace
}  // namespace quire
