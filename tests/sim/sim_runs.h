// What the simulator's tests share.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>

#include "benchmarks/sim/sim.h"

namespace quire {

inline uint64_t first_seed() {
  const char* text = std::getenv("QUIRE_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

inline SimReport run(SimOptions options) {
  Result<SimReport> report = run_sim(options);
  EXPECT_TRUE(report.has_value()) << report.error().message;
  return *report;
}

}  // namespace quire
