// A weight as the CPU reads it: panels of kPanelColumns output features, each a single run of memory in the order of k,
// so that a decode step reads one stream per thread. Layout of a panel: see MatmulPiece.
#pragma once

#include <span>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace quire::cpu {

struct PackedWeight final : MatmulWeight {
  DType dtype = DType::kF32;  // that of the parts; f32 where they differ
  DeviceBuffer panels;

  int64_t num_panels() const { return (rows + kPanelColumns - 1) / kPanelColumns; }
  int64_t panel_bytes() const {
    const int64_t padded_cols = dtype == DType::kBF16 ? (cols + 1) / 2 * 2 : cols;
    return padded_cols * kPanelColumns * bytes_of(dtype);
  }
};

// `parts` one below the other, each [rows][cols] of one width, on the host: [sum of rows][cols]. Stays in the parts' type if they
// have one, else f32. RESOURCE_EXHAUSTED where the device has no memory for it.
Result<std::unique_ptr<MatmulWeight>> pack_weight(Device& device, ThreadPool& pool,
                                                  std::span<const HostMatrix> parts);

}  // namespace quire::cpu
