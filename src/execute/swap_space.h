// Host memory for the blocks of preempted sequences, and what moving them is worth on a device.
#pragma once

#include "quire/result.h"
#include "src/device/device.h"
#include "src/model/model_spec.h"
#include "src/schedule/preemption_cost.h"

namespace quire {

// Whole blocks out of `bytes`, pinned; empty for 0. Errors: less than one block (both sizes), or no room.
Result<DeviceBuffer> allocate_swap_space(Device& device, int64_t bytes, int64_t block_bytes);

// Rates by kind of device, sizes from the model: estimates that only order swap and recompute.
PreemptionCosts preemption_costs(const DeviceFacts& device, const ModelSpec& spec);

}  // namespace quire
