// The pinned host memory that a device gave out, to tell copies that a stream makes by itself from those that hold up the
// host. The device's own thread.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

namespace quire {

class PinnedRanges {
 public:
  void add(const void* begin, int64_t bytes) { bytes_[static_cast<const char*>(begin)] = bytes; }
  // False: it is not the beginning of any.
  bool remove(const void* begin) { return bytes_.erase(static_cast<const char*>(begin)) != 0; }
  bool contain(const void* place) const {
    const auto* p = static_cast<const char*>(place);
    const auto behind = bytes_.upper_bound(p);
    if (behind == bytes_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(behind);
    return p < begin + bytes;
  }

 private:
  std::map<const char*, int64_t> bytes_;  // by where they begin
};

}  // namespace quire
