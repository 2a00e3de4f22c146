// Method: the sampling kernels run on the host shim with all its checks on, beside the CPU sampler's filters and draw, which define what is
// right. Probabilities are float32 in the kernels and float64 there: of random draws at most one in a hundred may fall on the other side
// of a border; greedy and rows whose borders are wide must agree always.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/host_shim/runner.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"
#include "src/base/random.h"
#include "src/sample/filters.h"
#include "tests/kernel/registered_memory.h"

namespace quire {
namespace {

struct Case {
  int32_t vocab = 1000;
  std::vector<float> logits;  // [rows, vocab]
  std::vector<SampleSettings> settings;
  std::vector<float> edited = {};  // [edited rows, vocab]
};

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

Drawn run_kernels(Case& c, uint64_t order_seed = 0) {
  shim::set_shim_options({.checking = true, .order_seed = order_seed});
  Drawn out{std::vector<int32_t>(c.settings.size(), -7), std::vector<float>(c.settings.size(), NAN)};
  std::vector<double> workspace(
      static_cast<size_t>(cuda_host::sample_space_bytes()) * c.settings.size() / sizeof(double) + 2, NAN);
  std::vector<int32_t> on_host(c.settings.size(), -7);
  const Registered memory[] = {Registered(c.logits),   Registered(c.settings), Registered(workspace),
                               Registered(out.tokens), Registered(on_host),    Registered(out.logprobs),
                               Registered(c.edited)};
  cuda_host::sample({.stream = nullptr, .multiprocessors = 4, .activations = DType::kF32},
                    {.logits = c.logits.data(),
                     .edited = c.edited.empty() ? nullptr : c.edited.data(),
                     .settings = c.settings.data(),
                     .workspace = workspace.data(),
                     .tokens = out.tokens.data(),
                     .host_tokens = on_host.data(),
                     .logprobs = out.logprobs.data(),
                     .num_samples = static_cast<int32_t>(c.settings.size()),
                     .vocab = c.vocab});
  EXPECT_EQ(on_host, out.tokens);
  return out;
}

int32_t expected_token(const Case& c, const SampleSettings& s) {
  const std::span<const float> row(c.logits.data() + int64_t{s.logits_row} * c.vocab,
                                   static_cast<size_t>(c.vocab));
  if (s.inverse_temperature == 0) return greedy(row);
  SamplingParams params;
  params.temperature = 1.0 / s.inverse_temperature, params.top_k = s.top_k, params.top_p = s.top_p,
  params.min_p = s.min_p;
  std::vector<Candidate> candidates = filtered(row, params);
  return draw(candidates, draw_uniform(s.seed, s.position));
}

// scale 0: all logits equal.
std::vector<float> random_logits(int64_t count, double scale, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits)
    x = static_cast<float>(scale * (random.uniform() + random.uniform() + random.uniform() - 1.5));
  return logits;
}

struct Setting {
  const char* name;
  int32_t vocab;
  double scale;
  SampleSettings settings;
};

class CudaSampling : public testing::TestWithParam<Setting> {};

TEST_P(CudaSampling, ChoosesWhatTheCpuSamplerChooses) {
  constexpr int kSamples = 100;
  const Setting& setting = GetParam();
  Case c{
      .vocab = setting.vocab, .logits = random_logits(3ll * setting.vocab, setting.scale, 5), .settings = {}};
  for (int i = 0; i < kSamples; ++i) {
    SampleSettings s = setting.settings;
    s.seed = 100 + static_cast<uint64_t>(i), s.position = i * 3, s.logits_row = i % 3;
    c.settings.push_back(s);
  }
  const Drawn drawn = run_kernels(c);
  int different = 0;
  for (int i = 0; i < kSamples; ++i) {
    const SampleSettings& s = c.settings[static_cast<size_t>(i)];
    different += drawn.tokens[static_cast<size_t>(i)] != expected_token(c, s) ? 1 : 0;
    const std::span<const float> row(c.logits.data() + int64_t{s.logits_row} * c.vocab,
                                     static_cast<size_t>(c.vocab));
    EXPECT_NEAR(drawn.logprobs[static_cast<size_t>(i)],
                row[static_cast<size_t>(drawn.tokens[static_cast<size_t>(i)])] - log_sum_exp(row), 1e-4);
  }
  EXPECT_LE(different, setting.settings.inverse_temperature == 0 ? 0 : 1)
      << setting.name << ": of " << kSamples;
}

INSTANTIATE_TEST_SUITE_P(
    Settings, CudaSampling,
    testing::Values(
        Setting{"greedy", 1000, 10, {.inverse_temperature = 0}}, Setting{"plain", 1000, 10, {}},
        Setting{"plain_odd", 1003, 10, {}}, Setting{"tiny", 7, 4, {}},
        Setting{"hot", 4096, 10, {.inverse_temperature = 0.4f}},
        Setting{"top_k", 4096, 10, {.inverse_temperature = 0.7f, .top_k = 50}},
        Setting{"top_1", 999, 3, {.top_k = 1}}, Setting{"top_k_above_vocab", 40, 3, {.top_k = 50}},
        Setting{"top_k_settled", 4096, 6, {.top_k = 700}}, Setting{"top_p", 4096, 12, {.top_p = 0.8f}},
        Setting{"top_p_flat", 3001, 0.5, {.top_p = 0.9f}}, Setting{"min_p", 4096, 12, {.min_p = 0.1f}},
        Setting{"min_p_flat", 2000, 0.5, {.min_p = 0.5f}},
        Setting{"top_k_top_p", 6001, 10, {.inverse_temperature = 1.25f, .top_k = 40, .top_p = 0.9f}},
        Setting{"all", 2048, 8, {.inverse_temperature = 0.8f, .top_k = 100, .top_p = 0.95f, .min_p = 0.02f}},
        Setting{"top_p_min_p", 2048, 8, {.top_p = 0.7f, .min_p = 0.01f}},
        Setting{"equal_logits", 600, 0, {.top_k = 9}},
        // Three parts of a row, the last one short.
        Setting{"parts_greedy", 40001, 10, {.inverse_temperature = 0}}, Setting{"parts_plain", 40001, 10, {}},
        Setting{"parts_top_k", 40001, 10, {.inverse_temperature = 0.7f, .top_k = 50}},
        Setting{"parts_top_p", 40001, 14, {.top_p = 0.8f}},
        Setting{"parts_top_p_flat", 40001, 0.5, {.top_p = 0.9f}},
        Setting{"parts_min_p", 40001, 12, {.min_p = 0.1f}},
        Setting{"parts_all",
                40001,
                10,
                {.inverse_temperature = 0.8f, .top_k = 100, .top_p = 0.95f, .min_p = 0.02f}},
        Setting{"parts_equal_logits", 40001, 0, {.top_k = 9}}),
    [](const auto& info) { return info.param.name; });

TEST(CudaSamplingRows, MaskedTokensAreNeverChosenAndTheLowestIdWinsATie) {
  const float inf = std::numeric_limits<float>::infinity();
  Case c{.vocab = 8, .logits = {-inf, 2, -inf, 5, 5, -inf, -inf, 1}, .settings = {}};
  c.settings.push_back({.inverse_temperature = 0});
  for (int i = 0; i < 40; ++i)
    c.settings.push_back(
        {.inverse_temperature = 0.1f, .top_p = i % 2 == 0 ? 1.0f : 0.999f, .seed = 3, .position = i});
  const Drawn drawn = run_kernels(c);
  EXPECT_EQ(drawn.tokens[0], 3);
  for (const int32_t token : drawn.tokens)
    EXPECT_TRUE(token == 1 || token == 3 || token == 4 || token == 7) << token;
}

// Filtered or not, in one part of a row or in three; forced tokens too, as their logprob would have no meaning.
TEST(CudaSamplingRows, NoTokenComesFromARowWithoutLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int32_t vocab : {8, 40001}) {
    Case c{.vocab = vocab, .logits = std::vector<float>(static_cast<size_t>(vocab) * 2, NAN), .settings = {}};
    c.logits[3] = -inf;
    c.logits[static_cast<size_t>(vocab) + 5] = 1;
    for (const int32_t row : {0, 1})
      for (const SampleSettings& s : {SampleSettings{.inverse_temperature = 0},
                                      {},
                                      {.top_k = 3},
                                      {.top_p = 0.5f},
                                      {.min_p = 0.5f},
                                      {.forced = 2}}) {
        c.settings.push_back(s);
        c.settings.back().logits_row = row;
      }
    const Drawn drawn = run_kernels(c);
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(drawn.tokens[i], kNoLogitInRow) << vocab << " setting " << i;
    for (size_t i = 6; i < 11; ++i) EXPECT_EQ(drawn.tokens[i], 5) << vocab << " setting " << i;
    EXPECT_EQ(drawn.tokens[11], 2);
  }
}

// Of an edited row it is told whether the model or the edits left nothing.
TEST(CudaSamplingRows, NoTokenComesFromARowThatItsEditsEmptied) {
  constexpr int32_t kVocab = 40001;
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> edited(size_t{kVocab}, -inf);
  Case c{.vocab = kVocab, .logits = std::vector<float>(size_t{kVocab} * 2, -inf), .settings = {}};
  c.logits[kVocab - 1] = -4;
  c.edited = edited;
  c.settings = {{.logits_row = 0, .edited_row = 0},
                {.inverse_temperature = 0, .logits_row = 0, .edited_row = 0},
                {.logits_row = 1, .edited_row = 0},
                {.logits_row = 0, .edited_row = 0, .forced = 7}};
  EXPECT_EQ(run_kernels(c).tokens,
            (std::vector<int32_t>{kRulesLeaveNoToken, kRulesLeaveNoToken, kNoLogitInRow, 7}));
}

// What takes them on the device must stay inside the vocabulary.
TEST(CudaSamplingRows, WhatIsNoTokenIsTakenAsIdZero) {
  std::vector<int32_t> ids = {9, 9, 9}, tokens = {kRulesLeaveNoToken, 4, kNoLogitInRow}, history = {9, 9, 9};
  const std::vector<int32_t> source = {0, 1, 2}, given = {9, 9, 9};
  const std::vector<int64_t> at = {2, 1, 0};
  const Registered memory[] = {Registered(ids),    Registered(tokens), Registered(history),
                               Registered(source), Registered(given),  Registered(at)};
  cuda_host::bring_step({.stream = nullptr, .multiprocessors = 4, .activations = DType::kF32},
                        {.ids = {.ids = ids.data(),
                                 .given = given.data(),
                                 .source = source.data(),
                                 .tokens = tokens.data(),
                                 .rows = 3,
                                 .histories = history.data(),
                                 .history_at = at.data()}});
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 4, 0}));
  EXPECT_EQ(history, (std::vector<int32_t>{0, 4, 0}));
}

TEST(CudaSamplingRows, TheLowestIdWinsATieBetweenPartsOfARow) {
  constexpr int32_t kVocab = 40001;
  for (const std::vector<int32_t>& highest :
       {std::vector<int32_t>{40000, 16384, 33000}, {16383, 16384}, {40000}, {32768, 32767}, {0, 40000}}) {
    Case c{.vocab = kVocab, .logits = random_logits(kVocab, 4, 8), .settings = {{.inverse_temperature = 0}}};
    for (const int32_t id : highest) c.logits[static_cast<size_t>(id)] = 20;
    c.settings.push_back({.top_k = 1, .seed = 4});
    const Drawn drawn = run_kernels(c);
    const int32_t lowest = *std::min_element(highest.begin(), highest.end());
    EXPECT_EQ(drawn.tokens[0], lowest);
    EXPECT_EQ(drawn.tokens[1], lowest);
  }
}

TEST(CudaSamplingRows, ASampleDoesNotDependOnTheOthersNorOnTheOrderOfBlocks) {
  Case many{.vocab = 1024, .logits = random_logits(70 * 1024, 9, 2), .settings = {}};
  for (int i = 0; i < 70; ++i)
    many.settings.push_back({.top_k = 20, .top_p = 0.9f, .seed = 9, .position = i, .logits_row = i});
  const Drawn together = run_kernels(many), shuffled = run_kernels(many, 77);
  EXPECT_EQ(together.tokens, shuffled.tokens);
  EXPECT_EQ(together.logprobs, shuffled.logprobs);
  for (const size_t i : {size_t{0}, size_t{63}, size_t{64}, size_t{69}}) {
    Case one{.vocab = 1024, .logits = many.logits, .settings = {many.settings[i]}};
    const Drawn alone = run_kernels(one);
    EXPECT_EQ(alone.tokens[0], together.tokens[i]);
    EXPECT_EQ(alone.logprobs[0], together.logprobs[i]);
  }
}

}  // namespace
}  // namespace quire
