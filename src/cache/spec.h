// What the cache holds: layer groups, the bytes of their blocks, and the one arena they share. Plain values,
// any thread. The kernels' view of the same bytes is kernels/kv_layout.h; this side needs only the numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/result.h"
#include "src/base/dtype.h"

namespace quire {

// Layers whose K and V lie together in one block and live and die together.
struct GroupSpec {
  std::string name = "full";  // for people: "full", "window"
  int32_t num_layers = 0;     // layers that one block holds
  int32_t num_kv_heads = 0;   // heads that one block holds: all, or 1 where every head has a list of its own
  int32_t head_dim = 0;
  DType dtype = DType::kBF16;
  int32_t block_tokens = 16;  // 8 | 16 | 32 | 64

  // K and V of all its layers and heads.
  int64_t token_bytes() const { return 2ll * num_layers * num_kv_heads * head_dim * bytes_of(dtype); }
  int64_t block_bytes() const { return token_bytes() * block_tokens; }
};

struct CacheSpec {
  std::vector<GroupSpec> groups;  // group 0 is KvCache's; a group of another shape has a BlockPool of its own
  int64_t arena_bytes = 0;        // one range for all groups, fixed at start
  int64_t host_bytes = 0;         // host memory for prefixes that the device evicts; 0 = none
  int64_t disk_bytes = 0;         // of files for what the tier above keeps for a while only; 0 = none
  int64_t swap_bytes = 0;         // host memory for lists of preempted sequences; 0 = none
};

// One group that holds every layer and head: what a model has whose layers all attend alike. Room for exactly
// num_blocks.
CacheSpec uniform_spec(const GroupSpec& group, int32_t num_blocks);

// Errors name the group, the field, the value and the limit.
Status validate(const CacheSpec& spec);

// "full: 30 layers x 3 heads x 64, bf16, 16 tokens = 368640 bytes per block (23040 per token)", one line per
// group.
std::string describe(const CacheSpec& spec);

// What a group takes from the arena at a time: at least a device page.
inline constexpr int64_t kMinSuperblockBytes = 2ll << 20;

// The smallest multiple of every group's block bytes that is at least kMinSuperblockBytes.
int64_t superblock_bytes(const CacheSpec& spec);

}  // namespace quire
