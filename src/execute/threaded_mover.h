// Copies blocks between the tiers in threads of its own: from the device to host memory, from host memory to the
// device, from the disk (and what comes with it from host memory), and to the disk; each in the order submitted,
// and beside the others: what is read has its bytes before it is found. What lies side by side on both sides of
// memory is one copy.
#pragma once

#include <functional>
#include <memory>

#include "quire/result.h"
#include "src/device/copy_stream.h"
#include "src/execute/block_mover.h"
#include "src/execute/disk_store.h"

namespace quire {

// A card's copy engine does what is queued for it in order, whatever the stream: a step that brings something through it
// waits for all that is queued before. So no copying thread queues more at once, unless one block is more. On an H100 512 KiB wait at
// most 0.8 ms beside 2 GiB that go so, for 38 ms behind the same queued whole, and the 2 GiB take 2 % longer.
inline constexpr int64_t kMostBytesQueued = 32 << 20;

// All outlive the mover: they are the executor's.
struct MoverMemory {
  char* arena = nullptr;
  char* host = nullptr;
  int64_t block_bytes = 0;
  // Pinned, for blocks between device and disk: so many for each of the two disk threads. Null where device
  // memory is the host's.
  char* staging = nullptr;
  int64_t staging_blocks = 0;
};

using MakeCopyStream = std::function<std::unique_ptr<CopyStream>()>;

// `disk` may be null.
Result<std::unique_ptr<BlockMover>> make_threaded_mover(const MakeCopyStream& make_stream,
                                                        const MoverMemory& memory,
                                                        std::unique_ptr<DiskStore> disk);

}  // namespace quire
