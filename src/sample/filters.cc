#include "src/sample/filters.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "src/base/random.h"

namespace quire {
namespace {

bool likelier(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.token < b.token; }

void normalize(std::vector<Candidate>& candidates) {
  float highest = -std::numeric_limits<float>::infinity();
  for (const Candidate& c : candidates) highest = std::max(highest, c.logit);
  double sum = 0;
  for (Candidate& c : candidates) sum += c.probability = std::exp(static_cast<double>(c.logit) - highest);
  for (Candidate& c : candidates) c.probability /= sum;
}

void keep_top_k(std::vector<Candidate>& candidates, int32_t k) {
  if (k <= 0 || static_cast<size_t>(k) >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), likelier);
  candidates.resize(static_cast<size_t>(k));
}

// Sorted prefixes are grown by doubling until their mass reaches p: a peaked row sorts a few tokens, not the vocabulary.
template <class Before>
void keep_mass(std::vector<Candidate>& candidates, double p, Before before) {
  size_t sorted = 0;
  double mass = 0;
  for (size_t wanted = std::min<size_t>(64, candidates.size()); ; wanted = std::min(wanted * 4, candidates.size())) {
    const auto from = candidates.begin() + static_cast<int64_t>(sorted), to = candidates.begin() + static_cast<int64_t>(wanted);
    std::partial_sort(from, to, candidates.end(), before);
    for (; sorted < wanted; ++sorted) {
      mass += candidates[sorted].probability;
      if (mass >= p) {
        candidates.resize(sorted + 1);
        return;
      }
    }
    if (wanted == candidates.size()) return;
  }
}

void keep_top_p(std::vector<Candidate>& candidates, double p) {
  if (p >= 1) return;
  normalize(candidates);
  keep_mass(candidates, p, likelier);
}

void keep_min_p(std::vector<Candidate>& candidates, double p) {
  if (p <= 0) return;
  normalize(candidates);
  double highest = 0;
  for (const Candidate& c : candidates) highest = std::max(highest, c.probability);
  std::erase_if(candidates, [&](const Candidate& c) { return c.probability < p * highest; });
}

void keep_typical(std::vector<Candidate>& candidates, double p) {
  if (p >= 1) return;
  normalize(candidates);
  double entropy = 0;
  for (const Candidate& c : candidates)
    if (c.probability > 0) entropy -= c.probability * std::log(c.probability);
  const auto distance = [&](const Candidate& c) {
    return c.probability > 0 ? std::fabs(-std::log(c.probability) - entropy) : std::numeric_limits<double>::infinity();
  };
  keep_mass(candidates, p, [&](const Candidate& a, const Candidate& b) {
    const double x = distance(a), y = distance(b);
    return x != y ? x < y : a.token < b.token;
  });
}

}  // namespace

TokenId greedy(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  return static_cast<TokenId>(best);
}

std::vector<Candidate> filtered(std::span<const float> logits, const SamplingParams& params) {
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  const auto scale = static_cast<float>(1.0 / params.temperature);
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] > -std::numeric_limits<float>::infinity())
      candidates.push_back({.token = static_cast<TokenId>(i), .logit = logits[i] * scale});
  if (candidates.empty()) candidates.push_back({.token = greedy(logits), .logit = 0});
  keep_top_k(candidates, params.top_k);
  keep_top_p(candidates, params.top_p);
  keep_min_p(candidates, params.min_p);
  keep_typical(candidates, params.typical_p);
  normalize(candidates);
  return candidates;
}

TokenId draw(std::vector<Candidate>& candidates, double u) {
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  double mass = 0;
  for (const Candidate& c : candidates) {
    mass += c.probability;
    if (u < mass) return c.token;
  }
  // Rounding can leave the sum a hair under 1: the last token that has any probability takes the rest.
  for (auto c = candidates.rbegin(); c != candidates.rend(); ++c)
    if (c->probability > 0) return c->token;
  return candidates.back().token;
}

double draw_uniform(uint64_t seed, int32_t position) {
  const auto bits = philox4x32({static_cast<uint32_t>(position), 0, 0, 0}, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uniform_open(bits[0]);
}

double log_sum_exp(std::span<const float> logits) {
  float highest = -std::numeric_limits<float>::infinity();
  for (const float logit : logits) highest = std::max(highest, logit);
  if (!std::isfinite(highest)) return highest;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - highest);
  return highest + std::log(sum);
}

std::vector<std::pair<TokenId, float>> likeliest(std::span<const float> logits, int32_t n, double lse) {
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min(static_cast<size_t>(std::max(n, 0)), order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(count), order.end(), [&](TokenId a, TokenId b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::vector<std::pair<TokenId, float>> found;
  for (size_t i = 0; i < count; ++i) found.emplace_back(order[i], static_cast<float>(static_cast<double>(logits[static_cast<size_t>(order[i])]) - lse));
  return found;
}

}  // namespace quire
