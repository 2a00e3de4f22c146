#include "src/sample/filters.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/base/random.h"

namespace quire {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Lanes side by side, so that the compiler uses vectors: a vocabulary's row costs 20 us instead of 170.
float highest_of(std::span<const float> logits) {
  constexpr size_t kLanes = 32;
  float highest[kLanes];
  std::fill_n(highest, kLanes, kMasked);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane)  // false for NaN
      highest[lane] = logits[i + lane] > highest[lane] ? logits[i + lane] : highest[lane];
  for (; i < logits.size(); ++i) highest[0] = logits[i] > highest[0] ? logits[i] : highest[0];
  return *std::max_element(highest, highest + kLanes);
}

// Returns the logarithm of the sum that was divided by. Logits are at most 0 and one is 0, or the likeliest
// were filtered out and the others are near it: nothing overflows.
double normalize(std::vector<Candidate>& candidates) {
  double sum = 0;
  for (Candidate& c : candidates) sum += c.probability = std::exp(static_cast<double>(c.logit));
  for (Candidate& c : candidates) c.probability /= sum;
  return std::log(sum);
}

void keep_top_k(std::vector<Candidate>& candidates, int32_t k) {
  if (k <= 0 || static_cast<size_t>(k) >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), likelier);
  candidates.resize(static_cast<size_t>(k));
}

// The fewest candidates, first by `before`, whose mass reaches p: a selection that halves the part in
// question by nth_element, so the time is linear. Prefixes sorted and grown until they reached p took 2.5
// times as long over a flat row of 152k (typical_p: 6 times).
template <class Before>
void keep_mass(std::vector<Candidate>& candidates, double p, Before before) {
  auto from = candidates.begin(), to = candidates.end();  // the cut lies here; all before `from` are kept
  double missing = p;
  while (to - from > 32) {
    const auto middle = from + (to - from) / 2;
    std::nth_element(from, middle, to, before);
    double mass = 0;
    for (auto c = from; c != middle; ++c) mass += c->probability;
    if (mass >= missing) {
      to = middle;
    } else {
      missing -= mass;
      from = middle;
    }
  }
  std::sort(from, to, before);
  while (from != to && missing > 0) missing -= (from++)->probability;
  candidates.erase(from, candidates.end());
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
  const double log_sum = normalize(candidates);  // the surprise -log(probability) is log_sum - logit
  double entropy = 0;
  for (const Candidate& c : candidates)
    if (c.probability > 0) entropy += c.probability * (log_sum - c.logit);
  keep_mass(candidates, p, [&](const Candidate& a, const Candidate& b) {
    const double x = std::fabs(log_sum - a.logit - entropy), y = std::fabs(log_sum - b.logit - entropy);
    return x != y ? x < y : a.token < b.token;
  });
}

}  // namespace

TokenId greedy(std::span<const float> logits) {
  constexpr size_t kStretch = 1024;
  size_t best_stretch = 0;
  float highest = kMasked;
  for (size_t i = 0; i < logits.size(); i += kStretch) {
    const float here = highest_of(logits.subspan(i, std::min(kStretch, logits.size() - i)));
    if (here > highest) best_stretch = i, highest = here;
  }
  if (!(highest > kMasked)) return 0;
  const auto first = logits.begin() + static_cast<int64_t>(best_stretch);
  return static_cast<TokenId>(std::find(first, logits.end(), highest) - logits.begin());
}

bool all_masked(std::span<const float> logits) {
  return !(highest_of(logits) > kMasked);
}

void filter(std::span<const float> logits, const SamplingParams& params, std::vector<Candidate>& candidates) {
  candidates.clear();
  const float highest = highest_of(logits);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > kMasked)) continue;
    // The difference comes first: a small temperature then overflows only towards probability 0.
    const double below =
        logits[i] == highest ? 0.0 : (static_cast<double>(logits[i]) - highest) / params.temperature;
    candidates.push_back({.token = static_cast<TokenId>(i), .logit = static_cast<float>(below)});
  }
  if (candidates.empty()) return;
  keep_top_k(candidates, params.top_k);
  keep_top_p(candidates, params.top_p);
  keep_min_p(candidates, params.min_p);
  keep_typical(candidates, params.typical_p);
  normalize(candidates);
}

TokenId draw(std::vector<Candidate>& candidates, double u) {
  const auto before = [](const Candidate& a, const Candidate& b) { return a.token < b.token; };
  if (!std::is_sorted(candidates.begin(), candidates.end(), before))
    std::sort(candidates.begin(), candidates.end(), before);
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
  const auto bits = philox4x32({static_cast<uint32_t>(position), 0, 0, 0},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uniform_open(bits[0]);
}

double log_sum_exp(std::span<const float> logits) {
  const float highest = highest_of(logits);
  if (!std::isfinite(highest)) return highest;
  double sum = 0;  // of terms in f32: an error of 6e-8 each, in a result that is stored as f32
  for (const float logit : logits)
    if (logit > kMasked) sum += std::exp(logit - highest);
  return highest + std::log(sum);
}

float log_probability(float logit, double lse) {
  if (!(logit > kMasked)) return kMasked;
  return logit == kInfinity ? 0.0f : static_cast<float>(static_cast<double>(logit) - lse);
}

std::vector<std::pair<TokenId, float>> likeliest(std::span<const float> logits, int32_t n, double lse) {
  const auto count = std::min(static_cast<size_t>(std::max(n, 0)), logits.size());
  std::vector<std::pair<TokenId, float>> best;  // (id, logit), likeliest first
  if (count == 0) return best;
  best.reserve(count + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = std::isnan(logits[i]) ? kMasked : logits[i];
    if (best.size() == count && !(logit > best.back().second)) continue;
    const auto at = std::upper_bound(best.begin(), best.end(), logit,
                                     [](float x, const auto& other) { return x > other.second; });
    best.insert(at, {static_cast<TokenId>(i), logit});
    if (best.size() > count) best.pop_back();
  }
  for (auto& [token, logit] : best) logit = log_probability(logit, lse);
  return best;
}

}  // namespace quire
