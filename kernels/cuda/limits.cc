#include "kernels/cuda/limits.h"

#include <fmt/format.h>

#include <string_view>

namespace quire {
namespace {

Status check_limit(std::string_view field, int64_t value, int64_t most) {
  if (value <= most) return ok();
  return invalid(
      fmt::format("{} is {}; the CUDA kernels take at most {} (device cpu takes more)", field, value, most),
      std::string(field));
}

}  // namespace

Status check_cuda_limits(const ModelWidths& model) {
  if (Status s = check_limit("hidden_size", model.hidden_size, kMaxNormedElements); !s) return s;
  return check_limit("vocab_size", model.vocab_size, kMaxSampledLogits);
}

}  // namespace quire
