// How a device's memory is divided: weights, workspace, logits, cache. A pure function of sizes; printed once
// at start.
#pragma once

#include <cstdint>
#include <string>

#include "quire/result.h"

namespace quire {

struct MemoryRequest {
  std::string device;      // for the table and for messages
  int64_t free_bytes = 0;  // before anything is allocated
  int64_t weights_bytes = 0, workspace_bytes = 0, logits_bytes = 0;
  int64_t block_bytes = 0;
  int32_t block_tokens = 0;
  int32_t max_context_tokens = 0;
  int64_t kv_cache_bytes = 0;  // 0 = default_cache_bytes
  int64_t default_cache_bytes =
      0;  // when not asked for; raised to one whole context, lowered to what is free
};

struct MemoryPlan {
  int32_t num_blocks = 0;
  int64_t cache_bytes = 0;  // num_blocks * block_bytes
  std::string table;        // one line per item, aligned
};

// kResourceExhausted with the sum when it does not fit; kInvalidArgument when kv_cache_bytes holds no block.
Result<MemoryPlan> plan_memory(const MemoryRequest& request);

}  // namespace quire
