// Rotary frequencies, with transformers' exact maths (modeling_rope_utils.py, version 5), and the table that
// kernels read.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/model/model_spec.h"

namespace quire {

// Inverse frequencies of the head_dim / 2 pairs for a sequence of `length` positions. Only the dynamic kind
// looks at the length.
std::vector<float> rope_inverse_frequencies(const RopeSpec& rope, int32_t head_dim, int64_t length);
// What cos and sin are multiplied by: YaRN's attention factor (arXiv 2309.00071, sec. 3.4), 1 elsewhere.
float rope_attention_factor(const RopeSpec& rope);

// table[p] = cos of the head_dim / 2 pairs at position p, then sin; [num_positions, head_dim] float32.
// Under dynamic scaling position p turns by the frequencies of a sequence of p + 1 positions: what
// transformers computes when tokens come one by one. A prompt longer than the original length run there at
// once turns all its positions by the prompt's length; here a row never depends on how a prompt was cut.
void fill_rope_table(const RopeSpec& rope, int32_t head_dim, int64_t num_positions, std::span<float> table);

}  // namespace quire
