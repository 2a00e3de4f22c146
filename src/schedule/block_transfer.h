// Copies of whole blocks between device, host memory and disk that run beside the steps, as values: asked for
// by the scheduler, carried out by a BlockMover. All blocks of one are held until its end is reported, so no
// step has to wait for it and no order with steps matters.
#pragma once

#include <cstdint>
#include <optional>
#include <stop_token>
#include <vector>

#include "quire/result.h"
#include "src/cache/tier.h"

namespace quire {

// Where the bytes go; where they come from is the other place that a copy names. What goes to the device may
// come from both of the others in one transfer.
enum class TransferDirection : uint8_t { kToHost, kToDevice, kToDisk };

struct BlockTransfer {
  uint64_t id = 0;
  TransferDirection direction = TransferDirection::kToHost;
  std::vector<TierCopy> copies;
  std::stop_token unwanted;  // nobody waits for it any more: it ends between two blocks, or before it begins
};

struct TransferEnd {
  uint64_t id = 0;
  Status status = ok();              // failed: what it was to write holds nothing that can be used
  std::vector<DiskBlockId> corrupt;  // of what was to be read: not what was written there
  // It was unwanted, and ended when so many had come from the disk; the status says so too. Not of one that had failed before.
  std::optional<int64_t> stopped_after;
};

inline TransferEnd stopped_transfer(uint64_t id, int64_t after_disk_blocks) {
  return {.id = id,
          .status = error(Code::kCancelled, "nobody waits for the copy any more"),
          .corrupt = {},
          .stopped_after = after_disk_blocks};
}

}  // namespace quire
