// The launchers of sampling.cu, logit_edits.cu and logprobs.cu; see kernels/sampling.h for what they compute.
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/sampling.h"

namespace quire::QUIRE_SIDE {

int64_t sample_space_bytes();  // workspace of one sample
void sample(const Target& target, const SampleParams& params);
void edit_logits(const Target& target, const EditLogitsParams& params);
void report_logprobs(const Target& target, const ReportLogprobsParams& params);

}  // namespace quire::QUIRE_SIDE
