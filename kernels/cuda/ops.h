// Launchers of the step's kernels, one per op of kernels/kernels.h; the class over them is step_kernels.cu.
// Each returns on empty work, launches on target.stream and neither allocates nor synchronises.
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/kernels.h"

namespace quire::QUIRE_SIDE {

void embed(const Target& target, const EmbedParams& p);
void add_rms_norm(const Target& target, const AddRmsNormParams& p);
void rope_kv_write(const Target& target, const RopeKvWriteParams& p);
void silu_mul(const Target& target, const SiluMulParams& p);
void copy_bytes(const Target& target, const CopyBytesParams& p);
void bring_step(const Target& target, const BringStepParams& p);
void copy_blocks(const Target& target, const BlockCopyParams& p);
void move_slots(const Target& target, const MoveSlotsParams& p);

}  // namespace quire::QUIRE_SIDE
