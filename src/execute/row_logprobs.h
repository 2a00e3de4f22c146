// Log-probabilities of one row of logits on the host: of a given id, and of the likeliest ones.
#pragma once

#include <cstdint>
#include <span>

#include "src/execute/host_step.h"
#include "src/execute/step_result.h"

namespace quire {

// logits: [vocab] float32. `num_top` likeliest ids, likeliest first, the lower id first among equals.
PromptLogprob row_logprob(std::span<const float> logits, TokenId token, int32_t num_top);

// Rows [first, end) of a step's logits, on the host.
struct LogitsPiece {
  int64_t first = 0, end = 0;
  const float* logits = nullptr;  // [end - first, vocab]
  int64_t vocab = 0;
};

// Appends what the piece says of a sequence's prompt tokens, if it asked. Row i of a chunk predicts its token i + 1; the last row, the
// prompt token after it. Pieces of one step come in order.
void append_prompt_logprobs(const WantedLogits& wanted, const LogitsPiece& piece,
                            std::vector<SequencePromptLogprobs>& out);

}  // namespace quire
