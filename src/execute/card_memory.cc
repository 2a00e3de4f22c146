#include "src/execute/card_memory.h"

#include <fmt/format.h>

#include <algorithm>

namespace quire {
namespace {

int64_t mib(int64_t bytes) {
  return bytes >> 20;
}

int64_t share_bytes(const CardMemory& card) {
  return static_cast<int64_t>(static_cast<double>(card.memory_bytes) * card.utilization);
}

}  // namespace

int64_t usable_bytes(const CardMemory& card) {
  return std::max<int64_t>(std::min(card.free_bytes, share_bytes(card)) - card.reserved_bytes, 0);
}

int64_t most_usable_bytes(CardMemory card) {
  card.utilization = 1;
  return usable_bytes(card);
}

std::string reckoning_of(const CardMemory& card) {
  const std::string reserve =
      card.reserved_bytes == 0 ? "" : fmt::format(", less a reserve of {}", mib(card.reserved_bytes));
  return fmt::format("the lesser of {} free and {}, which is gpu_memory_utilization {} of {}{}",
                     mib(card.free_bytes), mib(share_bytes(card)), card.utilization, mib(card.memory_bytes),
                     reserve);
}

}  // namespace quire
