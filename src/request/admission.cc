#include "src/request/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/base/blocks_for.h"
#include "src/base/longest_time.h"

namespace quire {
namespace {

Status check_prompt(std::span<const TokenId> prompt, int32_t vocab_size) {
  if (prompt.empty()) return invalid("the prompt has no tokens; it needs at least 1", "prompt");
  for (size_t i = 0; i < prompt.size(); ++i)
    if (prompt[i] < 0 || prompt[i] >= vocab_size)
      return invalid(fmt::format("prompt token {} is {}; ids of this model run from 0 to {}", i, prompt[i],
                                 vocab_size - 1),
                     "prompt");
  return ok();
}

Status check_length(int64_t prompt_tokens, const SamplingParams& sampling, int32_t max_context_tokens) {
  if (prompt_tokens > max_prompt_tokens(sampling, max_context_tokens))
    return prompt_too_long(fmt::format("{} tokens", prompt_tokens), sampling, max_context_tokens);
  if (prompt_tokens + sampling.max_tokens > max_context_tokens)
    return invalid(fmt::format("prompt has {} tokens and max_tokens is {}, together {}; this model holds {} "
                               "(max_context_tokens), so "
                               "max_tokens may be at most {}",
                               prompt_tokens, sampling.max_tokens, prompt_tokens + sampling.max_tokens,
                               max_context_tokens, max_context_tokens - prompt_tokens),
                   "sampling.max_tokens");
  return ok();
}

Status check_beams(const SamplingParams& sampling) {
  if (sampling.beam_width == 0) return ok();
  if (!sampling.stop.empty())
    return invalid("stop texts and beam_width exclude each other; use stop_token_ids", "sampling.stop");
  if (sampling.max_tokens == 0)
    return invalid("max_tokens is 0; beam search needs at least 1", "sampling.max_tokens");
  return ok();
}

// What its policy keeps of every layer and head lies outside the cache.
Status check_policy_memory(const SamplingParams& sampling, int64_t prompt_tokens,
                           const PolicyMemoryLimits& memory, const PolicySpec& policy) {
  const int64_t bytes = policy_request_bytes(policy, prompt_tokens, prompt_tokens + sampling.max_tokens,
                                             sampling.num_sequences(), memory);
  if (bytes <= memory.bytes) return ok();
  return invalid(
      fmt::format("kv_policy '{}' needs {} bytes for the lists and scores of {} prompt tokens, max_tokens {} "
                  "and {} sequences; there are {} (kv_policy_bytes)",
                  to_string(policy), bytes, prompt_tokens, sampling.max_tokens, sampling.num_sequences(),
                  memory.bytes),
      "kv_policy");
}

}  // namespace

int64_t max_prompt_tokens(const SamplingParams& sampling, int32_t max_context_tokens) {
  return std::max(max_context_tokens - (sampling.max_tokens > 0 ? 1 : 0), 0);
}

Error prompt_too_long(const std::string& has, const SamplingParams& sampling, int32_t max_context_tokens) {
  return invalid(fmt::format("prompt has {}; this model takes at most {} (max_context_tokens {}{})", has,
                             max_prompt_tokens(sampling, max_context_tokens), max_context_tokens,
                             sampling.max_tokens > 0 ? ", one of them generated" : ""),
                 "prompt");
}

int64_t peak_blocks(int64_t prompt_tokens, const SamplingParams& sampling, int32_t block_tokens) {
  const int64_t n = sampling.num_sequences();
  const int64_t last =
      prompt_tokens + (sampling.max_tokens > 0 ? sampling.max_tokens - 1 : 0);  // the last id is never run
  if (n == 1) return blocks_for(last, block_tokens);
  const int64_t shared = prompt_tokens / block_tokens;
  const int64_t copied = sampling.beam_width > 0 ? n : 1;
  return shared + n * blocks_for(last - shared * block_tokens, block_tokens) + copied;
}

Status check_request(const SamplingParams& sampling, std::span<const TokenId> prompt,
                     const AdmissionLimits& limits, const PolicySpec& policy) {
  SamplingLimits bounds = limits.sampling;
  bounds.vocab_size = limits.vocab_size;
  if (Status s = validate(sampling, bounds); !s) return s;
  if (Status s = check_beams(sampling); !s) return s;
  if (Status s = check_prompt(prompt, limits.vocab_size); !s) return s;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  if (Status s = check_length(prompt_tokens, sampling, limits.max_context_tokens); !s) return s;
  if (sampling.num_sequences() > limits.max_sequences)
    return invalid(fmt::format("the request has {} sequences; at most {} run at once (max_sequences)",
                               sampling.num_sequences(), limits.max_sequences),
                   sampling.beam_width > 0 ? "sampling.beam_width" : "sampling.n");
  const int64_t peak = traits(policy).drops_tokens
                           ? peak_blocks(policy, prompt_tokens, sampling.max_tokens, sampling.num_sequences(),
                                         limits.max_chunk_tokens, limits.block_tokens)
                           : peak_blocks(prompt_tokens, sampling, limits.block_tokens);
  if (peak > limits.num_blocks)
    return invalid(fmt::format("the request may need {} cache blocks ({} prompt tokens, max_tokens {}, {} "
                               "sequences); the cache has {} "
                               "of {} tokens (kv_cache_bytes)",
                               peak, prompt_tokens, sampling.max_tokens, sampling.num_sequences(),
                               limits.num_blocks, limits.block_tokens),
                   "sampling.max_tokens");
  return check_policy_memory(sampling, prompt_tokens, limits.policy_memory, policy);
}

Status check_retention(const KvRetention& retention, const RetentionLimits& limits) {
  if (retention.retention_class < 0 || retention.retention_class > limits.max_class)
    return invalid(fmt::format("kv_retention.retention_class is {}; it must be from 0 to {} "
                               "(max_kv_retention_class)",
                               retention.retention_class, limits.max_class),
                   "kv_retention.retention_class");
  if (retention.ttl_ms && (*retention.ttl_ms < 1 || *retention.ttl_ms > kLongestMs))
    return invalid(
        fmt::format("kv_retention.ttl_ms is {}; it must be from 1 to {}", *retention.ttl_ms, kLongestMs),
        "kv_retention.ttl_ms");
  if (!(retention.cost > 0 && retention.cost <= limits.max_cost))
    return invalid(
        fmt::format("kv_retention.cost is {}; it must be above 0 and at most {} (max_kv_retention_cost)",
                    retention.cost, limits.max_cost),
        "kv_retention.cost");
  return ok();
}

Status check_deadline(std::optional<int64_t> deadline_ms) {
  if (!deadline_ms || (*deadline_ms >= 1 && *deadline_ms <= kLongestMs)) return ok();
  return invalid(fmt::format("deadline_ms is {}; it must be from 1 to {}", *deadline_ms, kLongestMs),
                 "deadline_ms");
}

std::optional<Error> refuse_hopeless(int64_t left_us, const WorkAhead& work, double tokens_per_s) {
  if (tokens_per_s <= 0 || left_us <= 0) return {};
  const int64_t tokens = work.running + work.waiting + work.own;
  const auto need_us = static_cast<int64_t>(std::ceil(1e6 * static_cast<double>(tokens) / tokens_per_s));
  if (need_us <= left_us) return {};
  Error e = error(Code::kResourceExhausted,
                  fmt::format("the deadline is in {} ms (deadline_ms, or the call's timeout); {} prompt "
                              "tokens of its own, {} that "
                              "run and {} that wait before it need about {} ms",
                              left_us / 1000, work.own, work.running, work.waiting, need_us / 1000));
  e.field = "deadline_ms";
  e.retry_delay_ms = (need_us - left_us + 999) / 1000;
  return e;
}

}  // namespace quire
