// Launchers of kernels/cuda/retention.cu; see kernels/retention.h for what they compute.
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/retention.h"

namespace quire::QUIRE_SIDE {

void retention_slots(const Target& target, const RetentionSlotsParams& p);
void retention_scores(const Target& target, const RetentionScoresParams& p);

}  // namespace quire::QUIRE_SIDE
