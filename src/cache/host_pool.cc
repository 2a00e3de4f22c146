#include "src/cache/host_pool.h"

#include <fmt/format.h>

#include "src/base/check.h"

namespace quire {

// From the lowest on, so that what is taken together often lies together and is copied as one run.
HostPool::HostPool(int64_t num_blocks) {
  check(num_blocks >= 0 && num_blocks < (1ll << 30), "host block ids fit 30 bits");
  holders_.resize(static_cast<size_t>(num_blocks));
  for (auto id = static_cast<int32_t>(num_blocks) - 1; id >= 0; --id) free_.push_back(HostBlockId{id});
}

bool HostPool::allocate(int64_t count, std::vector<HostBlockId>& out) {
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    const HostBlockId block = free_.back();
    free_.pop_back();
    holders_[static_cast<size_t>(value(block))] = 1;
    out.push_back(block);
  }
  num_held_ += count;
  return true;
}

void HostPool::retain(HostBlockId block) {
  check(is_held(block), "a host block that gets another holder has one");
  ++holders_[static_cast<size_t>(value(block))];
}

void HostPool::release(HostBlockId block) {
  check(is_held(block), "a host block that is given back was held");
  if (--holders_[static_cast<size_t>(value(block))] > 0) return;
  --num_held_;
  free_.push_back(block);
}

std::optional<std::string> HostPool::audit(std::span<const HostBlockId> held) const {
  std::vector<int32_t> times(holders_.size()), times_free(holders_.size());
  for (const HostBlockId block : held) ++times[static_cast<size_t>(value(block))];
  for (const HostBlockId block : free_) ++times_free[static_cast<size_t>(value(block))];
  int64_t num_held = 0;
  for (size_t id = 0; id < holders_.size(); ++id) {
    if (times[id] != holders_[id])
      return fmt::format("host block {} is held {} times and has {} holders", id, times[id], holders_[id]);
    if (times_free[id] != (holders_[id] > 0 ? 0 : 1))
      return fmt::format("host block {} has {} holders and stands {} times among the free", id, holders_[id],
                         times_free[id]);
    num_held += holders_[id] > 0 ? 1 : 0;
  }
  if (num_held != num_held_) return fmt::format("held host blocks: counted {}, kept {}", num_held, num_held_);
  return std::nullopt;
}

}  // namespace quire
