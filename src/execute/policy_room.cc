#include "src/execute/policy_room.h"

#include <algorithm>

namespace quire {
namespace {

constexpr int64_t kShareOfFree = 50;  // one part in so many

// Nothing is dropped and sums are kept for all: no policy needs more.
int64_t most_bytes(const EngineConfig& c, const PolicyMemoryLimits& shape) {
  const PolicySpec all{.kind = RetentionKind::kH2o, .recent = 0, .heavy = c.max_context_tokens};
  return policy_request_bytes(all, c.max_context_tokens, c.max_context_tokens, 1, shape);
}

int64_t default_bytes(const EngineConfig& c, const PolicyMemoryLimits& shape) {
  const Result<PolicySpec> policy = parse_policy(c.default_kv_policy);
  return policy ? policy_request_bytes(*policy, c.max_context_tokens, c.max_context_tokens, c.max_sequences,
                                       shape)
                : 0;
}

}  // namespace

bool may_go_by_scores(const EngineConfig& c) {
  const auto goes = [](const std::string& policy) {
    return policy.starts_with("tova") || policy.starts_with("h2o");
  };
  const std::vector<std::string>& allowed = c.kv_policies_allowed;
  return allowed.empty() || goes(c.default_kv_policy) || std::any_of(allowed.begin(), allowed.end(), goes);
}

PolicyMemoryLimits policy_memory_limits(const EngineConfig& c, const ModelSpec& spec, int64_t free_bytes) {
  PolicyMemoryLimits limits{.num_layers = spec.num_layers, .num_kv_heads = spec.num_kv_heads};
  if (!may_go_by_scores(c)) return limits;
  const int64_t one = most_bytes(c, limits), all = one * c.max_sequences;
  limits.bytes = c.kv_policy_bytes > 0
                     ? c.kv_policy_bytes
                     : std::clamp(std::max(free_bytes / kShareOfFree, default_bytes(c, limits)), one, all);
  return limits;
}

}  // namespace quire
