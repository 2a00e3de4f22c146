// Why a row gave no token: the error that its request ends with. Pure.
#pragma once

#include "quire/result.h"
#include "quire/sampling_params.h"
#include "src/base/ids.h"

namespace quire {

// `why`: kRulesLeaveNone or kNoLogit. `num_output_tokens`: those that the continuation has.
Error no_token_error(TokenId why, const SamplingParams& sampling, int32_t num_output_tokens);
Error no_prompt_logprob_error(int32_t position);

}  // namespace quire
