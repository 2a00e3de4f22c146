#include "src/execute/row_logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr double kMasked = -std::numeric_limits<double>::infinity();

// NaN counts as masked. -infinity where all are: a token's logprob is NaN then.
double log_sum(std::span<const float> logits) {
  double top = kMasked;
  for (const float x : logits) top = std::max(top, x > kMasked ? static_cast<double>(x) : kMasked);
  double sum = 0;
  for (const float x : logits)
    if (x > kMasked) sum += x == top ? 1.0 : std::exp(static_cast<double>(x) - top);
  return top + std::log(sum);
}

// NaN has no order of its own.
double ordered(float logit) {
  return logit > kMasked ? static_cast<double>(logit) : kMasked;
}

}  // namespace

PromptLogprob row_logprob(std::span<const float> logits, TokenId token, int32_t num_top) {
  check(token >= 0 && static_cast<size_t>(token) < logits.size(), "row_logprob: token outside the row");
  const double lse = log_sum(logits);
  const auto logprob = [&](TokenId id) {
    const double logit = ordered(logits[static_cast<size_t>(id)]);
    return logit == -kMasked ? 0.0f : static_cast<float>(logit - lse);
  };
  PromptLogprob out{.token = token, .logprob = logprob(token), .top = {}};
  const size_t count = std::min(static_cast<size_t>(std::max(num_top, 0)), logits.size());
  if (count == 0) return out;
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(), [&](TokenId a, TokenId b) {
        const double x = ordered(logits[static_cast<size_t>(a)]), y = ordered(logits[static_cast<size_t>(b)]);
        return x != y ? x > y : a < b;
      });
  for (size_t i = 0; i < count; ++i) out.top.emplace_back(ids[i], logprob(ids[i]));
  return out;
}

void append_prompt_logprobs(const WantedLogits& wanted, const LogitsPiece& piece,
                            std::vector<SequencePromptLogprobs>& out) {
  const PlannedSequence& s = *wanted.sequence;
  if (s.prompt_logprobs < 0) return;
  for (int64_t i = std::max(piece.first - wanted.first, int64_t{0});
       i < std::min(wanted.count, piece.end - wanted.first); ++i) {
    const auto next = static_cast<size_t>(i + 1);
    const TokenId token = next < s.tokens.size() ? s.tokens[next] : s.next_prompt_token;
    if (token < 0) continue;
    if (i == 0) out.push_back({.sequence = s.sequence, .first_position = s.first_position + 1, .tokens = {}});
    const float* row = piece.logits + (wanted.first + i - piece.first) * piece.vocab;
    out.back().tokens.push_back(
        row_logprob({row, static_cast<size_t>(piece.vocab)}, token, s.prompt_logprobs));
  }
}

}  // namespace quire
