// The table of a device's memory at start: what was planned for each item beside what the device then lacked.
// One thread, the one that opens the engine.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "src/device/device.h"

namespace quire {

struct MemoryRow {
  std::string_view item;
  int64_t planned_bytes = 0, taken_bytes = 0;
};

class MemoryLedger {
 public:
  explicit MemoryLedger(const Device& device) : device_(device), free_bytes_(device.free_bytes()) {}
  // What has gone since the note before, or since the beginning, is this item's.
  void note(std::string_view item, int64_t planned_bytes);
  // What is kept for later: nothing has gone for it yet.
  void keep(std::string_view item, int64_t planned_bytes);
  const std::vector<MemoryRow>& rows() const { return rows_; }
  // A line for each item, then one with the sums and what the device is.
  void log() const;

 private:
  const Device& device_;
  int64_t free_bytes_;
  std::vector<MemoryRow> rows_;
};

}  // namespace quire
