// How much memory the lists of KV policies get (policy_memory.h) when the engine opens.
#pragma once

#include "quire/config.h"
#include "src/model/model_spec.h"
#include "src/policy/policy_memory.h"

namespace quire {

// May a request ask for a policy that goes by scores? Their names stand for themselves; where none is named, all are allowed.
bool may_go_by_scores(const EngineConfig& config);

// config.kv_policy_bytes, or where that is 0 a share of `free_bytes`: at least what one request of the whole context may need and what
// max_sequences need under the default policy, at most what max_sequences may need.
PolicyMemoryLimits policy_memory_limits(const EngineConfig& config, const ModelSpec& spec,
                                        int64_t free_bytes);

}  // namespace quire
