#include "src/cache/arena.h"

#include "src/base/check.h"

namespace quire {

Arena::Arena(int64_t arena_bytes, int64_t superblock_bytes)
    : arena_bytes_(arena_bytes), superblock_bytes_(superblock_bytes) {
  check(arena_bytes > 0 && superblock_bytes > 0, "arena and superblock bytes are positive");
  const auto count = static_cast<int32_t>((arena_bytes + superblock_bytes - 1) / superblock_bytes);
  is_free_.assign(count, true);
  short_is_free_ = is_short(SuperblockId{count - 1});
  free_.reserve(count);
  for (int32_t i = count - 1; i >= 0; --i) free_.push_back(SuperblockId{i});
}

std::optional<SuperblockId> Arena::take() {
  if (free_.empty()) return std::nullopt;
  const SuperblockId id = free_.back();
  free_.pop_back();
  mark(id, false);
  return id;
}

void Arena::mark(SuperblockId id, bool is_free) {
  is_free_[value(id)] = is_free;
  if (is_short(id)) short_is_free_ = is_free;
}

void Arena::give_back(SuperblockId id) {
  check(!is_free_[value(id)], "superblock is given back once");
  mark(id, true);
  free_.push_back(id);
}

int64_t Arena::bytes_of(SuperblockId id) const {
  const int64_t start = value(id) * superblock_bytes_;
  return start + superblock_bytes_ <= arena_bytes_ ? superblock_bytes_ : arena_bytes_ - start;
}

}  // namespace quire
