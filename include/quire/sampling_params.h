// How tokens are chosen and when a continuation ends. Plain values; std only.
// Ranges are checked by validate(); the message names the field, the value and the limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "quire/result.h"

namespace quire {

struct SamplingParams {
  // Choice of the next token. Defaults are neutral: each is the value that changes nothing.
  double temperature = 1.0;         // [0, 100]; 0 = greedy
  int32_t top_k = 0;                // 0 = all
  double top_p = 1.0;               // (0, 1]
  double min_p = 0.0;               // [0, 1]
  double typical_p = 1.0;           // (0, 1]
  double repetition_penalty = 1.0;  // (0, 100]; over prompt and output (Keskar et al. 2019, CTRL, sec. 4.1)
  double presence_penalty = 0.0;    // [-2, 2]; over output tokens
  double frequency_penalty = 0.0;   // [-2, 2]; over output tokens
  int32_t no_repeat_ngram = 0;      // 0 = off; forbids any n-gram of prompt + output to come twice
  std::vector<std::pair<int32_t, double>> logit_bias;  // (token id, added to its logit); no id twice
  std::vector<int32_t> allowed_token_ids;              // empty = all
  std::vector<std::vector<int32_t>> bad_words;         // token sequences that must not appear
  // the output begins with these, whatever the model says (teacher forcing); logprobs are its own
  std::vector<int32_t> forced_token_ids;
  // absent: drawn by the engine. Same seed, same random numbers, whatever the batch; the logits may differ with it by rounding,
  // since a product's order of sums goes by its rows, and so now and then a token
  std::optional<uint64_t> seed;

  // When a continuation ends.
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;         // no end-of-sequence id, stop id or stop string before this many
  std::vector<std::string> stop;  // texts
  std::vector<int32_t> stop_token_ids;
  bool include_stop = false;  // keep the stop text in the output
  bool ignore_eos = false;

  // How many continuations.
  int32_t n = 1;
  // 0 = n; else >= n: that many are made, the n of highest mean logprob returned
  int32_t best_of = 0;
  int32_t beam_width = 0;       // 0 = no beam search; else n <= beam_width beams, temperature ignored
  double length_penalty = 1.0;  // beam score = sum of logprobs / length^length_penalty
  bool early_stopping = false;  // end when beam_width finished beams exist

  // What is reported.
  int32_t logprobs = -1;         // -1 = none; 0 = chosen token only; N = and the N likeliest
  int32_t prompt_logprobs = -1;  // the same over prompt tokens
  bool skip_special_tokens = true;

  // Whether the sampled token's own logprob is reported, or ranks the continuations.
  bool uses_logprobs() const { return logprobs >= 0 || best_of > n; }
  int32_t num_sequences() const { return beam_width > 0 ? beam_width : (best_of > n ? best_of : n); }
};

// Limits a server puts on what a request may ask (docs/wire.md, Limits).
struct SamplingLimits {
  int32_t max_n = 8;
  int32_t max_beam_width = 8;
  int32_t max_stop_strings = 16;
  int32_t max_stop_bytes = 256;  // each
  int32_t max_logprobs = 20;
  int32_t max_logit_bias = 1024;
  int32_t max_bad_words = 256;       // sequences; each sampled token is checked against all
  int32_t max_bad_word_tokens = 64;  // of one sequence
  int32_t max_stop_token_ids = 256;
  int32_t vocab_size = 0;  // ids must be below; 0 = unchecked
};

// Entries of the lists of which each is an object of its own.
struct ListCounts {
  int64_t logit_bias = 0, bad_words = 0, stop = 0;
};

Status validate(const SamplingParams& params, const SamplingLimits& limits);
Status validate(const ListCounts& counts, const SamplingLimits& limits);  // as the one above says it
Status validate(const SamplingLimits& limits);                            // each by its flag's name

}  // namespace quire
