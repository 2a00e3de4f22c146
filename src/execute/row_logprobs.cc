#include "src/execute/row_logprobs.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "src/base/check.h"
#include "src/sample/filters.h"

namespace quire {
PromptLogprob row_logprob(std::span<const float> logits, TokenId token, int32_t num_top) {
  check(token >= 0 && static_cast<size_t>(token) < logits.size(), "row_logprob: token outside the row");
  const double lse = log_sum_exp(logits);
  const bool has_any = lse > kMasked;  // else there is nothing to be the logarithm of
  return {.token = token,
          .logprob = has_any ? log_probability(logits[static_cast<size_t>(token)], lse)
                             : std::numeric_limits<float>::quiet_NaN(),
          .top = likeliest(logits, num_top, lse)};
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
