// What the CUDA kernels take at most, asked of a model before its weights are read. Everything else that bounds
// them (shared memory, grids) is met by choosing another kernel.
#pragma once

#include <cstdint>

#include "quire/result.h"

namespace quire {

inline constexpr int64_t kMaxNormedElements = 16384;  // norm.cu: a block of threads holds a row in registers
inline constexpr int64_t kMaxSampledLogits =
    524288;  // sampling_row.h: parts that one choice of a token merges

struct ModelWidths {
  int64_t hidden_size = 0, vocab_size = 0;
};
// kInvalidArgument: the field of config.json, its value and the limit.
Status check_cuda_limits(const ModelWidths& model);

}  // namespace quire
