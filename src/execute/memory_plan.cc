#include "src/execute/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace quire {
namespace {

double gib(double bytes) {
  return bytes / (1 << 30);
}
double gib(int64_t bytes) {
  return gib(static_cast<double>(bytes));
}

int64_t blocks_of_context(const MemoryRequest& r) {
  return (int64_t{r.max_context_tokens} + r.block_tokens - 1) / r.block_tokens;
}

int64_t fixed_bytes(const MemoryRequest& r) {
  return r.weights_bytes + r.workspace_bytes + r.logits_bytes + r.host_bytes + r.steps_bytes + r.policy_bytes;
}

int64_t whole_block_bytes(const MemoryRequest& r) {
  return r.block_bytes + r.beside_block_bytes;
}

Error no_room(const MemoryRequest& r, int64_t blocks, const char* advice) {
  if (fixed_bytes(r) > r.free_bytes)
    advice = "they do not fit even without a cache: take a smaller model or a larger device";
  const double cache_bytes = static_cast<double>(blocks) * static_cast<double>(whole_block_bytes(r));
  return error(
      Code::kResourceExhausted,
      fmt::format(
          "{} has {:.2f} GiB free; weights {:.2f} + workspace {:.2f} + logits {:.2f} + host memory {:.2f} + "
          "KV policies {:.2f} + steps {:.2f} + cache {:.2f} = {:.2f} GiB are needed ({})",
          r.device, gib(r.free_bytes), gib(r.weights_bytes), gib(r.workspace_bytes), gib(r.logits_bytes),
          gib(r.host_bytes), gib(r.policy_bytes), gib(r.steps_bytes), gib(cache_bytes),
          gib(static_cast<double>(fixed_bytes(r)) + cache_bytes), advice));
}

Result<int64_t> choose_blocks(const MemoryRequest& r) {
  if (r.kv_cache_bytes > 0) {
    const int64_t blocks = r.kv_cache_bytes / r.block_bytes;
    if (blocks == 0) {
      return invalid(fmt::format("kv_cache_bytes is {}; one block of {} tokens takes {}", r.kv_cache_bytes,
                                 r.block_tokens, r.block_bytes),
                     "kv_cache_bytes");
    }
    if (blocks > (r.free_bytes - fixed_bytes(r)) / whole_block_bytes(r))
      return no_room(r, blocks, "lower kv_cache_bytes");
    return blocks;
  }
  const int64_t left = (r.free_bytes - fixed_bytes(r)) / whole_block_bytes(r);
  const int64_t needed = blocks_of_context(r);
  if (fixed_bytes(r) > r.free_bytes || left < needed) {
    return no_room(r, needed, "the cache must hold one sequence of max_context_tokens: lower it");
  }
  return std::clamp(r.default_cache_bytes / r.block_bytes, needed, left);
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryRequest& request) {
  const Result<int64_t> wanted = choose_blocks(request);
  if (!wanted) return wanted.error();
  const int64_t blocks = std::min<int64_t>(*wanted, INT32_MAX);
  return MemoryPlan{
      .num_blocks = static_cast<int32_t>(blocks),
      .cache_bytes = blocks * request.block_bytes,
      .weights_bytes = request.weights_bytes,
      .workspace_bytes = request.workspace_bytes,
      .logits_bytes = request.logits_bytes,
      .steps_bytes = request.steps_bytes,
      .policy_bytes = request.policy_bytes,
      .left_bytes = request.free_bytes - fixed_bytes(request) - blocks * whole_block_bytes(request)};
}

}  // namespace quire
