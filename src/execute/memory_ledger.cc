#include "src/execute/memory_ledger.h"

#include <utility>

#include "src/base/log.h"

namespace quire {

void MemoryLedger::note(std::string_view item, int64_t planned_bytes) {
  const int64_t before = std::exchange(free_bytes_, device_.free_bytes());
  rows_.push_back({item, planned_bytes, before - free_bytes_});
}

void MemoryLedger::keep(std::string_view item, int64_t planned_bytes) {
  rows_.push_back({item, planned_bytes, 0});
}

void MemoryLedger::log() const {
  int64_t planned = 0, taken = 0;
  for (const MemoryRow& row : rows_) {
    planned += row.planned_bytes;
    taken += row.taken_bytes;
    log_line(LogLevel::kInfo, "memory_item",
             {{"item", row.item}, {"planned_bytes", row.planned_bytes}, {"taken_bytes", row.taken_bytes}});
  }
  const DeviceFacts& facts = device_.facts();
  log_line(LogLevel::kInfo, "device_memory",
           {{"device", facts.name},
            {"driver", facts.driver},
            {"toolkit", facts.toolkit},
            {"compute_capability", int64_t{facts.compute_capability}},
            {"kernels_of", int64_t{facts.kernel_capability}},
            {"memory_bytes", facts.memory_bytes},
            {"planned_bytes", planned},
            {"taken_bytes", taken},
            {"free_bytes", device_.free_bytes()}});
}

}  // namespace quire
