// The tiers of the prefix cache and what goes between them, as values: copies of whole blocks, and what the
// disk keeps of a block beside its bytes, so that a later server finds it again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/ids.h"
#include "src/cache/block_table.h"
#include "src/cache/eviction_index.h"
#include "src/cache/host_pool.h"
#include "src/cache/namespaces.h"

namespace quire {

enum class CacheTier : uint8_t { kDevice, kHost, kDisk };  // each below the one before it
std::string_view name_of(CacheTier tier);

enum class DiskBlockId : int32_t {};  // a place in the disk tier's file
constexpr int32_t value(DiskBlockId id) {
  return static_cast<int32_t>(id);
}
inline constexpr HostBlockId kNotOnHost{-1};
inline constexpr DiskBlockId kNotOnDisk{-1};

// A block of the disk tier: all that is needed to find it again after a restart. Serials are never used twice
// in one directory, so that a child names its parent beyond doubt.
struct StoredBlock {
  DiskBlockId block = kNotOnDisk;
  uint64_t serial = 0;
  uint64_t parent_serial = 0;   // of the block before it; 0 = it is the first
  std::string key;              // encoded NamespaceKey: model, LoRA, salt...
  std::vector<TokenId> tokens;  // a whole block's
  Retention retention;          // its expiry counts from when the record is handed over
};

// One block's copy between two tiers: two of the three places are named.
struct TierCopy {
  BlockId device = kNoBlock;
  HostBlockId host = kNotOnHost;
  DiskBlockId disk = kNotOnDisk;
  uint64_t serial = 0;                        // of the disk's block: what is read must bear it
  std::shared_ptr<const StoredBlock> record;  // written with it; to the disk only
};

// Blocks on their way to a tier below: what it will find there, once the copies are made.
struct TierWrite {
  CacheTier from = CacheTier::kDevice, to = CacheTier::kHost;
  NamespaceId ns{};             // of the tier that it comes from, kept open
  BlockTable table;             // of the tier that it goes to
  std::vector<TokenId> tokens;  // of the table, and of what follows when that has arrived
  std::vector<BlockId> read;    // of the tier that it comes from: readers, until the copies are made
  Retention retention;
  std::vector<TierCopy> copies;  // to be made
};

// A prefix that is to go down once other writes have ended.
struct OwedWrite {
  NamespaceId ns{};  // kept open
  std::vector<TokenId> tokens;
  Retention retention;     // expiry as in the request's own write
  int64_t own_tokens = 0;  // beyond what it has in common with one of those owed before it
};

// Which writes may begin: asked before anything is evicted for one.
struct TierWritesAllowed {
  bool from_device = true, to_host = true, to_disk = true;
  bool from(CacheTier tier) const { return from_device || tier != CacheTier::kDevice; }
  bool to(CacheTier tier) const { return tier == CacheTier::kDisk ? to_disk : to_host; }
};

// A prefix on its way to the device: what holds it in the tiers below.
struct TierRead {
  struct Part {
    CacheTier tier = CacheTier::kHost;
    BlockTable table;
  };
  std::vector<Part> parts;
};

// Everything under way, for audits.
struct TierTraffic {
  std::vector<const TierWrite*> writes;
  std::vector<const TierRead*> reads;
};

}  // namespace quire
