// What a plan does to sampler states before its forward pass; the same on every back end.
#pragma once

#include "src/sample/sampler.h"
#include "src/schedule/batch_plan.h"

namespace quire {

// Leaves, then joins, then the tokens that the host chose for beams: those were sampled by nobody, so
// histories lack them.
void apply_to_sampler(const BatchPlan& plan, Sampler& sampler);

}  // namespace quire
