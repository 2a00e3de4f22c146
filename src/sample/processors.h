// Logits processors: each one changes a row of logits, as long as the vocabulary, and says what it does. Pure functions over one row; no
// state but their arguments. A masked token has logit -infinity. Ids outside the row are ignored.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "src/base/ids.h"

namespace quire {

void add_bias(std::span<float> logits, std::span<const std::pair<int32_t, double>> bias);
void allow_only(std::span<float> logits, std::span<const TokenId> allowed);
void forbid(std::span<float> logits, std::span<const TokenId> tokens);

// The tokens that would complete one of `words` after `history`.
void forbid_bad_words(std::span<float> logits, std::span<const TokenId> history,
                      std::span<const std::vector<TokenId>> words);

// Occurrences of a token in the prompt and in the output.
struct TokenCount {
  TokenId token = 0;
  int32_t in_output = 0;
};

// repetition (Keskar et al. 2019, CTRL, sec. 4.1): a seen token's positive logit is divided by it, a negative
// one multiplied; over prompt and output. presence and frequency: subtracted once, and once per occurrence,
// over the output alone.
struct Penalties {
  double repetition = 1.0, presence = 0.0, frequency = 0.0;
};
void penalize(std::span<float> logits, std::span<const TokenCount> seen, const Penalties& penalties);

}  // namespace quire
