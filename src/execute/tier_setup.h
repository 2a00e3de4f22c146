// The tiers below the device of an engine that opens: the disk's files, and who copies between all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quire/config.h"
#include "quire/result.h"
#include "src/device/device.h"
#include "src/execute/swap_space.h"
#include "src/execute/threaded_mover.h"
#include "src/model/model_spec.h"

namespace quire {

struct TierSetup {
  const EngineConfig& config;  // resolved
  const ModelSpec& spec;
  DType kv_dtype = DType::kF32;
  const DeviceFacts& device;
  char* arena = nullptr;
  HostMemory& host;
  int64_t block_bytes = 0;
  MakeCopyStream make_stream;
};

struct OpenedTiers {
  std::unique_ptr<BlockMover> mover;  // null where the device is the only tier and there is no swap
  int64_t disk_bytes = 0;             // whole blocks
  std::vector<StoredBlock> stored;    // found on the disk
  int64_t damaged_records = 0;        // found there instead
  std::string model;                  // what the disk's blocks are bound to; "" without a disk tier
  std::string disk_state;             // EngineStats::disk_kv_state
};

// A disk tier that cannot be opened is an error, or with disk_kv_on_error = "ignore" a warning and no disk tier.
Result<OpenedTiers> open_tiers(const TierSetup& setup);

}  // namespace quire
