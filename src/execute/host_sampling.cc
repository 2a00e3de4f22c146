#include "src/execute/host_sampling.h"

#include <algorithm>

#include "src/execute/row_logprobs.h"

namespace quire {

void HostSampling::run(const HostStep& step, const MakePiece& make_piece, Sampler& sampler,
                       StepResult& result) {
  const int64_t total = step.arrays().num_logits_rows;
  size_t next = 0;
  for (int64_t first = 0; first < total; first += piece_rows_) {
    const int64_t end = std::min(first + piece_rows_, total);
    float* logits = make_piece(first, end - first);
    samples_.clear();
    while (next < step.wanted_logits().size()) {
      const WantedLogits& wanted = step.wanted_logits()[next];
      if (wanted.first >= end) break;
      append_prompt_logprobs(wanted, {.first = first, .end = end, .logits = logits, .vocab = vocab_},
                             result.prompt_logprobs);
      if (wanted.first + wanted.count > end) break;  // goes on in the next piece
      for (const PlannedSample& sample : wanted.sequence->samples)
        samples_.push_back({.sample = &sample, .logits_row = wanted.first + wanted.count - 1 - first});
      ++next;
    }
    sampler.sample(logits, vocab_, samples_, result.samples);
  }
}

}  // namespace quire
