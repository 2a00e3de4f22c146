// What is refused at the door, before a request costs anything: prompts and lengths that the model or the
// cache can never hold. Pure; any thread. Every message names the value and the limit.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "quire/request.h"
#include "src/base/ids.h"
#include "src/policy/policy_memory.h"
#include "src/policy/policy_spec.h"

namespace quire {

struct AdmissionLimits {
  int32_t vocab_size = 0;
  int32_t max_context_tokens = 0;  // prompt + output of one sequence
  int32_t max_sequences = 0;       // running at once
  int32_t num_blocks = 0;
  int32_t block_tokens = 16;
  int32_t max_chunk_tokens = 0;  // of a prompt in one step
  SamplingLimits sampling;
  PolicyMemoryLimits policy_memory;  // of 0 layers: not reckoned with
};

// Most blocks the whole group can need at once: the prompt's full blocks shared, a tail and the output for
// each sequence, and the tails that are being copied (one for samples; for beams as many as there are, at
// every step).
int64_t peak_blocks(int64_t prompt_tokens, const SamplingParams& sampling, int32_t block_tokens);

// Most tokens a prompt may have: one is generated unless none is asked for.
int64_t max_prompt_tokens(const SamplingParams& sampling, int32_t max_context_tokens);

// The refusal of a longer one; `has` is what it has ("9000 tokens").
Error prompt_too_long(const std::string& has, const SamplingParams& sampling, int32_t max_context_tokens);

// Everything but the queue: parameters, ids, lengths, and whether it can ever fit under its KV policy.
Status check_request(const SamplingParams& sampling, std::span<const TokenId> prompt,
                     const AdmissionLimits& limits, const PolicySpec& policy = {});

struct RetentionLimits {
  int32_t max_class = 0;
  double max_cost = 0;
};

// kInvalidArgument: a class, time to live or cost out of range.
Status check_retention(const KvRetention& retention, const RetentionLimits& limits);

// kInvalidArgument: out of range.
Status check_deadline(std::optional<int64_t> deadline_ms);

// Prompt tokens to be computed before the first token of a request can come.
struct WorkAhead {
  int64_t running = 0;  // of those that run
  int64_t waiting = 0;  // of those whose turn is before its own
  int64_t own = 0;
};

// The refusal of a deadline that comes before this work can be done. tokens_per_s: the most that the engine can
// compute, 0 = unknown, and then nothing is refused. Output is not reckoned with: it may end at any token.
std::optional<Error> refuse_hopeless(int64_t left_us, const WorkAhead& work, double tokens_per_s);

}  // namespace quire
