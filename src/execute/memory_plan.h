// How a device's memory is divided: weights, workspace, logits, host memory, steps, cache. A pure function of sizes; the
// start log names every part.
#pragma once

#include <cstdint>
#include <string>

#include "quire/result.h"

namespace quire {

struct MemoryRequest {
  std::string device;      // for messages
  std::string reckoning;   // for messages: where free_bytes comes from
  int64_t free_bytes = 0;  // that may be taken, before anything is allocated
  int64_t most_bytes =
      0;  // to which a higher gpu_memory_utilization could raise free_bytes; 0 where there is none
  int64_t weights_bytes = 0, workspace_bytes = 0, logits_bytes = 0;
  int64_t host_bytes = 0;   // for swap and the prefix cache's host tier, where the device is the host; else 0
  int64_t steps_bytes = 0;  // arrays of steps, block tables, captured graphs; 0 where the device is the host
  int64_t policy_bytes = 0;  // for lists of KV policies that go by scores
  int64_t block_bytes = 0;
  int64_t beside_block_bytes = 0;  // that each block asks for outside the cache
  int32_t block_tokens = 0;
  int32_t max_context_tokens = 0;
  int64_t kv_cache_bytes = 0;  // 0 = default_cache_bytes
  // when not asked for; raised to one whole context, lowered to what is free
  int64_t default_cache_bytes = 0;
};

struct MemoryPlan {
  int32_t num_blocks = 0;
  int64_t cache_bytes = 0;  // num_blocks * block_bytes
  int64_t weights_bytes = 0, workspace_bytes = 0, logits_bytes = 0, steps_bytes = 0,
          policy_bytes = 0;  // as requested
  int64_t left_bytes = 0;    // of what was free at the start
};

// kResourceExhausted when it does not fit, with the sum in whole MiB, each item rounded up and what may be taken rounded down, so that
// they add up and what is needed is always the larger; kInvalidArgument when kv_cache_bytes holds no block.
Result<MemoryPlan> plan_memory(const MemoryRequest& request);

}  // namespace quire
