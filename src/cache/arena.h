// One byte range, cut in superblocks that block pools take and give back. Numbers only: the device memory
// itself belongs to the executor. Engine thread. Invariant: every superblock is free or belongs to one pool.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace quire {

enum class SuperblockId : int32_t {};
constexpr int32_t value(SuperblockId id) {
  return static_cast<int32_t>(id);
}

class Arena {
 public:
  // The last superblock is short where arena_bytes is no multiple of superblock_bytes.
  Arena(int64_t arena_bytes, int64_t superblock_bytes);

  std::optional<SuperblockId> take();
  void give_back(SuperblockId id);

  int64_t bytes_of(SuperblockId id) const;  // superblock_bytes(), less for a short last one
  // Free superblocks, the short last one apart: what a pool asks at every step, in its own blocks.
  int32_t num_whole_free() const { return num_free() - (short_is_free_ ? 1 : 0); }
  bool short_is_free() const { return short_is_free_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t superblock_bytes() const { return superblock_bytes_; }
  int32_t num_superblocks() const { return static_cast<int32_t>(is_free_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  bool is_free(SuperblockId id) const { return is_free_[value(id)]; }

 private:
  bool is_short(SuperblockId id) const { return bytes_of(id) < superblock_bytes_; }
  void mark(SuperblockId id, bool is_free);

  int64_t arena_bytes_, superblock_bytes_;
  std::vector<SuperblockId> free_;  // a stack; lowest id on top at start
  std::vector<bool> is_free_;
  bool short_is_free_ = false;  // false too where there is none
};

}  // namespace quire
