// validate(SamplingParams): each message names the field, the value and the limit.
#include "quire/sampling_params.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>

namespace quire {
namespace {

struct Range {
  const char* field;
  double value, low, high;
  bool open_low = false;
  const char* limit = nullptr;  // what sets `high`, where something can: a flag, or a field of the request
};

Status check_range(const Range& r) {
  const bool inside =
      std::isfinite(r.value) && (r.open_low ? r.value > r.low : r.value >= r.low) && r.value <= r.high;
  if (inside) return ok();
  const std::string limit = r.limit == nullptr ? "" : fmt::format(" ({})", r.limit);
  return invalid(fmt::format("{} is {}; it must lie in {}{}, {}]{}", r.field, r.value, r.open_low ? "(" : "[",
                             r.low, r.high, limit),
                 fmt::format("sampling.{}", r.field));
}

Status check_id(const char* field, int64_t id, int32_t vocab_size) {
  if (id >= 0 && (vocab_size == 0 || id < vocab_size)) return ok();
  const std::string ids =
      vocab_size == 0 ? "ids run from 0" : fmt::format("ids of this model run from 0 to {}", vocab_size - 1);
  return invalid(fmt::format("{} has token id {}; {}", field, id, ids), fmt::format("sampling.{}", field));
}

Status check_choice(const SamplingParams& p) {
  const Range ranges[] = {{"temperature", p.temperature, 0, 100},
                          {"top_p", p.top_p, 0, 1, true},
                          {"min_p", p.min_p, 0, 1},
                          {"typical_p", p.typical_p, 0, 1, true},
                          {"repetition_penalty", p.repetition_penalty, 0, 100, true},
                          {"presence_penalty", p.presence_penalty, -2, 2},
                          {"frequency_penalty", p.frequency_penalty, -2, 2},
                          {"top_k", static_cast<double>(p.top_k), 0, 1 << 30},
                          {"no_repeat_ngram", static_cast<double>(p.no_repeat_ngram), 0, 1024},
                          {"length_penalty", p.length_penalty, -10, 10}};
  for (const Range& r : ranges)
    if (Status s = check_range(r); !s) return s;
  return ok();
}

Status check_counts(const SamplingParams& p, const SamplingLimits& limits) {
  // How many the context has room for, check_request says, which knows the prompt.
  if (p.max_tokens < 0)
    return invalid(fmt::format("max_tokens is {}; it must lie in [0, the model's context less the prompt]",
                               p.max_tokens),
                   "sampling.max_tokens");
  const double max_n = limits.max_n, max_logprobs = limits.max_logprobs;
  const Range ranges[] = {
      {"n", static_cast<double>(p.n), 1, max_n, false, "max_n"},
      {"best_of", static_cast<double>(p.best_of), 0, max_n, false, "max_n"},
      {"beam_width", static_cast<double>(p.beam_width), 0, static_cast<double>(limits.max_beam_width), false,
       "max_beam_width"},
      {"min_tokens", static_cast<double>(p.min_tokens), 0, static_cast<double>(p.max_tokens), false,
       "max_tokens"},
      {"logprobs", static_cast<double>(p.logprobs), -1, max_logprobs, false, "max_logprobs"},
      {"prompt_logprobs", static_cast<double>(p.prompt_logprobs), -1, max_logprobs, false, "max_logprobs"}};
  for (const Range& r : ranges)
    if (Status s = check_range(r); !s) return s;
  if (p.best_of != 0 && p.best_of < p.n)
    return invalid(fmt::format("best_of is {}; it must be 0 or at least n ({})", p.best_of, p.n),
                   "sampling.best_of");
  if (p.beam_width != 0 && p.n > p.beam_width)
    return invalid(
        fmt::format("n is {}; with beam search it may be at most beam_width ({})", p.n, p.beam_width),
        "sampling.n");
  if (p.beam_width != 0 && p.best_of != 0)
    return invalid("best_of and beam_width exclude each other", "sampling.best_of");
  return ok();
}

Status check_stops(const SamplingParams& p, const SamplingLimits& limits) {
  for (size_t i = 0; i < p.stop.size(); ++i) {
    const size_t bytes = p.stop[i].size();
    if (bytes == 0 || static_cast<int64_t>(bytes) > limits.max_stop_bytes)
      return invalid(fmt::format("stop text {} has {} bytes; from 1 to {} (max_stop_bytes)", i, bytes,
                                 limits.max_stop_bytes),
                     "sampling.stop");
  }
  if (static_cast<int64_t>(p.stop_token_ids.size()) > limits.max_stop_token_ids)
    return invalid(fmt::format("stop_token_ids has {} ids; at most {} (max_stop_token_ids)",
                               p.stop_token_ids.size(), limits.max_stop_token_ids),
                   "sampling.stop_token_ids");
  for (const int32_t id : p.stop_token_ids)
    if (Status s = check_id("stop_token_ids", id, limits.vocab_size); !s) return s;
  return ok();
}

Status check_bad_words(const SamplingParams& p, const SamplingLimits& limits) {
  for (size_t i = 0; i < p.bad_words.size(); ++i) {
    const size_t tokens = p.bad_words[i].size();
    if (tokens == 0 || static_cast<int64_t>(tokens) > limits.max_bad_word_tokens)
      return invalid(fmt::format("sequence {} of bad_words has {} tokens; from 1 to {} (max_bad_word_tokens)",
                                 i, tokens, limits.max_bad_word_tokens),
                     "sampling.bad_words");
    for (const int32_t id : p.bad_words[i])
      if (Status s = check_id("bad_words", id, limits.vocab_size); !s) return s;
  }
  return ok();
}

Status check_allowed_ids(const SamplingParams& p, const SamplingLimits& limits) {
  const auto count = static_cast<int64_t>(p.allowed_token_ids.size());
  if (limits.vocab_size > 0 && count > limits.vocab_size)
    return invalid(
        fmt::format("allowed_token_ids has {} ids; the vocabulary has {}", count, limits.vocab_size),
        "sampling.allowed_token_ids");
  for (const int32_t id : p.allowed_token_ids)
    if (Status s = check_id("allowed_token_ids", id, limits.vocab_size); !s) return s;
  return ok();
}

Status check_forced_ids(const SamplingParams& p, const SamplingLimits& limits) {
  const auto count = static_cast<int64_t>(p.forced_token_ids.size());
  if (count > p.max_tokens)
    return invalid(fmt::format("forced_token_ids has {} ids; max_tokens is {}", count, p.max_tokens),
                   "sampling.forced_token_ids");
  if (count > 0 && p.beam_width > 0)
    return invalid("forced_token_ids and beam_width exclude each other", "sampling.forced_token_ids");
  for (const int32_t id : p.forced_token_ids)
    if (Status s = check_id("forced_token_ids", id, limits.vocab_size); !s) return s;
  return ok();
}

std::optional<int32_t> repeated_id(const std::vector<std::pair<int32_t, double>>& bias) {
  std::vector<int32_t> ids;
  for (const auto& [id, amount] : bias) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  return twice == ids.end() ? std::nullopt : std::optional(*twice);
}

Status check_token_lists(const SamplingParams& p, const SamplingLimits& limits) {
  for (const auto& [id, bias] : p.logit_bias) {
    if (Status s = check_id("logit_bias", id, limits.vocab_size); !s) return s;
    if (!(bias >= -100 && bias <= 100))
      return invalid(fmt::format("logit_bias of token id {} is {}; it must lie in [-100, 100]", id, bias),
                     "sampling.logit_bias");
  }
  if (const std::optional<int32_t> id = repeated_id(p.logit_bias))
    return invalid(fmt::format("logit_bias has token id {} more than once", *id), "sampling.logit_bias");
  if (Status s = check_allowed_ids(p, limits); !s) return s;
  if (Status s = check_forced_ids(p, limits); !s) return s;
  return check_bad_words(p, limits);
}

}  // namespace

Status validate(const SamplingParams& params, const SamplingLimits& limits) {
  if (Status s = check_choice(params); !s) return s;
  if (Status s = check_counts(params, limits); !s) return s;
  if (Status s = validate(ListCounts{.logit_bias = std::ssize(params.logit_bias),
                                     .bad_words = std::ssize(params.bad_words),
                                     .stop = std::ssize(params.stop)},
                          limits);
      !s)
    return s;
  if (Status s = check_stops(params, limits); !s) return s;
  return check_token_lists(params, limits);
}

Status validate(const ListCounts& counts, const SamplingLimits& limits) {
  if (counts.stop > limits.max_stop_strings)
    return invalid(
        fmt::format("stop has {} texts; at most {} (max_stop_strings)", counts.stop, limits.max_stop_strings),
        "sampling.stop");
  if (counts.logit_bias > limits.max_logit_bias)
    return invalid(fmt::format("logit_bias has {} entries; at most {} (max_logit_bias)", counts.logit_bias,
                               limits.max_logit_bias),
                   "sampling.logit_bias");
  if (counts.bad_words > limits.max_bad_words)
    return invalid(fmt::format("bad_words has {} token sequences; at most {} (max_bad_words)",
                               counts.bad_words, limits.max_bad_words),
                   "sampling.bad_words");
  return ok();
}

Status validate(const SamplingLimits& limits) {
  struct Limit {
    const char* name;
    int32_t value, least, most;
  };
  for (const Limit& limit : {Limit{"max_n", limits.max_n, 1, 1024},
                             {"max_beam_width", limits.max_beam_width, 0, 1024},
                             {"max_stop_strings", limits.max_stop_strings, 0, 1 << 20},
                             {"max_stop_bytes", limits.max_stop_bytes, 1, 1 << 20},
                             {"max_logprobs", limits.max_logprobs, 0, 1 << 20},
                             {"max_logit_bias", limits.max_logit_bias, 0, 1 << 20},
                             {"max_bad_words", limits.max_bad_words, 0, 1 << 20},
                             {"max_bad_word_tokens", limits.max_bad_word_tokens, 1, 1 << 20},
                             {"max_stop_token_ids", limits.max_stop_token_ids, 0, 1 << 20}})
    if (limit.value < limit.least || limit.value > limit.most)
      return invalid(
          fmt::format("{} is {}; it must be from {} to {}", limit.name, limit.value, limit.least, limit.most),
          limit.name);
  return ok();
}

}  // namespace quire
