// Log-probabilities of one row of logits on the host: of a given id, and of the likeliest ones.
#pragma once

#include <cstdint>
#include <span>

#include "src/execute/step_result.h"

namespace quire {

// logits: [vocab] float32. `num_top` likeliest ids, likeliest first, the lower id first among equals.
PromptLogprob row_logprob(std::span<const float> logits, TokenId token, int32_t num_top);

}  // namespace quire
