#include "src/execute/resolve_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "src/base/engine_config.h"
#include "src/base/utf8.h"

namespace quire {
namespace {

// "models/demo", "models/demo/" and "." all have a last name; "/" has none.
Result<std::string> directory_name(const std::string& model_dir) {
  const auto why_not = [&](const std::string& reason) {
    return invalid(
        fmt::format("served_model_name is not set, and model `{}` gives none: {}", model_dir, reason),
        "served_model_name");
  };
  std::error_code problem;
  std::filesystem::path path = std::filesystem::absolute(model_dir, problem).lexically_normal();
  if (problem) return why_not(problem.message());
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename()) return why_not("the directory has no name");
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
  if (Status valid = validate(config); !valid) return valid.error();
  if (config.preemption_mode == "swap" && config.swap_space_bytes == 0)
    return invalid("preemption_mode is `swap` and swap_space_bytes 0; a swap needs room in host memory",
                   "swap_space_bytes");
  if (config.preemption_mode == "recompute" && config.swap_space_bytes > 0)
    return invalid(fmt::format("swap_space_bytes is {} and preemption_mode `recompute`, which swaps nothing",
                               config.swap_space_bytes),
                   "swap_space_bytes");
  EngineConfig c = config;
  if (c.max_context_tokens == 0) c.max_context_tokens = spec.max_positions;
  if (c.max_context_tokens < 1 || c.max_context_tokens > spec.max_positions) {
    return invalid(fmt::format("max_context_tokens is {}; this model takes from 1 to {}",
                               c.max_context_tokens, spec.max_positions),
                   "max_context_tokens");
  }
  if (c.max_prefill_chunk_tokens == 0) c.max_prefill_chunk_tokens = c.max_step_tokens;
  if (c.served_model_name.empty()) {
    Result<std::string> name = directory_name(c.model_dir);
    if (!name) return name.error();
    c.served_model_name = *std::move(name);
  }
  for (const char letter : c.served_model_name)  // it stands in the READY line
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f)
      return invalid(fmt::format("served_model_name has a control character (byte 0x{:02x})", letter),
                     "served_model_name");
  if (const auto offset = find_invalid_utf8(c.served_model_name))
    return invalid(fmt::format("served_model_name is not UTF-8 at byte {}{}", *offset,
                               config.served_model_name.empty() ? "; it is the directory's name" : ""),
                   "served_model_name");
  c.sampling_limits.vocab_size = spec.vocab_size;
  return c;
}

}  // namespace quire
