#include "src/execute/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/base/blocks_for.h"

namespace quire {
namespace {

constexpr double kMiB = 1 << 20;

double mib_up(double bytes) {
  return std::ceil(bytes / kMiB);
}
double mib_up(int64_t bytes) {
  return mib_up(static_cast<double>(bytes));
}

int64_t blocks_of_context(const MemoryRequest& r) {
  return blocks_for(r.max_context_tokens, r.block_tokens);
}

int64_t fixed_bytes(const MemoryRequest& r) {
  return r.weights_bytes + r.workspace_bytes + r.logits_bytes + r.host_bytes + r.steps_bytes + r.policy_bytes;
}

int64_t whole_block_bytes(const MemoryRequest& r) {
  return r.block_bytes + r.beside_block_bytes;
}

struct Item {
  const char* name;
  double mib;
};

std::vector<Item> items_of(const MemoryRequest& r, double cache_bytes) {
  return {{"weights", mib_up(r.weights_bytes)},    {"workspace", mib_up(r.workspace_bytes)},
          {"logits", mib_up(r.logits_bytes)},      {"host memory", mib_up(r.host_bytes)},
          {"KV policies", mib_up(r.policy_bytes)}, {"steps", mib_up(r.steps_bytes)},
          {"cache", mib_up(cache_bytes)}};
}

// Where more of the card would do, that comes first: it takes nothing from anybody.
std::string advice_for(const MemoryRequest& r, double cache_bytes, const char* otherwise) {
  if (static_cast<double>(fixed_bytes(r)) + cache_bytes <= static_cast<double>(r.most_bytes))
    return fmt::format("raise gpu_memory_utilization, or {}", otherwise);
  return otherwise;
}

Error no_room(const MemoryRequest& r, int64_t blocks, const char* advice) {
  if (fixed_bytes(r) > r.free_bytes)
    advice = "take a smaller model or a larger device: they do not fit even without a cache";
  const double cache_bytes = static_cast<double>(blocks) * static_cast<double>(whole_block_bytes(r));
  double needed = 0;
  std::string sum;
  for (const Item& item : items_of(r, cache_bytes)) {
    needed += item.mib;
    sum += fmt::format("{}{} {:.0f}", sum.empty() ? "" : " + ", item.name, item.mib);
  }
  const double room = std::floor(static_cast<double>(r.free_bytes) / kMiB);
  return error(
      Code::kResourceExhausted,
      fmt::format("{} has {:.0f} MiB to take ({}); {} = {:.0f} MiB are needed, {:.0f} more ({})", r.device,
                  room, r.reckoning, sum, needed, needed - room, advice_for(r, cache_bytes, advice)));
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
    return no_room(r, needed, "lower max_context_tokens: the cache must hold one sequence of so many");
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
