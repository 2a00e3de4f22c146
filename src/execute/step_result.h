// What came out of one executed step.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "quire/request.h"
#include "quire/result.h"
#include "src/base/ids.h"
#include "src/sample/sample_types.h"

namespace quire {

struct PromptLogprob {
  TokenId token = -1;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;
};

struct SequencePromptLogprobs {
  SequenceId sequence{};
  int32_t first_position = 0;  // of the first token below
  std::vector<PromptLogprob> tokens;
};

// Where the policy keeps other tokens than positions tell (TOVA, H2O): what is visible after the step.
struct SequenceKvDump {
  SequenceId sequence{};
  KvDump positions;
};

// A sequence that the step could not carry, though it ran for the others: there was no memory for what it alone asks for.
struct SequenceFailure {
  SequenceId sequence{};
  Error error;
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SampledToken>
      samples;  // in the order of the plan's samples; of a failed sequence without meaning
  std::vector<SequencePromptLogprobs> prompt_logprobs;
  std::vector<SequenceKvDump> kv_dumps;
  int64_t shared_read_tokens = 0;  // that attention read once less, over the step's sequences
  bool sampled_on_host = false;    // on a device with memory of its own
  int64_t uploaded_bytes = 0;  // arrays and block tables, from the host to a device with memory of its own
  std::optional<double> device_idle_us;   // before this step, where it was to be timed
  Status status = ok();                   // a failed step fails its sequences, not the engine
  std::vector<SequenceFailure> failures;  // of a step that did not fail: these end, the others go on
};

}  // namespace quire
