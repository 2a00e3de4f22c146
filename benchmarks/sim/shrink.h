// A script that fails made short: delta debugging over its events (Zeller and Hildebrandt, "Simplifying and
// isolating failure-inducing input", IEEE TSE 2002, ddmin), then requests with less in them.
#pragma once

#include <functional>
#include <string>

#include "benchmarks/sim/script.h"

namespace quire {

// Still fails, and in the same way.
using SimTrial = std::function<bool(const SimScript&)>;
SimScript shrink(SimScript script, const SimTrial& fails, int32_t max_trials = 2000);

// What kind of violation it is, without the numbers in it.
std::string kind_of_violation(const std::string& violation);

}  // namespace quire
