// How much of a card's memory an engine may take: what gpu_memory_utilization leaves of it, no more than is free, less a reserve. Pure.
#pragma once

#include <cstdint>
#include <string>

namespace quire {

struct CardMemory {
  int64_t memory_bytes = 0;    // all that the card has
  int64_t free_bytes = 0;      // now; the rest is other processes' and the driver's
  double utilization = 1;      // gpu_memory_utilization, (0, 1]
  int64_t reserved_bytes = 0;  // of the engine's share, for what no item of the memory plan is
};

int64_t usable_bytes(const CardMemory& card);  // never below 0

// The same at a utilization of 1: to where raising it can help.
int64_t most_usable_bytes(CardMemory card);

// The reckoning for people, in whole MiB that add up to usable_bytes' own, rounded down where the reserve is whole MiB.
std::string reckoning_of(const CardMemory& card);

}  // namespace quire
