// AttentionParams::partials on the CPU: each segment's sums apart, in plain loops. A pass of its own, paid by who asks for it.
#pragma once

#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace quire::cpu {

// Writes p.partials in the layout of its declaration, from the same lists and scale as the op; p.partials is set.
void write_attention_partials(const AttentionParams& p, DType activations, ThreadPool& pool);

}  // namespace quire::cpu
