#include "src/sample/processors.h"

#include <algorithm>

#include "src/sample/filters.h"

namespace quire {
namespace {

bool inside(std::span<const float> logits, TokenId token) {
  return token >= 0 && static_cast<size_t>(token) < logits.size();
}

}  // namespace

void add_bias(std::span<float> logits, std::span<const std::pair<int32_t, double>> bias) {
  for (const auto& [token, amount] : bias)
    if (inside(logits, token)) logits[static_cast<size_t>(token)] += static_cast<float>(amount);
}

void allow_only(std::span<float> logits, std::span<const TokenId> allowed) {
  std::vector<std::pair<TokenId, float>> kept;
  for (const TokenId token : allowed)
    if (inside(logits, token)) kept.emplace_back(token, logits[static_cast<size_t>(token)]);
  std::fill(logits.begin(), logits.end(), kMasked);
  for (const auto& [token, logit] : kept) logits[static_cast<size_t>(token)] = logit;
}

void forbid(std::span<float> logits, std::span<const TokenId> tokens) {
  for (const TokenId token : tokens)
    if (inside(logits, token)) logits[static_cast<size_t>(token)] = kMasked;
}

void forbid_bad_words(std::span<float> logits, std::span<const TokenId> history,
                      std::span<const std::vector<TokenId>> words) {
  for (const std::vector<TokenId>& word : words) {
    const size_t before = word.size() - 1;
    if (before > history.size()) continue;
    if (std::equal(word.begin(), word.end() - 1, history.end() - static_cast<int64_t>(before)) &&
        inside(logits, word.back()))
      logits[static_cast<size_t>(word.back())] = kMasked;
  }
}

void penalize(std::span<float> logits, std::span<const TokenCount> seen, const Penalties& penalties) {
  const auto repetition = static_cast<float>(penalties.repetition);
  for (const TokenCount& count : seen) {
    if (!inside(logits, count.token)) continue;
    float& logit = logits[static_cast<size_t>(count.token)];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (count.in_output > 0)
      logit -= static_cast<float>(penalties.presence + penalties.frequency * count.in_output);
  }
}

}  // namespace quire
