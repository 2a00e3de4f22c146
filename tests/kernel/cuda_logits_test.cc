// Method: edit_logits and report_logprobs on the host shim with all its checks on, beside the CPU sampler's processors and `likeliest`,
// which define what is right. Edits are the same arithmetic, so rows are compared bit by bit; logprobs are float32 there and float64 here.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cuda/host_shim/runner.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"
#include "src/base/random.h"
#include "src/sample/filters.h"
#include "src/sample/ngram_index.h"
#include "src/sample/processors.h"
#include "tests/kernel/registered_memory.h"

namespace quire {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr cuda_host::Target kTarget{.stream = nullptr, .multiprocessors = 4, .activations = DType::kF32};

std::vector<float> random_logits(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits) x = static_cast<float>(8 * (random.uniform() + random.uniform() - 1));
  return logits;
}

// What one sequence asks for.
struct Wishes {
  std::vector<TokenId> history;
  int32_t prompt_tokens = 0;
  double repetition = 1, presence = 0, frequency = 0;
  int32_t no_repeat_ngram = 0;
  std::vector<std::pair<TokenId, double>> bias;
  std::vector<TokenId> allowed, ending;
  std::vector<std::vector<TokenId>> bad_words;
};

std::vector<float> by_the_processors(std::vector<float> row, const Wishes& w) {
  add_bias(row, w.bias);
  if (!w.allowed.empty()) allow_only(row, w.allowed);
  forbid_bad_words(row, w.history, w.bad_words);
  if (w.no_repeat_ngram > 0) {
    NgramIndex index(w.no_repeat_ngram);
    for (size_t i = 1; i <= w.history.size(); ++i) index.append(std::span(w.history).first(i));
    forbid(row, index.repeats(w.history));
  }
  std::vector<TokenCount> seen;
  for (size_t i = 0; i < w.history.size(); ++i) {
    auto at =
        std::find_if(seen.begin(), seen.end(), [&](const TokenCount& c) { return c.token == w.history[i]; });
    if (at == seen.end()) at = seen.insert(seen.end(), {.token = w.history[i]});
    at->in_output += static_cast<int32_t>(i) >= w.prompt_tokens ? 1 : 0;
  }
  const Penalties penalties{.repetition = w.repetition, .presence = w.presence, .frequency = w.frequency};
  if (w.repetition != 1 || w.presence != 0 || w.frequency != 0) penalize(row, seen, penalties);
  forbid(row, w.ending);
  return row;
}

// Histories first, then lists, as a device holds them.
struct Packed {
  std::vector<int32_t> ints;
  std::vector<LogitEdit> edits;
};

void append(std::vector<int32_t>& to, std::span<const int32_t> from) {
  to.insert(to.end(), from.begin(), from.end());
}

void pack(const Wishes& w, Packed& out) {
  LogitEdit e{.presence = w.presence,
              .frequency = w.frequency,
              .repetition = static_cast<float>(w.repetition),
              .history_tokens = static_cast<int32_t>(w.history.size()),
              .prompt_tokens = w.prompt_tokens,
              .no_repeat_ngram = w.no_repeat_ngram,
              .num_bias = static_cast<int32_t>(w.bias.size()),
              .num_allowed = static_cast<int32_t>(w.allowed.size()),
              .num_ending = static_cast<int32_t>(w.ending.size()),
              .num_bad_words = static_cast<int32_t>(w.bad_words.size())};
  e.logits_row = static_cast<int32_t>(out.edits.size() % 2);
  e.edited_row = static_cast<int32_t>(out.edits.size());
  e.history = static_cast<int64_t>(out.ints.size());
  append(out.ints, w.history);
  e.lists = static_cast<int64_t>(out.ints.size());
  for (const auto& [id, amount] : w.bias) out.ints.push_back(id);
  for (const auto& [id, amount] : w.bias)
    out.ints.push_back(std::bit_cast<int32_t>(static_cast<float>(amount)));
  append(out.ints, w.allowed);
  int32_t end = 0;
  out.ints.push_back(0);
  for (const auto& word : w.bad_words) out.ints.push_back(end += static_cast<int32_t>(word.size()));
  for (const auto& word : w.bad_words) append(out.ints, word);
  e.ending = static_cast<int64_t>(out.ints.size());
  append(out.ints, w.ending);
  out.edits.push_back(e);
}

void expect_edits_as_the_processors(int32_t vocab, const std::vector<Wishes>& wishes) {
  shim::set_shim_options({.checking = true, .order_seed = 3});
  const std::vector<float> logits = random_logits(2 * vocab, 7);
  Packed packed;
  for (const Wishes& w : wishes) pack(w, packed);
  packed.edits.push_back({});  // fills up the batch
  std::vector<float> edited(wishes.size() * static_cast<size_t>(vocab), NAN);
  const Registered memory[] = {Registered(logits), Registered(edited), Registered(packed.ints),
                               Registered(packed.edits)};
  cuda_host::edit_logits(kTarget, {.logits = logits.data(),
                                   .edited = edited.data(),
                                   .ints = packed.ints.data(),
                                   .edits = packed.edits.data(),
                                   .num_edits = static_cast<int32_t>(packed.edits.size()),
                                   .vocab = vocab});
  for (size_t i = 0; i < wishes.size(); ++i) {
    const auto from = logits.begin() + static_cast<int64_t>(i % 2) * vocab;
    const auto got = edited.begin() + static_cast<int64_t>(i) * vocab;
    EXPECT_EQ(std::vector<float>(got, got + vocab), by_the_processors({from, from + vocab}, wishes[i]))
        << "edit " << i;
  }
}

std::vector<TokenId> random_ids(Random& random, int count, int32_t vocab) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (TokenId& id : ids) id = static_cast<TokenId>(random.below(static_cast<uint64_t>(vocab)));
  return ids;
}

TEST(CudaLogitEdits, EachAsTheProcessorsDoIt) {
  Random random(1);
  const std::vector<TokenId> history = random_ids(random, 60, 40);
  expect_edits_as_the_processors(
      5003,
      {
          {.history = {}, .bias = {{4, 2.5}, {5002, -100.0}, {2048, 0.1}}},
          {.history = {}, .allowed = {1, 2047, 2048, 5002}},
          {.history = {7, 3}, .bad_words = {{9}, {3, 11}, {7, 3, 12}, {3, 7, 13}, {1, 7, 3, 14}, {9, 15}}},
          {.history = history, .no_repeat_ngram = 2},
          {.history = history, .no_repeat_ngram = 1},
          {.history = {5, 5}, .no_repeat_ngram = 4},
          {.history = history, .prompt_tokens = 20, .repetition = 1.3},
          {.history = history, .prompt_tokens = 20, .presence = 0.7, .frequency = 0.3},
          {.history = history, .prompt_tokens = 60, .presence = 0.7, .frequency = 0.3},
          {.history = {}, .ending = {0, 4999}},
      });
}

TEST(CudaLogitEdits, AllAtOnceOnRandomSequences) {
  Random random(2);
  for (int round = 0; round < 6; ++round) {
    const auto vocab = static_cast<int32_t>(3 + random.below(6000));
    std::vector<Wishes> wishes;
    for (int i = 0; i < 4; ++i) {
      Wishes w{.history = random_ids(random, static_cast<int>(random.below(300)), std::min(vocab, 50))};
      w.prompt_tokens = static_cast<int32_t>(random.below(w.history.size() + 1));
      w.repetition = 0.8 + random.uniform(), w.presence = random.uniform() - 0.5,
      w.frequency = random.uniform();
      w.no_repeat_ngram = static_cast<int32_t>(random.below(4));
      for (TokenId id = 0; id < vocab; id += 1 + static_cast<TokenId>(random.below(97)))
        w.bias.emplace_back(id, random.uniform() * 4 - 2);
      if (i % 2 == 0) w.allowed = random_ids(random, 1 + vocab / 3, vocab);
      w.ending = random_ids(random, 2, vocab);
      for (int k = 0; k < 5; ++k)
        w.bad_words.push_back(random_ids(random, 1 + static_cast<int>(random.below(2)), std::min(vocab, 50)));
      wishes.push_back(std::move(w));
    }
    expect_edits_as_the_processors(vocab, wishes);
  }
}

// ---- reports ----
struct Reported {
  std::vector<float> logprobs;
  std::vector<TopLogprobs> top;
};

Reported report(const std::vector<float>& logits, int32_t vocab, const std::vector<LogprobReport>& reports,
                const std::vector<int32_t>& tokens) {
  shim::set_shim_options({.checking = true, .order_seed = 5});
  Reported out{std::vector<float>(tokens.size(), NAN), std::vector<TopLogprobs>(reports.size())};
  const Registered memory[] = {Registered(logits), Registered(reports), Registered(tokens),
                               Registered(out.logprobs), Registered(out.top)};
  cuda_host::report_logprobs(kTarget, {.logits = logits.data(),
                                       .reports = reports.data(),
                                       .tokens = tokens.data(),
                                       .logprobs = out.logprobs.data(),
                                       .top = out.top.data(),
                                       .num_reports = static_cast<int32_t>(reports.size()),
                                       .vocab = vocab});
  return out;
}

void expect_likeliest(const Reported& got, size_t report, std::span<const float> row, int32_t num_top) {
  const auto wanted = likeliest(row, num_top, log_sum_exp(row));
  for (size_t k = 0; k < static_cast<size_t>(num_top); ++k) {
    const bool masked = k >= wanted.size() || !(wanted[k].second > -kInfinity);
    EXPECT_EQ(got.top[report].ids[k], masked ? -1 : wanted[k].first) << "rank " << k;
    if (!masked) {
      EXPECT_NEAR(got.top[report].logprobs[k], wanted[k].second, 1e-5) << "rank " << k;
    }
  }
}

TEST(CudaLogprobs, AreTheLikeliestAndThoseOfTheToken) {
  for (const int32_t vocab : {7, 300, 1024, 40003}) {
    const std::vector<float> logits = random_logits(3 * vocab, 11);
    const std::vector<LogprobReport> reports = {{.sample = 1, .logits_row = 2, .num_top = 5},
                                                {},
                                                {.sample = 0, .logits_row = 0, .num_top = 0},
                                                {.sample = 2, .logits_row = 1, .num_top = kMaxTopLogprobs}};
    const std::vector<int32_t> tokens = {3, 6, 0};
    const Reported got = report(logits, vocab, reports, tokens);
    const auto row = [&](int32_t r) {
      return std::span(logits).subspan(static_cast<size_t>(r * vocab), static_cast<size_t>(vocab));
    };
    for (const LogprobReport& r : reports)
      if (r.sample >= 0) {
        const auto token = static_cast<size_t>(tokens[static_cast<size_t>(r.sample)]);
        EXPECT_NEAR(got.logprobs[static_cast<size_t>(r.sample)],
                    log_probability(row(r.logits_row)[token], log_sum_exp(row(r.logits_row))), 1e-5);
      }
    expect_likeliest(got, 0, row(2), 5);
    expect_likeliest(got, 3, row(1), kMaxTopLogprobs);
  }
}

TEST(CudaLogprobs, EqualLogitsComeInTheOrderOfIds) {
  std::vector<float> logits(5000, 1.5f);  // more than are collected: cut digit by digit
  logits[4999] = 2, logits[17] = -kInfinity, logits[18] = NAN;
  expect_likeliest(report(logits, 5000, {{.sample = 0, .logits_row = 0, .num_top = 20}}, {4999}), 0, logits,
                   20);
}

TEST(CudaLogprobs, MaskedTokensAreNotAmongThem) {
  std::vector<float> logits(900, -kInfinity);
  logits[3] = 1, logits[800] = 2;
  const Reported got = report(logits, 900, {{.sample = 0, .logits_row = 0, .num_top = 4}}, {5});
  expect_likeliest(got, 0, logits, 4);
  EXPECT_EQ(got.logprobs[0], -kInfinity);
}

// ---- choosing from what was edited ----
TEST(CudaEditedRows, AreChosenFromOrSayThatNothingIsLeftUnlessTheTokenIsForced) {
  shim::set_shim_options({.checking = true, .order_seed = 0});
  constexpr int32_t kVocab = 3000;
  const std::vector<float> logits = random_logits(kVocab, 13);
  std::vector<float> edited(2 * kVocab, -kInfinity);
  edited[kVocab + 1234] = -50;
  const std::vector<SampleSettings> settings = {
      {.inverse_temperature = 0, .edited_row = 1},
      {.inverse_temperature = 1, .seed = 4, .edited_row = 1},
      {.inverse_temperature = 0, .edited_row = 0},
      {.inverse_temperature = 1, .top_k = 5, .seed = 4, .edited_row = 0},
      {.inverse_temperature = 0, .forced = 77}};
  std::vector<int32_t> tokens(settings.size(), -7);
  std::vector<float> logprobs(settings.size(), NAN);
  std::vector<double> workspace(
      static_cast<size_t>(cuda_host::sample_space_bytes()) * settings.size() / sizeof(double) + 2, NAN);
  const Registered memory[] = {Registered(logits), Registered(edited),   Registered(settings),
                               Registered(tokens), Registered(logprobs), Registered(workspace)};
  cuda_host::sample(kTarget, {.logits = logits.data(),
                              .edited = edited.data(),
                              .settings = settings.data(),
                              .workspace = workspace.data(),
                              .tokens = tokens.data(),
                              .logprobs = logprobs.data(),
                              .num_samples = static_cast<int32_t>(settings.size()),
                              .vocab = kVocab});
  EXPECT_EQ(tokens, (std::vector<int32_t>{1234, 1234, kRulesLeaveNoToken, kRulesLeaveNoToken, 77}));
  EXPECT_NEAR(logprobs[4], log_probability(logits[77], log_sum_exp(logits)), 1e-5);
}

TEST(CudaBringStep, HistoriesGetWhatTheRowsHold) {
  shim::set_shim_options({.checking = true, .order_seed = 0});
  std::vector<int32_t> ids(3, -7), histories(8, -1);
  const std::vector<int32_t> given = {10, 11, 12}, source = {-1, 1, 0}, tokens = {20, 21};
  const std::vector<int64_t> at = {3, 5, -1};
  const Registered memory[] = {Registered(ids),    Registered(histories), Registered(given),
                               Registered(source), Registered(tokens),    Registered(at)};
  cuda_host::bring_step(kTarget, {.ids = {.ids = ids.data(),
                                          .given = given.data(),
                                          .source = source.data(),
                                          .tokens = tokens.data(),
                                          .rows = 3,
                                          .histories = histories.data(),
                                          .history_at = at.data()}});
  EXPECT_EQ(ids, (std::vector<int32_t>{10, 21, 20}));
  EXPECT_EQ(histories, (std::vector<int32_t>{-1, -1, -1, 10, -1, 21, -1, -1}));
}

}  // namespace
}  // namespace quire
