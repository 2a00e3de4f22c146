// The rotary part of a config.json: rope_theta, rope_scaling (transformers 4) and rope_parameters
// (transformers 5).
#pragma once

#include "src/model/field_reader.h"
#include "src/model/model_spec.h"

namespace quire {

// Faults go to `config`. `max_position_embeddings` is the field as written.
RopeSpec read_rope(FieldReader& config, int64_t max_position_embeddings);

// The longest context the rotary scaling was made for, as vLLM derives it: linear and dynamic stretch
// max_position_embeddings by the factor, yarn stretches the original length, llama3 states the stretched one.
int64_t stretched_max_positions(const RopeSpec& rope, int64_t max_position_embeddings);

}  // namespace quire
