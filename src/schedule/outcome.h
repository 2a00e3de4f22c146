// What the scheduler found out since it was last asked, for delivery: values only, they cross to the delivery
// thread. Order within one Outcome: prompts, tokens, sequence ends, request ends. A sequence has at most one
// token in it.
#pragma once

#include <optional>
#include <vector>

#include "quire/request.h"
#include "src/base/ids.h"

namespace quire {

struct PromptOutput {
  RequestId request = 0;
  std::vector<TokenLogprob> logprobs;  // [0] has no logprob
};

struct TokenOutput {
  RequestId request = 0;
  int32_t index = 0;
  TokenId token = -1;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;
};

// A sequence has ended. For beams `tokens` and `logprobs` hold the whole output, which was not streamed.
struct SequenceEnd {
  RequestId request = 0;
  int32_t index = 0;
  FinishReason finish = FinishReason::kNone;
  std::optional<TokenId> stop_token;  // the id that ended it; it is the last of the output
  std::optional<Error> error;
  int32_t num_computed = 0;  // positions whose K and V were computed, for dumps
  KvDump kv_dump;            // where the policy's state alone tells it
  std::vector<TokenId> tokens;
  std::vector<TokenLogprob> logprobs;
};

struct RequestEnd {
  RequestId request = 0;
  FinishReason finish = FinishReason::kNone;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t output_tokens = 0;  // committed; delivery knows how many of them a stop string cut off
  KvUsage kv;
  Timings timings;
};

struct Outcome {
  std::vector<PromptOutput> prompts;
  std::vector<TokenOutput> tokens;
  std::vector<SequenceEnd> ends;
  std::vector<RequestEnd> request_ends;

  void clear() {  // and keeps its memory
    prompts.clear();
    tokens.clear();
    ends.clear();
    request_ends.clear();
  }
  bool empty() const { return prompts.empty() && tokens.empty() && ends.empty() && request_ends.empty(); }
};

}  // namespace quire
