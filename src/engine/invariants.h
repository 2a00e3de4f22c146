// The numbered invariants of src/engine/README.md as checks. Each gives the first one broken, with its number
// and the values. check_cheap is O(1) and runs after every step, always; check_plan and check_all are
// O(everything), for tests, simulation and --check-invariants.
#pragma once

#include <optional>
#include <string>

#include "src/cache/kv_cache.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class EngineCore;

std::optional<std::string> check_cheap(const EngineCore& core);
std::optional<std::string> check_all(const EngineCore& core);
// Of a plan at the moment it is submitted.
std::optional<std::string> check_plan(const BatchPlan& plan, const KvCache& cache);

}  // namespace quire
