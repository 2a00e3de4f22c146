// Method: distributions by chi-square over 20,000 seeded draws, where the bound is the 1 - 1e-4 quantile of the
// distribution; independence of the batch by running the same sequence alone and among others.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "src/base/random.h"
#include "src/sample/filters.h"
#include "src/sample/sampler.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> some_logits(size_t vocab, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(vocab);
  for (float& l : logits) l = static_cast<float>(random.uniform() * 8 - 4);
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p(logits.size());
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp(logits[i] / temperature);
  for (double& x : p) x /= sum;
  return p;
}

TEST(Greedy, TheLowestIdWinsATie) {
  const std::vector<float> row = {1, 3, 3, 2};
  EXPECT_EQ(greedy(row), 1);
}

TEST(Filters, TopKKeepsTheLikeliestAndBreaksTiesByLowerId) {
  SamplingParams params;
  params.top_k = 2;
  const std::vector<float> row = {1, 3, 3, 3};
  std::vector<TokenId> tokens;
  for (const Candidate& c : filtered(row, params)) tokens.push_back(c.token);
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(tokens, (std::vector<TokenId>{1, 2}));
}

// The filters' definitions, written out over a full sort.
std::vector<double> expected_distribution(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<double> p = softmax(logits, params.temperature);
  const auto keep = [&](auto chosen) {
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) sum += p[i] = chosen(i) ? p[i] : 0.0;
    for (double& x : p) x /= sum;
  };
  const auto ranked = [&](auto before) {
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), before);
    return order;
  };
  const auto by_mass = [&](const std::vector<size_t>& order, double mass) {
    std::vector<char> in(p.size(), 0);
    double sum = 0;
    for (const size_t i : order) {
      in[i] = 1;
      if ((sum += p[i]) >= mass) break;
    }
    keep([&](size_t i) { return in[i] != 0; });
  };
  const auto likelier = [&](size_t a, size_t b) { return p[a] > p[b]; };
  if (params.top_k > 0) {
    const std::vector<size_t> order = ranked(likelier);
    std::vector<char> in(p.size(), 0);
    for (int i = 0; i < params.top_k; ++i) in[order[static_cast<size_t>(i)]] = 1;
    keep([&](size_t i) { return in[i] != 0; });
  }
  if (params.top_p < 1) by_mass(ranked(likelier), params.top_p);
  if (params.min_p > 0) {
    const double highest = *std::max_element(p.begin(), p.end());
    const std::vector<double> before = p;
    keep([&](size_t i) { return before[i] >= params.min_p * highest; });
  }
  if (params.typical_p < 1) {
    double entropy = 0;
    for (const double x : p)
      if (x > 0) entropy -= x * std::log(x);
    by_mass(ranked([&](size_t a, size_t b) {
              const auto distance = [&](size_t i) {
                return p[i] > 0 ? std::fabs(-std::log(p[i]) - entropy) : INFINITY;
              };
              return distance(a) < distance(b);
            }),
            params.typical_p);
  }
  return p;
}

TEST(Filters, KeepWhatAFullSortKeeps) {
  Random random(21);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> row(1 + random.below(3000));
    const double spread = random.uniform() * 12;
    for (float& x : row) x = static_cast<float>(random.uniform() * spread);
    SamplingParams params;
    params.temperature = 0.2 + random.uniform() * 3;
    if (random.chance(0.4)) params.top_k = static_cast<int32_t>(1 + random.below(row.size()));
    if (random.chance(0.5)) params.top_p = 0.01 + 0.98 * random.uniform();
    if (random.chance(0.3)) params.min_p = random.uniform() * 0.5;
    if (random.chance(0.5)) params.typical_p = 0.01 + 0.98 * random.uniform();
    std::vector<double> found(row.size(), 0.0);
    for (const Candidate& c : filtered(row, params)) found[static_cast<size_t>(c.token)] = c.probability;
    const std::vector<double> expected = expected_distribution(row, params);
    for (size_t i = 0; i < row.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], 1e-6 * (found[i] + expected[i]))
          << "round " << round << " token " << i;
  }
}

// 1 - 1e-4 quantile of chi-square with k degrees of freedom (Wilson and Hilferty 1931), z = 3.719.
double chi_square_bound(double k) {
  return k * std::pow(1 - 2 / (9 * k) + 3.719 * std::sqrt(2 / (9 * k)), 3);
}

struct NamedParams {
  const char* name;
  SamplingParams params;
};

class Distribution : public testing::TestWithParam<NamedParams> {};

TEST_P(Distribution, OfDrawsIsTheDefinitionsByChiSquare) {
  constexpr int kDraws = 20000;
  const std::vector<float> logits = some_logits(60, 11);
  const std::vector<double> expected = expected_distribution(logits, GetParam().params);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    std::vector<Candidate> candidates = filtered(logits, GetParam().params);
    ++counts[static_cast<size_t>(draw(candidates, draw_uniform(1234 + static_cast<uint64_t>(i), i % 7)))];
  }
  double statistic = 0;
  int cells = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] == 0) {
      ASSERT_EQ(counts[i], 0) << "token " << i << " was filtered out";
      continue;
    }
    const double mean = expected[i] * kDraws;
    statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++cells;
  }
  if (cells > 1) {
    EXPECT_LT(statistic, chi_square_bound(cells - 1)) << cells << " cells";
  }
}

SamplingParams with(double temperature, int top_k, double top_p, double min_p, double typical_p) {
  SamplingParams params;
  params.temperature = temperature, params.top_k = top_k, params.top_p = top_p, params.min_p = min_p,
  params.typical_p = typical_p;
  return params;
}

INSTANTIATE_TEST_SUITE_P(
    Settings, Distribution,
    testing::Values(NamedParams{"plain", with(1, 0, 1, 0, 1)}, NamedParams{"hot", with(2.5, 0, 1, 0, 1)},
                    NamedParams{"cold", with(0.4, 0, 1, 0, 1)}, NamedParams{"top_k", with(1, 7, 1, 0, 1)},
                    NamedParams{"top_p", with(1, 0, 0.6, 0, 1)}, NamedParams{"min_p", with(1, 0, 1, 0.2, 1)},
                    NamedParams{"typical_p", with(1, 0, 1, 0, 0.5)},
                    NamedParams{"all", with(0.9, 30, 0.9, 0.05, 0.8)},
                    NamedParams{"one", with(1, 1, 1, 0, 1)}),
    [](const auto& info) { return info.param.name; });

TEST(Draw, UsesEveryEndOfTheUnitInterval) {
  std::vector<Candidate> candidates = {{.token = 4, .logit = 0, .probability = 0.5},
                                       {.token = 2, .logit = 0, .probability = 0.5},
                                       {.token = 9, .logit = 0, .probability = 0}};
  EXPECT_EQ(draw(candidates, 1e-9), 2);
  EXPECT_EQ(draw(candidates, 0.75), 4);
  EXPECT_EQ(draw(candidates, 1.0), 4);
}

PlannedJoin join_of(uint64_t sequence, SamplingParams params, uint64_t seed,
                    std::vector<TokenId> prompt = {1, 2, 3}) {
  return {.sequence = SequenceId{sequence},
          .sampling = std::make_shared<const SamplingParams>(std::move(params)),
          .seed = seed,
          .history = prompt,
          .num_prompt_tokens = static_cast<int32_t>(prompt.size()),
          .eos_token_ids = {0}};
}

TEST(Sampler, ASequenceDrawsTheSameAloneAndInABatch) {
  SamplingParams params = with(1.0, 0, 0.95, 0, 1);
  params.logprobs = 0;
  const auto alone = make_cpu_sampler(), batched = make_cpu_sampler();
  alone->join(join_of(1, params, 77));
  for (uint64_t s = 0; s < 5; ++s) batched->join(join_of(s, params, 76 + s));
  for (int step = 0; step < 50; ++step) {
    std::vector<float> one = some_logits(200, 1000 + static_cast<uint64_t>(step)), many;
    for (int s = 0; s < 5; ++s) {
      const std::vector<float> row =
          s == 1 ? one : some_logits(200, static_cast<uint64_t>(9000 + step * 7 + s));
      many.insert(many.end(), row.begin(), row.end());
    }
    std::vector<PlannedSample> samples(5);
    std::vector<SampleRow> rows(5);
    for (uint64_t s = 0; s < 5; ++s) {
      samples[s] = {.sequence = SequenceId{4 - s}, .position = 3 + step};
      rows[s] = {.sample = &samples[s], .logits_row = static_cast<int64_t>(4 - s)};
    }
    const PlannedSample mine{.sequence = SequenceId{1}, .position = 3 + step};
    const SampleRow row{.sample = &mine, .logits_row = 0};
    std::vector<SampledToken> a, b;
    alone->sample(one.data(), 200, {&row, 1}, a);
    batched->sample(many.data(), 200, rows, b);
    ASSERT_EQ(a[0].token, b[3].token);
    ASSERT_EQ(a[0].logprob, b[3].logprob);
  }
}

TEST(Sampler, SequencesThatShareARowDrawFromUntouchedLogits) {
  SamplingParams biased;
  biased.temperature = 0;
  biased.logit_bias = {{5, 100.0}};
  SamplingParams plain;
  plain.temperature = 0;
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, biased, 1));
  sampler->join(join_of(2, plain, 2));
  std::vector<float> row = {0, 1, 2, 3, 9, 4};
  const PlannedSample samples[] = {{.sequence = SequenceId{1}, .position = 3, .top_candidates = 2},
                                   {.sequence = SequenceId{2}, .position = 3}};
  const SampleRow rows[] = {{.sample = &samples[0], .logits_row = 0},
                            {.sample = &samples[1], .logits_row = 0}};
  std::vector<SampledToken> out;
  sampler->sample(row.data(), 6, rows, out);
  EXPECT_EQ(out[0].token, 5);
  EXPECT_EQ(out[1].token, 4);
  EXPECT_EQ(out[0].top[0].first, 4) << "logprobs report the model's own distribution";
  EXPECT_NEAR(out[0].logprob, 4 - log_sum_exp(row), 1e-5);
}

TEST(Sampler, EndsAreMaskedUntilMinTokensAndLastTokenIsWhatWasDrawn) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 8;
  params.min_tokens = 2;
  params.stop_token_ids = {2};
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, params, 1));
  std::vector<TokenId> drawn;
  for (int step = 0; step < 3; ++step) {
    std::vector<float> row = {9, 1, 8, 0};  // 0 ends the sequence, 2 is a stop id
    const PlannedSample sample{.sequence = SequenceId{1}, .position = 3 + step};
    const SampleRow at{.sample = &sample, .logits_row = 0};
    std::vector<SampledToken> out;
    sampler->sample(row.data(), 4, {&at, 1}, out);
    drawn.push_back(out[0].token);
    EXPECT_EQ(sampler->last_token(SequenceId{1}), out[0].token);
  }
  EXPECT_EQ(drawn, (std::vector<TokenId>{1, 1, 0}));
}

SampledToken sample_one(SamplingParams params, std::vector<float> row, PlannedSample sample = {}) {
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, std::move(params), 1));
  sample.sequence = SequenceId{1}, sample.position = 3;
  const SampleRow at{.sample = &sample, .logits_row = 0};
  std::vector<SampledToken> out;
  sampler->sample(row.data(), static_cast<int64_t>(row.size()), {&at, 1}, out);
  return out[0];
}

TEST(Sampler, NoTokenComesWhereTheRulesLeaveNone) {
  for (const double temperature : {0.0, 1.0}) {
    SamplingParams words, grams, ends;
    words.temperature = grams.temperature = ends.temperature = temperature;
    words.allowed_token_ids = {4}, words.bad_words = {{4}};
    grams.allowed_token_ids = {2, 3}, grams.no_repeat_ngram = 1;  // both are in the prompt
    ends.allowed_token_ids = {0}, ends.min_tokens = 2;            // 0 ends the sequence
    for (const SamplingParams& rules : {words, grams, ends})
      EXPECT_EQ(sample_one(rules, {9, 1, 2, 3, 4, 5}).token, kRulesLeaveNone);
  }
}

TEST(Sampler, ABeamEndsWhereTheRulesLeaveNone) {
  SamplingParams params;
  params.beam_width = 2;
  params.allowed_token_ids = {2, 4}, params.no_repeat_ngram = 1;
  const PlannedSample beam{.top_candidates = 4, .beam = true};
  const SampledToken one = sample_one(params, {9, 1, 2, 3, 4, 5}, beam);
  ASSERT_EQ(one.top.size(), 1u);
  EXPECT_EQ(one.top[0].first, 4);
  params.allowed_token_ids = {2};
  const SampledToken none = sample_one(params, {9, 1, 2, 3, 4, 5}, beam);
  EXPECT_TRUE(none.top.empty());
  EXPECT_EQ(none.token, kRulesLeaveNone);
}

TEST(Sampler, NoTokenComesFromARowWithoutLogits) {
  const std::vector<float> row = {NAN, kMasked, NAN};
  SamplingParams params;
  EXPECT_EQ(sample_one(params, row).token, kNoLogit);
  params.temperature = 0;
  EXPECT_EQ(sample_one(params, row).token, kNoLogit);
  params.allowed_token_ids = {1};
  EXPECT_EQ(sample_one(params, row).token, kNoLogit);
  EXPECT_EQ(sample_one(params, row, {.top_candidates = 2, .beam = true}).token, kNoLogit);
  params.forced_token_ids = {2};
  EXPECT_EQ(sample_one(params, row).token, kNoLogit) << "its logprob would have no meaning";
  EXPECT_EQ(sample_one(params, {NAN, 1, 2}).token, 2) << "one is enough";
}

TEST(Sampler, NoNgramComesTwice) {
  SamplingParams params;
  params.temperature = 0;
  params.no_repeat_ngram = 2;
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, params, 1, {1, 2, 1}));
  std::vector<float> row = {0, 1, 9, 3};  // 2 is likeliest, but 1 2 was there
  const PlannedSample sample{.sequence = SequenceId{1}, .position = 3};
  const SampleRow at{.sample = &sample, .logits_row = 0};
  std::vector<SampledToken> out;
  sampler->sample(row.data(), 4, {&at, 1}, out);
  EXPECT_EQ(out[0].token, 3);
}

TEST(Sampler, ForcedTokensComeFirstWithTheModelsOwnLogprobs) {
  SamplingParams params;
  params.temperature = 0;
  params.logprobs = 0;
  params.forced_token_ids = {3, 1};
  params.allowed_token_ids = {0};  // does not hold for them
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, params, 1));
  std::vector<SampledToken> out;
  for (int32_t position = 3; position < 6; ++position) {
    std::vector<float> row = {0, 1, 4, 2};
    const PlannedSample sample{.sequence = SequenceId{1}, .position = position};
    const SampleRow at{.sample = &sample, .logits_row = 0};
    sampler->sample(row.data(), 4, {&at, 1}, out);
  }
  EXPECT_EQ(out[0].token, 3);
  EXPECT_EQ(out[1].token, 1);
  EXPECT_EQ(out[2].token, 0);
  EXPECT_NEAR(out[0].logprob, 2 - std::log(1 + std::exp(1) + std::exp(4) + std::exp(2)), 1e-6);
}

TEST(Filters, LogitsThatAreNotNumbersAreMaskedAndInfiniteOnesShare) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(greedy(std::vector<float>{nan, 1, nan, 2, nan}), 3);
  EXPECT_EQ(greedy(std::vector<float>{nan, -kInf}), 0);
  const SamplingParams params = with(0.7, 3, 0.9, 0.01, 0.95);
  EXPECT_TRUE(filtered(std::vector<float>{nan, -kInf}, params).empty());
  for (const Candidate& c : filtered(std::vector<float>{nan, 1, -kInf, 2}, params))
    EXPECT_TRUE(c.token == 1 || c.token == 3);
  const std::vector<Candidate> infinite = filtered(std::vector<float>{kInf, 5, kInf}, with(1, 0, 1, 0, 1));
  ASSERT_EQ(infinite.size(), 3u);
  EXPECT_EQ(infinite[0].probability, 0.5);
  EXPECT_EQ(infinite[1].probability, 0.0);
  const std::vector<float> row = {nan, 1, -kInf, 1};
  EXPECT_NEAR(log_sum_exp(row), 1 + std::log(2.0), 1e-12);
  const auto top = likeliest(row, 3, log_sum_exp(row));
  EXPECT_EQ(top[0].first, 1);
  EXPECT_EQ(top[1].first, 3);
  EXPECT_EQ(top[2].second, -kInf);
  EXPECT_EQ(log_probability(kInf, kInf), 0.0f);
}

TEST(Filters, ATinyTemperatureIsGreedy) {
  const std::vector<float> row = {-1e4f, 3, 3.0001f, 1e4f, 9999};
  for (const double temperature : {1e-3, 1e-40, 1e-300}) {
    std::vector<Candidate> left = filtered(row, with(temperature, 0, 1, 0, 1));
    EXPECT_EQ(draw(left, 0.999999), 3) << temperature;
    EXPECT_EQ(draw(left, 1e-7), 3) << temperature;
  }
}

TEST(Filters, EachFilterKeepsAtLeastOneToken) {
  const std::vector<float> row = some_logits(100, 5);
  for (const SamplingParams& params :
       {with(1, 1, 1, 0, 1), with(1, 0, 1e-9, 0, 1), with(1, 0, 1, 1, 1), with(1, 0, 1, 0, 1e-9)})
    EXPECT_EQ(filtered(row, params).size(), 1u);
}

TEST(Likeliest, EqualsAFullSort) {
  Random random(9);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> row(1 + random.below(50));
    for (float& x : row) x = static_cast<float>(random.below(8));
    const auto n = static_cast<int32_t>(random.below(row.size() + 3));
    std::vector<TokenId> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
      return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
    });
    const auto found = likeliest(row, n, log_sum_exp(row));
    ASSERT_EQ(found.size(), std::min(static_cast<size_t>(n), row.size()));
    for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i].first, order[i]);
  }
}

TEST(Sampler, APositionDrawsTheSameWhateverWasDrawnBefore) {
  const SamplingParams params = with(1.0, 0, 1, 0, 1);
  const std::vector<float> row = some_logits(500, 3);
  const auto draw_at = [&](const std::vector<int32_t>& positions) {
    const auto sampler = make_cpu_sampler();
    sampler->join(join_of(1, params, 42));
    std::vector<SampledToken> out;
    for (const int32_t position : positions) {
      std::vector<float> logits = row;
      const PlannedSample sample{.sequence = SequenceId{1}, .position = position};
      const SampleRow at{.sample = &sample, .logits_row = 0};
      sampler->sample(logits.data(), 500, {&at, 1}, out);
    }
    return out.back().token;
  };
  EXPECT_EQ(draw_at({3, 4, 5, 6}), draw_at({6}));
  EXPECT_EQ(draw_at({9}), draw_at({12, 9}));
}

TEST(Sampler, BeamRowsGiveCandidatesAndDrawNothing) {
  SamplingParams params;
  params.beam_width = 2;
  const auto sampler = make_cpu_sampler();
  sampler->join(join_of(1, params, 1));
  std::vector<float> row = {0, 3, 2, 1};
  const PlannedSample sample{.sequence = SequenceId{1}, .position = 3, .top_candidates = 3, .beam = true};
  const SampleRow at{.sample = &sample, .logits_row = 0};
  std::vector<SampledToken> out;
  sampler->sample(row.data(), 4, {&at, 1}, out);
  EXPECT_EQ(out[0].token, -1);
  ASSERT_EQ(out[0].top.size(), 3u);
  EXPECT_EQ(out[0].top[0].first, 1);
  EXPECT_EQ(sampler->last_token(SequenceId{1}), 3) << "the history still ends with the prompt";
}

}  // namespace
}  // namespace quire
