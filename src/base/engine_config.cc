#include "src/base/engine_config.h"

#include <fmt/format.h>

#include "src/base/longest_time.h"
#include "src/base/utf8.h"

namespace quire {
namespace {

template <class Number>
struct Range {
  const char* field;
  Number value, low, high;
};

template <class Number>
Status check_range(const Range<Number>& r) {
  if (r.value >= r.low && r.value <= r.high) return ok();
  return invalid(fmt::format("{} is {}; it must be from {} to {}", r.field, r.value, r.low, r.high), r.field);
}

Status check_numbers(const EngineConfig& c) {
  const Range<int64_t> ranges[] = {
      {"max_step_tokens", c.max_step_tokens, 1, 1 << 20},
      {"max_sequences", c.max_sequences, 1, 1 << 16},
      {"max_prefill_chunk_tokens", c.max_prefill_chunk_tokens, 0, c.max_step_tokens},
      {"gemm_tuning_ms", c.gemm_tuning_ms, 0, 600'000},
      {"max_graph_tokens", c.max_graph_tokens, 0, 1 << 20},
      {"max_context_tokens", c.max_context_tokens, 0, INT32_MAX},
      {"max_queued_requests", c.max_queued_requests, 1, INT32_MAX},
      {"max_priority_wait_ms", c.max_priority_wait_ms, 1, kLongestMs},
      {"drain_timeout_ms", c.drain_timeout_ms, 0, kLongestMs},
      {"kv_cache_bytes", c.kv_cache_bytes, 0, INT64_MAX},
      {"kv_policy_bytes", c.kv_policy_bytes, 0, INT64_MAX},
      {"host_kv_bytes", c.host_kv_bytes, 0, INT64_MAX},
      {"disk_kv_bytes", c.disk_kv_bytes, 0, INT64_MAX},
      {"swap_space_bytes", c.swap_space_bytes, 0, INT64_MAX},
      {"cascade_min_saved_bytes", c.cascade_min_saved_bytes, -1, INT64_MAX},
      {"max_kv_retention_class", c.max_kv_retention_class, 0, INT32_MAX},
      {"threads", c.threads, 0, 4096}};
  for (const Range<int64_t>& r : ranges)
    if (Status s = check_range(r); !s) return s;
  // Times the most tokens that a cache has it still fits into 64 bits.
  if (!(c.max_queued_kv_factor > 0 && c.max_queued_kv_factor <= 1e6))
    return invalid(fmt::format("max_queued_kv_factor is {}; it must be above 0 and at most 1000000",
                               c.max_queued_kv_factor),
                   "max_queued_kv_factor");
  // A request that names no cost asks for 1.
  if (!(c.max_kv_retention_cost >= 1 && c.max_kv_retention_cost <= 1e6))
    return invalid(
        fmt::format("max_kv_retention_cost is {}; it must be from 1 to 1000000", c.max_kv_retention_cost),
        "max_kv_retention_cost");
  if (!(c.gpu_memory_utilization > 0 && c.gpu_memory_utilization <= 1))
    return invalid(fmt::format("gpu_memory_utilization is {}; it must be above 0 and at most 1",
                               c.gpu_memory_utilization),
                   "gpu_memory_utilization");
  if (c.max_step_tokens < c.max_sequences)
    return invalid(
        fmt::format(
            "max_step_tokens is {} and max_sequences {}; a step must have a token for every running sequence",
            c.max_step_tokens, c.max_sequences),
        "max_step_tokens");
  return ok();
}

Status check_words(const EngineConfig& c) {
  if (c.disk_kv_on_error != "fail" && c.disk_kv_on_error != "ignore")
    return invalid(fmt::format("disk_kv_on_error is `{}`; it must be fail or ignore", c.disk_kv_on_error),
                   "disk_kv_on_error");
  if (c.preemption_mode != "auto" && c.preemption_mode != "swap" && c.preemption_mode != "recompute")
    return invalid(
        fmt::format("preemption_mode is `{}`; it must be auto, swap or recompute", c.preemption_mode),
        "preemption_mode");
  return ok();
}

// The tiers hold prefixes and nothing else: without the prefix cache they would only be written.
Status check_prefix_tiers(const EngineConfig& c) {
  if (c.prefix_cache) return ok();
  const auto useless = [](const char* field, int64_t bytes) {
    return invalid(
        fmt::format("{} is {} and prefix_cache false; tiers keep cached prefixes: turn prefix_cache "
                    "on or leave {} at 0",
                    field, bytes, field),
        field);
  };
  if (c.host_kv_bytes > 0) return useless("host_kv_bytes", c.host_kv_bytes);
  if (c.disk_kv_bytes > 0) return useless("disk_kv_bytes", c.disk_kv_bytes);
  return ok();
}

Status check_tiers(const EngineConfig& c) {
  const bool power =
      c.block_tokens == 8 || c.block_tokens == 16 || c.block_tokens == 32 || c.block_tokens == 64;
  if (!power)
    return invalid(fmt::format("block_tokens is {}; it must be 8, 16, 32 or 64", c.block_tokens),
                   "block_tokens");
  if (const auto offset = find_invalid_utf8(c.disk_kv_dir))  // it stands in GetLoad and in errors
    return invalid(fmt::format("disk_kv_dir is not UTF-8 at byte {}", *offset), "disk_kv_dir");
  if (c.disk_kv_dir.empty() != (c.disk_kv_bytes == 0))
    return invalid(fmt::format("disk_kv_dir is `{}` and disk_kv_bytes {}; a disk tier needs both",
                               c.disk_kv_dir, c.disk_kv_bytes),
                   c.disk_kv_dir.empty() ? "disk_kv_dir" : "disk_kv_bytes");
  return check_prefix_tiers(c);
}

}  // namespace

Status validate(const EngineConfig& config) {
  if (Status s = check_numbers(config); !s) return s;
  if (Status s = check_words(config); !s) return s;
  if (Status s = validate(config.sampling_limits); !s) return s;
  return check_tiers(config);
}

}  // namespace quire
