#include "src/cache/spec.h"

#include <fmt/format.h>

#include <numeric>
#include <tuple>

namespace quire {
namespace {

constexpr int64_t kMaxBlocks = (1ll << 30) - 1;  // of a tier: ids fit 30 bits

Status validate_group(const GroupSpec& group, int64_t arena_bytes) {
  const auto wrong = [&group](std::string_view field, int64_t value, std::string_view limit) {
    return invalid(fmt::format("kv group '{}': {} is {}; {}", group.name, field, value, limit));
  };
  constexpr int32_t kMaxCount = 1 << 20;
  if (group.num_layers < 1 || group.num_layers > kMaxCount)
    return wrong("num_layers", group.num_layers, "from 1 to 1048576");
  if (group.num_kv_heads < 1 || group.num_kv_heads > kMaxCount)
    return wrong("num_kv_heads", group.num_kv_heads, "from 1 to 1048576");
  if (group.head_dim < 1 || group.head_dim > kMaxCount)
    return wrong("head_dim", group.head_dim, "from 1 to 1048576");
  const int32_t b = group.block_tokens;
  if (b != 8 && b != 16 && b != 32 && b != 64) return wrong("block_tokens", b, "one of 8, 16, 32, 64");
  const double block_bytes = static_cast<double>(group.num_layers) * group.num_kv_heads * group.head_dim *
                             static_cast<double>(2 * bytes_of(group.dtype) * b);
  if (block_bytes > static_cast<double>(arena_bytes))
    return error(
        Code::kResourceExhausted,
        fmt::format("kv group '{}': one block takes {:.0f} bytes; the KV arena has {} (kv_cache_bytes)",
                    group.name, block_bytes, arena_bytes));
  if (arena_bytes / group.block_bytes() > kMaxBlocks)
    return wrong("blocks", arena_bytes / group.block_bytes(), "at most 1073741823; use larger blocks");
  return ok();
}

}  // namespace

CacheSpec uniform_spec(const GroupSpec& group, int32_t num_blocks) {
  return CacheSpec{.groups = {group}, .arena_bytes = group.block_bytes() * num_blocks};
}

Status validate(const CacheSpec& spec) {
  if (spec.groups.empty()) return invalid("kv cache: no layer group");
  if (spec.arena_bytes < 1)
    return invalid(fmt::format("kv cache: arena_bytes is {}; at least 1", spec.arena_bytes));
  for (const GroupSpec& group : spec.groups)
    if (Status status = validate_group(group, spec.arena_bytes); !status) return status;
  const int64_t block_bytes = spec.groups[0].block_bytes();
  for (const auto& [field, tier, bytes] : {std::tuple("host_kv_bytes", "host", spec.host_bytes),
                                           std::tuple("disk_kv_bytes", "disk", spec.disk_bytes)})
    if (bytes < 0 || (bytes > 0 && bytes < block_bytes))
      return invalid(fmt::format("{} is {}; it must be 0 (no {} tier) or at least one block's {} bytes",
                                 field, bytes, tier, block_bytes),
                     field);
    else if (bytes / block_bytes > kMaxBlocks)
      return invalid(
          fmt::format("{} is {}; at most {} blocks of {} bytes", field, bytes, kMaxBlocks, block_bytes),
          field);
  if (spec.swap_bytes < 0 || spec.swap_bytes / block_bytes > kMaxBlocks)
    return invalid(fmt::format("swap_space_bytes is {}; it must be 0 (no swap) to {} blocks of {} bytes",
                               spec.swap_bytes, kMaxBlocks, block_bytes),
                   "swap_space_bytes");
  int64_t together =
      1;  // superblocks hold whole blocks of every group, so their sizes must meet well inside the arena
  for (const GroupSpec& group : spec.groups) {
    together = together / std::gcd(together, group.block_bytes());
    if (together > spec.arena_bytes / group.block_bytes())
      return invalid(fmt::format(
          "kv cache: the groups' block sizes have no common multiple within the arena of {} bytes",
          spec.arena_bytes));
    together *= group.block_bytes();
  }
  return ok();
}

std::string describe(const CacheSpec& spec) {
  std::string text;
  for (const GroupSpec& g : spec.groups)
    text += fmt::format("{}: {} layers x {} heads x {}, {}, {} tokens = {} bytes per block ({} per token)\n",
                        g.name, g.num_layers, g.num_kv_heads, g.head_dim, name_of(g.dtype), g.block_tokens,
                        g.block_bytes(), g.token_bytes());
  return text;
}

int64_t superblock_bytes(const CacheSpec& spec) {
  int64_t bytes = 1;
  for (const GroupSpec& group : spec.groups) bytes = std::lcm(bytes, group.block_bytes());
  return (kMinSuperblockBytes + bytes - 1) / bytes * bytes;
}

}  // namespace quire
