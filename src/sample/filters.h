// From a row of logits to the distribution a token is drawn from: temperature, top_k, top_p, min_p,
// typical_p, then the draw. Only candidates that can still be chosen are sorted; a plain temperature draw
// sorts nothing. Logits that are NaN count as masked (-infinity); those that are +infinity share all the
// probability.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "quire/sampling_params.h"
#include "src/base/ids.h"

namespace quire {

// The logit of a token that is not to be chosen.
inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct Candidate {
  TokenId token = 0;
  float logit = 0;         // less the row's highest, over the temperature: at most 0
  double probability = 0;  // among what is left
};

// Index of the highest logit; the lowest index wins a tie. 0 where every logit is masked.
TokenId greedy(std::span<const float> logits);

// Nothing but NaN and minus infinity.
bool all_masked(std::span<const float> logits);

// What is left of the row after temperature (> 0) and all filters, with probabilities that sum to 1. Each
// filter keeps at least one token; all but typical_p keep the likeliest. Order: top_k, top_p, min_p, typical_p, each over what the one
// before left, renormalised. top_p (Holtzman et al. 2020): the fewest likeliest tokens whose sum reaches p.
// min_p (Nguyen et al. 2024): those of at least p times the likeliest's probability. typical_p (Meister et
// al. 2023): the fewest tokens nearest in surprise to the entropy whose sum reaches p. Empty only where every
// logit is masked.
void filter(std::span<const float> logits, const SamplingParams& params, std::vector<Candidate>& candidates);
inline std::vector<Candidate> filtered(std::span<const float> logits, const SamplingParams& params) {
  std::vector<Candidate> candidates;
  filter(logits, params, candidates);
  return candidates;
}

// Inverse of the cumulative distribution over candidates in ascending token id, at `u` in (0, 1): one uniform
// number a token, and a draw that does not depend on how the candidates were found.
TokenId draw(std::vector<Candidate>& candidates, double u);

// The uniform number of (seed, position).
double draw_uniform(uint64_t seed, int32_t position);

// log-sum-exp of the row, its terms in f32 and their sum in float64; -infinity where every logit is masked.
double log_sum_exp(std::span<const float> logits);
// Natural logarithm of the probability of one logit of the row. -infinity for a masked one.
float log_probability(float logit, double lse);
// The n highest logits as (id, log probability), likeliest first; the lower id first among equals. Masked
// ones only where no other is left. One pass; sorts n.
std::vector<std::pair<TokenId, float>> likeliest(std::span<const float> logits, int32_t n, double lse);

}  // namespace quire
