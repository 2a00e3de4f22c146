#include "src/execute/row_logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "src/base/check.h"

namespace quire {
namespace {

double log_sum(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - top);
  return top + std::log(sum);
}

}  // namespace

PromptLogprob row_logprob(std::span<const float> logits, TokenId token, int32_t num_top) {
  check(token >= 0 && static_cast<size_t>(token) < logits.size(), "row_logprob: token outside the row");
  const double lse = log_sum(logits);
  const auto logprob = [&](TokenId id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - lse);
  };
  PromptLogprob out{.token = token, .logprob = logprob(token), .top = {}};
  const size_t count = std::min(static_cast<size_t>(std::max(num_top, 0)), logits.size());
  if (count == 0) return out;
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(),
                    [&](TokenId a, TokenId b) {
                      const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
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
