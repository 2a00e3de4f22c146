// Beam search as a pure step, against a search that looks at every continuation of a tiny made-up model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "src/base/random.h"
#include "src/schedule/beam_search.h"

namespace quire {
namespace {

constexpr int32_t kVocab = 5;

// A model whose logprobs are a function of the whole prefix.
std::vector<std::pair<TokenId, float>> row(const std::vector<TokenId>& prefix, uint64_t seed) {
  uint64_t hash = seed;
  for (const TokenId t : prefix) hash = Random(hash * 31 + static_cast<uint64_t>(t) + 1).next();
  Random random(hash);
  std::vector<std::pair<TokenId, float>> out;
  double sum = 0;
  for (int32_t t = 0; t < kVocab; ++t) {
    const double weight = 0.05 + random.uniform();
    out.emplace_back(t, static_cast<float>(weight));
    sum += weight;
  }
  for (auto& [token, weight] : out) weight = static_cast<float>(std::log(weight / sum));
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return out;
}

struct Found {
  std::vector<TokenId> tokens;
  double score;
};

// The step by step search the scheduler does, without a cache.
std::vector<Found> search(int32_t width, int32_t max_tokens, double penalty, bool early,
                          std::vector<TokenId> end_ids, uint64_t seed) {
  struct Beam {
    std::vector<TokenId> tokens;
    double sum = 0;
  };
  std::vector<Beam> beams{{}};
  std::vector<BeamHypothesis> finished;
  for (int32_t length = 1; !beams.empty(); ++length) {
    const BeamStep step{.width = width,
                        .length_penalty = penalty,
                        .early_stopping = early,
                        .end_ids = end_ids,
                        .length = length,
                        .at_limit = length == max_tokens};
    std::vector<std::vector<std::pair<TokenId, float>>> candidates;
    for (const Beam& b : beams) candidates.push_back(row(b.tokens, seed));
    std::vector<BeamRow> rows;
    for (size_t i = 0; i < beams.size(); ++i) rows.push_back({beams[i].sum, candidates[i]});
    const BeamChoice choice = choose_beams(rows, step);
    for (const BeamEnd& e : choice.ended) {
      BeamHypothesis h;
      h.tokens = beams[e.pick.parent].tokens;
      h.tokens.push_back(candidates[e.pick.parent][e.pick.candidate].first);
      h.score = e.score;
      finished.push_back(h);
    }
    std::stable_sort(finished.begin(), finished.end(),
                     [](const auto& a, const auto& b) { return a.score > b.score; });
    if (static_cast<int32_t>(finished.size()) > width) finished.resize(width);
    std::vector<Beam> next;
    for (const BeamPick& p : choice.next) {
      Beam b = beams[p.parent];
      b.tokens.push_back(candidates[p.parent][p.candidate].first);
      b.sum = p.sum_logprob;
      next.push_back(b);
    }
    beams = std::move(next);
    if (!beams.empty() && beams_done(finished, beams.front().sum, step)) break;
  }
  std::vector<Found> out;
  for (const BeamHypothesis& h : finished) out.push_back({h.tokens, h.score});
  return out;
}

// Every sequence that ends, with its score.
void enumerate(std::vector<TokenId>& prefix, double sum, int32_t max_tokens, double penalty,
               const std::vector<TokenId>& end_ids, uint64_t seed, Found& best) {
  for (const auto& [token, logprob] : row(prefix, seed)) {
    prefix.push_back(token);
    const auto length = static_cast<int32_t>(prefix.size());
    const bool ends =
        std::find(end_ids.begin(), end_ids.end(), token) != end_ids.end() || length == max_tokens;
    const double total = sum + static_cast<double>(logprob);
    if (ends && beam_score(total, length, penalty) > best.score)
      best = {prefix, beam_score(total, length, penalty)};
    if (!ends) enumerate(prefix, total, max_tokens, penalty, end_ids, seed, best);
    prefix.pop_back();
  }
}

TEST(BeamSearch, AWideEnoughBeamFindsTheBestOfAllContinuations) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    Found best{{}, -1e30};
    std::vector<TokenId> prefix;
    enumerate(prefix, 0, 4, 0.0, {2}, seed, best);  // penalty 0: shorter is never worth waiting for
    const std::vector<Found> found = search(64, 4, 0.0, false, {2}, seed);
    ASSERT_FALSE(found.empty());
    EXPECT_EQ(found.front().tokens, best.tokens) << "seed " << seed;
    EXPECT_NEAR(found.front().score, best.score, 1e-6);
  }
}

TEST(BeamSearch, AWidthOfOneIsGreedy) {
  const std::vector<Found> found = search(1, 6, 1.0, false, {}, 11);
  std::vector<TokenId> greedy;
  for (int i = 0; i < 6; ++i) greedy.push_back(row(greedy, 11).front().first);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found.front().tokens, greedy);
}

TEST(BeamSearch, AnEndingCandidateBelowTheBestWidthIsNoHypothesis) {
  const std::vector<std::pair<TokenId, float>> candidates{{0, -1.0f}, {1, -2.0f}, {9, -3.0f}, {2, -4.0f}};
  const std::vector<TokenId> end_ids{9};
  const BeamRow one{0, candidates};
  const BeamChoice choice = choose_beams({&one, 1}, {.width = 2, .end_ids = end_ids, .length = 1});
  EXPECT_TRUE(choice.ended.empty());
  ASSERT_EQ(choice.next.size(), 2u);
  const BeamChoice wide = choose_beams({&one, 1}, {.width = 3, .end_ids = end_ids, .length = 1});
  ASSERT_EQ(wide.ended.size(), 1u);
  EXPECT_EQ(wide.next.size(), 3u) << "the ended one leaves its place to the next";
}

TEST(BeamSearch, EarlyStoppingEndsOnceWidthHypothesesExist) {
  std::vector<BeamHypothesis> finished(2);
  finished[0].score = -1;
  finished[1].score = -5;
  EXPECT_TRUE(beams_done(finished, -0.1, {.width = 2, .early_stopping = true, .length = 3}));
  EXPECT_FALSE(beams_done(finished, -0.1, {.width = 2, .early_stopping = false, .length = 3}));
  EXPECT_TRUE(beams_done(finished, -16, {.width = 2, .early_stopping = false, .length = 3}))
      << "-16 / 3 cannot beat -5";
  EXPECT_FALSE(beams_done(finished, -16, {.width = 3, .early_stopping = true, .length = 3}));
}

TEST(BeamSearch, EqualSumsKeepTheOrderOfTheirRows) {
  const std::vector<std::pair<TokenId, float>> candidates{{0, -1.0f}, {1, -1.0f}};
  const BeamRow rows[] = {{0, candidates}, {0, candidates}};
  const BeamChoice choice = choose_beams(rows, {.width = 3, .length = 1});
  ASSERT_EQ(choice.next.size(), 3u);
  EXPECT_EQ(choice.next[0].parent, 0);
  EXPECT_EQ(choice.next[1].parent, 0);
  EXPECT_EQ(choice.next[2].parent, 1);
}

}  // namespace
}  // namespace quire
