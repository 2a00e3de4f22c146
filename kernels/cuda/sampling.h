// The launcher of kernels/cuda/sampling.cu; see kernels/sampling.h for what it computes.
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/sampling.h"

namespace quire::QUIRE_SIDE {

int64_t sample_space_bytes();  // workspace of one sample
void sample(const Target& target, const SampleParams& params);
void take_sampled(const Target& target, const TakeSampledParams& params);

}  // namespace quire::QUIRE_SIDE
