// Blocks of pinned host memory: which are free, which hold what left the device, and for how many lists:
// those that shared a block there share its copy. Ids and counts only; the bytes are the executor's, at base
// + id * block_bytes. Engine thread.
// Invariant 2 in this tier: num_free + num_held == num_blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace quire {

enum class HostBlockId : int32_t {};
constexpr int32_t value(HostBlockId id) {
  return static_cast<int32_t>(id);
}

class HostPool {
 public:
  explicit HostPool(int64_t num_blocks);

  // Appends `count` blocks to `out`; or, if there are fewer, changes nothing and returns false.
  bool allocate(int64_t count, std::vector<HostBlockId>& out);
  void retain(HostBlockId block);   // one holder more
  void release(HostBlockId block);  // one less; free without any

  int64_t num_blocks() const { return static_cast<int64_t>(holders_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_held() const { return num_held_; }
  bool is_held(HostBlockId block) const { return holders_[static_cast<size_t>(value(block))] > 0; }

  // Every block stands in `held` as many times as it has holders; the first disagreement.
  std::optional<std::string> audit(std::span<const HostBlockId> held) const;

 private:
  std::vector<HostBlockId> free_;  // the last is used first
  std::vector<int32_t> holders_;
  int64_t num_held_ = 0;
};

}  // namespace quire
