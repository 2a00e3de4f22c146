// Choosing a token from each row of logits on a device: greedy, or temperature with top_k, top_p and min_p, drawn by (seed, position).
// The same definition as the CPU sampler (src/sample/filters.h): filters in the order top_k, top_p, min_p; the draw is the inverse of the
// cumulative distribution in ascending token id at the Philox number of (seed, position). Probabilities are float32 here and float64
// there, so a draw within rounding of a border may differ; greedy never does.
// What a sequence's history and lists make of its logits (src/sample/processors.h) is done before, by edit_logits, into rows of its own;
// logprobs are of the model's own distribution, by report_logprobs. typical_p and beams stay with the CPU sampler.
#pragma once

#include <cstdint>

namespace quire {

// In place of a token, where none can be chosen. What takes tokens on the device goes on with id 0 until the host has ended the sequence.
inline constexpr int32_t kRulesLeaveNoToken = -2;  // of an edited row, whose own logits are not all masked
inline constexpr int32_t kNoLogitInRow = -3;       // nothing but NaN and minus infinity

struct SampleSettings {
  float inverse_temperature = 1.0f;  // 0 = greedy
  int32_t top_k = 0;                 // 0 = all
  float top_p = 1.0f;
  float min_p = 0.0f;
  uint64_t seed = 0;
  int32_t position = 0;
  int32_t logits_row = 0;   // several samples may read one row
  int32_t edited_row = -1;  // of `edited`, to choose from instead; -1: none
  int32_t forced = -1;      // the token, whatever the logits say; -1: none
};

struct SampleParams {
  const float* logits = nullptr;             // [rows of logits, vocab]
  const float* edited = nullptr;             // [edited rows, vocab]; null where no sample has one
  const SampleSettings* settings = nullptr;  // [num_samples], device memory
  // num_samples * sample_space_bytes(), 16-byte aligned; contents need no preparation
  void* workspace = nullptr;
  int32_t* tokens = nullptr;       // [num_samples] out; kRulesLeaveNoToken, kNoLogitInRow
  int32_t* host_tokens = nullptr;  // the same in mapped host memory; or null
  // [num_samples] out, device or mapped host memory: natural log of the token's probability before temperature and filters, in the row that
  // it was chosen from
  float* logprobs = nullptr;
  int32_t num_samples = 0;
  int32_t vocab = 0;
};

// How one sample's logits are changed before a token is chosen, as src/sample/processors.h defines it and in its order: bias, allowed
// ids, bad words, n-grams, penalties, ids that may not end the sequence yet. Offsets count int32s of EditLogitsParams::ints.
struct LogitEdit {
  int32_t logits_row = 0;   // read
  int32_t edited_row = -1;  // written; -1: nothing is done
  int64_t history = 0;      // prompt + output so far
  // num_bias ids, none twice; as many amounts (bits of f32); num_allowed ids; num_bad_words + 1 ends and beginnings of words,
  // counted from the first word; the words
  int64_t lists = 0;
  int64_t ending = 0;  // num_ending ids
  double presence = 0, frequency = 0;
  float repetition = 1;
  int32_t history_tokens = 0, prompt_tokens = 0;
  int32_t no_repeat_ngram = 0;
  int32_t num_bias = 0, num_allowed = 0, num_ending = 0, num_bad_words = 0;

  constexpr bool penalizes() const { return repetition != 1.0f || presence != 0.0 || frequency != 0.0; }
};

struct EditLogitsParams {
  const float* logits = nullptr;     // [rows of logits, vocab]
  float* edited = nullptr;           // [edited rows, vocab] out
  const int32_t* ints = nullptr;     // histories and lists
  const LogitEdit* edits = nullptr;  // [num_edits], device memory
  int32_t num_edits = 0;
  int32_t vocab = 0;
};

// The likeliest tokens of a row of the model's own logits, and the logprob of what was chosen from it.
struct LogprobReport {
  int32_t sample = -1;  // whose token and logprob; -1: nothing is done
  int32_t logits_row = 0;
  int32_t num_top = 0;  // at most kMaxTopLogprobs
};
inline constexpr int32_t kMaxTopLogprobs = 64;

// Likeliest first, of equals the lowest id; -1: no other has any probability.
struct TopLogprobs {
  int32_t ids[kMaxTopLogprobs];
  float logprobs[kMaxTopLogprobs];
};

struct ReportLogprobsParams {
  const float* logits = nullptr;           // [rows of logits, vocab]
  const LogprobReport* reports = nullptr;  // [num_reports], device memory
  const int32_t* tokens = nullptr;         // [samples]
  float* logprobs = nullptr;               // [samples] out; this and the next: device or mapped host memory
  TopLogprobs* top = nullptr;              // [num_reports] out: the first num_top of each
  int32_t num_reports = 0;
  int32_t vocab = 0;
};

}  // namespace quire
