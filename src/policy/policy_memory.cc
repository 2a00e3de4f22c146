#include "src/policy/policy_memory.h"

#include <algorithm>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr int64_t kAlignment = 256;  // of device memory

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t num_lists(const PolicyTraits& t, const PolicyMemoryLimits& shape) {
  return int64_t{shape.num_layers} * (t.shard == ListShard::kLayerHead ? shape.num_kv_heads : 1);
}

}  // namespace

int32_t list_room(const PolicySpec& policy, int64_t total_tokens) {
  if (!traits(policy).row_logits) return 0;
  return static_cast<int32_t>(bound(policy, total_tokens, 0, 1).steady_slots);
}

// Positions, one free slot a list and, where sums decide, scores.
int64_t policy_list_bytes(const PolicySpec& policy, int32_t room, const PolicyMemoryLimits& shape) {
  const PolicyTraits t = traits(policy);
  if (!t.row_logits) return 0;
  const int64_t lists = num_lists(t, shape), slots = lists * room;
  return aligned((slots + lists + (t.column_sums ? slots : 0)) * 4);
}

int64_t policy_sum_bytes(const PolicySpec& policy, int64_t prompt_tokens, const PolicyMemoryLimits& shape) {
  const PolicyTraits t = traits(policy);
  return t.column_sums ? aligned(num_lists(t, shape) * prompt_tokens * 4) : 0;
}

int64_t policy_request_bytes(const PolicySpec& policy, int64_t prompt_tokens, int64_t total_tokens,
                             int64_t sequences, const PolicyMemoryLimits& shape) {
  return policy_sum_bytes(policy, prompt_tokens, shape) +
         sequences * policy_list_bytes(policy, list_room(policy, total_tokens), shape);
}

PolicyMemory::PolicyMemory(int64_t bytes) {
  if (bytes > 0) free_.emplace(0, bytes);
}

PolicyMemory::Runs::const_iterator PolicyMemory::find(int64_t bytes) const {
  return std::find_if(free_.begin(), free_.end(), [&](const auto& run) { return run.second >= bytes; });
}

std::optional<int64_t> PolicyMemory::take(int64_t bytes) {
  const auto run = find(bytes);
  if (run == free_.end()) return {};
  const auto [offset, size] = *run;
  free_.erase(run);
  if (size > bytes) free_.emplace(offset + bytes, size - bytes);
  used_ += bytes;
  return offset;
}

void PolicyMemory::give_back(int64_t offset, int64_t bytes) {
  auto after = free_.lower_bound(offset);
  check(after == free_.end() || offset + bytes <= after->first, "PolicyMemory: a part is given back once");
  used_ -= bytes;
  if (after != free_.end() && offset + bytes == after->first) {
    bytes += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    check(before->first + before->second <= offset, "PolicyMemory: a part is given back once");
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace(offset, bytes);
}

}  // namespace quire
