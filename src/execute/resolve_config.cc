#include "src/execute/resolve_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

namespace quire {
namespace {

struct Range {
  const char* field;
  int64_t value, low, high;
};

Status check_ranges(const EngineConfig& c) {
  const Range ranges[] = {{"max_step_tokens", c.max_step_tokens, 1, 1 << 20},
                          {"max_sequences", c.max_sequences, 1, 1 << 16},
                          {"max_prefill_chunk_tokens", c.max_prefill_chunk_tokens, 0, c.max_step_tokens},
                          {"gemm_tuning_ms", c.gemm_tuning_ms, 0, 600'000},
                          {"max_graph_tokens", c.max_graph_tokens, 0, 1 << 20},
                          {"kv_cache_bytes", c.kv_cache_bytes, 0, INT64_MAX},
                          {"kv_policy_bytes", c.kv_policy_bytes, 0, INT64_MAX},
                          {"cascade_min_saved_bytes", c.cascade_min_saved_bytes, -1, INT64_MAX},
                          {"max_kv_retention_class", c.max_kv_retention_class, 0, INT32_MAX},
                          {"threads", c.threads, 0, 4096}};
  for (const Range& r : ranges) {
    if (r.value < r.low || r.value > r.high) {
      return invalid(fmt::format("{} is {}; it must be from {} to {}", r.field, r.value, r.low, r.high),
                     r.field);
    }
  }
  if (c.disk_kv_dir.empty() != (c.disk_kv_bytes == 0))
    return invalid(fmt::format("disk_kv_dir is `{}` and disk_kv_bytes {}; a disk tier needs both",
                               c.disk_kv_dir, c.disk_kv_bytes),
                   c.disk_kv_dir.empty() ? "disk_kv_dir" : "disk_kv_bytes");
  if (c.disk_kv_on_error != "fail" && c.disk_kv_on_error != "ignore")
    return invalid(fmt::format("disk_kv_on_error is `{}`; it must be fail or ignore", c.disk_kv_on_error),
                   "disk_kv_on_error");
  if (c.preemption_mode == "swap" && c.swap_space_bytes == 0)
    return invalid("preemption_mode is `swap` and swap_space_bytes 0; a swap needs room in host memory",
                   "swap_space_bytes");
  const bool power =
      c.block_tokens == 8 || c.block_tokens == 16 || c.block_tokens == 32 || c.block_tokens == 64;
  if (!power)
    return invalid(fmt::format("block_tokens is {}; it must be 8, 16, 32 or 64", c.block_tokens),
                   "block_tokens");
  if (!(c.gpu_memory_utilization > 0 && c.gpu_memory_utilization <= 1)) {
    return invalid(fmt::format("gpu_memory_utilization is {}; it must be above 0 and at most 1",
                               c.gpu_memory_utilization),
                   "gpu_memory_utilization");
  }
  return ok();
}

// "models/demo", "models/demo/" and "." all have a last name.
std::string directory_name(const std::string& model_dir) {
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::absolute(model_dir, ignored).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

}  // namespace

Result<std::optional<DType>> parse_dtype(const std::string& word, const char* field) {
  if (word == "auto") return std::optional<DType>();
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (word == name_of(t)) return std::optional<DType>(t);
  }
  return invalid(fmt::format("{} is `{}`; it must be auto, f32, bf16 or f16", field, word), field);
}

Result<EngineConfig> resolve_config(const EngineConfig& config, const ModelSpec& spec) {
  if (Status ranges = check_ranges(config); !ranges) return ranges.error();
  EngineConfig c = config;
  if (c.max_context_tokens == 0) c.max_context_tokens = spec.max_positions;
  if (c.max_context_tokens < 1 || c.max_context_tokens > spec.max_positions) {
    return invalid(fmt::format("max_context_tokens is {}; this model takes from 1 to {}",
                               c.max_context_tokens, spec.max_positions),
                   "max_context_tokens");
  }
  if (c.max_prefill_chunk_tokens == 0) c.max_prefill_chunk_tokens = c.max_step_tokens;
  if (c.served_model_name.empty()) c.served_model_name = directory_name(c.model_dir);
  c.sampling_limits.vocab_size = spec.vocab_size;
  return c;
}

}  // namespace quire
