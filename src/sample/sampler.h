// The sampler as the executor sees it: states by sequence, rows of logits in, tokens out. Executor thread only.
// A draw is a function of (logits, params, seed, position): the same alone or in any batch.
// Order of processors: logit_bias and allowed ids, bad words and n-grams, penalties, min_tokens mask, temperature, top_k, top_p,
// min_p, typical_p (the filters in the order of Hugging Face's transformers), then the draw.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "src/sample/sample_types.h"

namespace quire {

struct SampleRow {
  const PlannedSample* sample = nullptr;
  int64_t logits_row = 0;  // row of the logits it reads
};

class Sampler {
 public:
  virtual ~Sampler() = default;
  virtual void join(const PlannedJoin& join) = 0;
  virtual void leave(SequenceId sequence) = 0;
  // Appends to the sequence's history when a plan carries tokens that were chosen on the host (beam search).
  virtual void append(SequenceId sequence, TokenId token) = 0;
  // logits: [rows, vocab] float32 on the sampler's device; may be overwritten. Results in the order of `rows`; each sampled
  // token is appended to its sequence's history.
  virtual void sample(float* logits, int64_t vocab, std::span<const SampleRow> rows,
                      std::vector<SampledToken>& out) = 0;
  virtual TokenId last_token(SequenceId sequence) const = 0;  // what kSampledLastStep stands for
};

std::unique_ptr<Sampler> make_cpu_sampler();

}  // namespace quire
