// Copies of whole blocks between device and host memory that run beside the steps, as values: asked for by
// the scheduler, carried out by a BlockMover. The device blocks of one are held until its end is reported, so
// no step has to wait for it and no order with steps matters.
#pragma once

#include <cstdint>
#include <vector>

#include "quire/result.h"
#include "src/cache/swapped_list.h"

namespace quire {

enum class TransferDirection : uint8_t { kToHost, kToDevice };

struct BlockTransfer {
  uint64_t id = 0;
  TransferDirection direction = TransferDirection::kToHost;
  std::vector<TierCopy> copies;
};

struct TransferEnd {
  uint64_t id = 0;
  Status status = ok();  // failed: what it was to write holds nothing that can be used
};

}  // namespace quire
