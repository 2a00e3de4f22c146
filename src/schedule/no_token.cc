#include "src/schedule/no_token.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "src/sample/sample_types.h"

namespace quire {
namespace {

// The rules that exclude ids, as the wire names them.
std::vector<std::string> excluding_rules(const SamplingParams& p, int32_t num_output_tokens) {
  std::vector<std::string> rules;
  if (!p.allowed_token_ids.empty())
    rules.push_back(fmt::format("allowed_token_ids ({} {})", p.allowed_token_ids.size(),
                                p.allowed_token_ids.size() == 1 ? "id" : "ids"));
  if (!p.bad_words.empty()) rules.push_back(fmt::format("bad_words ({})", p.bad_words.size()));
  if (p.no_repeat_ngram > 0) rules.push_back(fmt::format("no_repeat_ngram {}", p.no_repeat_ngram));
  if (num_output_tokens < p.min_tokens) rules.push_back(fmt::format("min_tokens {}", p.min_tokens));
  return rules;
}

std::string field_of(const std::string& rule) {
  return "sampling." + rule.substr(0, rule.find(' '));
}

}  // namespace

Error no_token_error(TokenId why, const SamplingParams& sampling, int32_t num_output_tokens) {
  const int32_t nth = num_output_tokens + 1;
  if (why == kNoLogit)
    return error(
        Code::kInternal,
        fmt::format("the model gave no finite logit for output token {}: all are NaN or minus infinity, as "
                    "from weights that hold NaN or infinity",
                    nth));
  const std::vector<std::string> rules = excluding_rules(sampling, num_output_tokens);
  return invalid(
      fmt::format("nothing is left to choose for output token {}: together these exclude every id: {}", nth,
                  fmt::join(rules, ", ")),
      rules.empty() ? "sampling" : field_of(rules.front()));
}

Error no_prompt_logprob_error(int32_t position) {
  return error(Code::kInternal,
               fmt::format("the model gave no finite logit for prompt token {}: all are NaN or minus "
                           "infinity, as from weights that hold NaN or infinity",
                           position));
}

}  // namespace quire
