// Values that travel between the scheduler, the executor and the sampler: what to sample, and what was sampled.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "quire/sampling_params.h"
#include "src/base/ids.h"

namespace quire {

// A sequence's sampler state appears in the executor with the first plan that samples for it.
struct PlannedJoin {
  SequenceId sequence{};
  std::shared_ptr<const SamplingParams> sampling;
  // resolved: the request's, or drawn; sequences of a group have different ones
  uint64_t seed = 0;
  std::vector<TokenId> history;        // prompt + output so far (penalties, n-grams, bad words)
  int32_t num_prompt_tokens = 0;       // of history; the rest is output
  std::vector<TokenId> eos_token_ids;  // masked until min_tokens
};

// Instead of a sampled token where none can be chosen; the request then fails. Numbered as in kernels/sampling.h.
inline constexpr TokenId kRulesLeaveNone = -2;  // the request's own rules exclude every id
inline constexpr TokenId kNoLogit = -3;         // the model's row has nothing but NaN and minus infinity

// What to sample from one row of logits.
struct PlannedSample {
  SequenceId sequence{};
  // of the token to be sampled: its index in prompt + output; with the seed it fixes the draw
  int32_t position = 0;
  // > 0: also return this many likeliest ids with logprobs (logprobs, beam search)
  int32_t top_candidates = 0;
  bool beam = false;  // return candidates only, sample nothing
};

struct SampledToken {
  SequenceId sequence{};
  TokenId token = -1;  // -1 for beam rows; kRulesLeaveNone, kNoLogit
  // of the model's distribution before temperature and filters (natural log); 0 where the
  // request does not use it (SamplingParams::uses_logprobs)
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // likeliest ids with logprobs, as many as asked for
};

}  // namespace quire
