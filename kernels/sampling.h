// Choosing a token from each row of logits on a device: greedy, or temperature with top_k, top_p and min_p, drawn by (seed, position).
// The same definition as the CPU sampler (src/sample/filters.h): filters in the order top_k, top_p, min_p; the draw is the inverse of the
// cumulative distribution in ascending token id at the Philox number of (seed, position). Probabilities are float32 here and float64
// there, so a draw within rounding of a border may differ; greedy never does.
// What needs the history of a sequence (penalties, n-grams, bad words, allowed ids, typical_p) stays with the CPU sampler.
#pragma once

#include <cstdint>

namespace quire {

struct SampleSettings {
  float inverse_temperature = 1.0f;  // 0 = greedy
  int32_t top_k = 0;                 // 0 = all
  float top_p = 1.0f;
  float min_p = 0.0f;
  uint64_t seed = 0;
  int32_t position = 0;
  int32_t logits_row = 0;  // several samples may read one row
};

struct SampleParams {
  const float* logits = nullptr;             // [rows of logits, vocab]
  const SampleSettings* settings = nullptr;  // [num_samples], device memory
  // num_samples * sample_space_bytes(), 16-byte aligned; contents need no preparation
  void* workspace = nullptr;
  int32_t* tokens = nullptr;  // [num_samples] out
  // [num_samples] out: natural log of the token's probability before temperature and filters
  float* logprobs = nullptr;
  int32_t num_samples = 0;
  int32_t vocab = 0;
};

// ids[i] = tokens[source[i]] where source[i] >= 0: a decode row takes what the step before sampled, without a detour over the host.
struct TakeSampledParams {
  int32_t* ids = nullptr;           // [rows]
  const int32_t* source = nullptr;  // [rows]
  const int32_t* tokens = nullptr;  // of the step before
  int64_t rows = 0;
};

}  // namespace quire
