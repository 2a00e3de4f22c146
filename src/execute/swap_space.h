// Host memory for blocks that leave the device, of preempted sequences and of the prefix cache's host tier, and what moving
// them is worth on a device.
#pragma once

#include "quire/config.h"
#include "quire/result.h"
#include "src/device/device.h"
#include "src/model/model_spec.h"
#include "src/schedule/preemption_cost.h"

namespace quire {

// Whole blocks of each, side by side in one pinned buffer: for swap, for the host tier, and twice as many as
// staging_blocks for what goes between a device with memory of its own and the disk.
struct HostMemory {
  DeviceBuffer buffer;
  int64_t swap_bytes = 0, host_bytes = 0, staging_blocks = 0, block_bytes = 0;
  int64_t bytes() const { return swap_bytes + host_bytes + 2 * staging_blocks * block_bytes; }
  char* staging() const {
    return staging_blocks == 0 ? nullptr : buffer.as<char>() + swap_bytes + host_bytes;
  }
};
// The sizes that a configuration asks for, without the buffer. Errors: less than one block and not 0 (both sizes), or more than the
// host has free (all three).
Result<HostMemory> size_host_memory(const EngineConfig& config, DeviceKind device, int64_t block_bytes,
                                    int64_t free_host_bytes);
Status allocate_host_memory(Device& device, HostMemory& memory);

// Rates by kind of device, sizes from the model: estimates that only order swap and recompute.
PreemptionCosts preemption_costs(const DeviceFacts& device, const ModelSpec& spec);

}  // namespace quire
