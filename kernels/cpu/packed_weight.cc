#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/op_checks.h"
#include "src/base/f32_at.h"

namespace quire::cpu {
namespace {

struct SourceRow {
  const char* data = nullptr;  // null beyond the last feature
  DType dtype = DType::kF32;
};

float value_at(const SourceRow& row, int64_t k) {
  return f32_at(row.dtype, row.data, k);
}

SourceRow find_row(std::span<const HostMatrix> parts, int64_t row) {
  for (const HostMatrix& part : parts) {
    if (row < part.rows) {
      return {static_cast<const char*>(part.data) + row * part.cols * bytes_of(part.dtype), part.dtype};
    }
    row -= part.rows;
  }
  return {};
}

// [k][kPanelColumns], or [k / 2][kPanelColumns][2] where `step` is 2. A stretch of k at a time, so that the rows read and the
// run written both stay in the first cache.
template <class T, class Read>
void fill_panel(std::span<const SourceRow> rows, int64_t cols, int64_t step, T* panel, Read read) {
  constexpr int64_t kStretch = 64;
  for (int64_t k0 = 0; k0 < cols; k0 += kStretch) {
    const int64_t k1 = std::min(cols, k0 + kStretch);
    for (int64_t n = 0; n < static_cast<int64_t>(rows.size()); ++n) {
      if (rows[n].data == nullptr) continue;
      for (int64_t k = k0; k < k1; ++k)
        panel[k / step * step * kPanelColumns + n * step + k % step] = read(rows[n], k);
    }
  }
}

void pack_panel(const PackedWeight& weight, std::span<const HostMatrix> parts, int64_t index) {
  std::array<SourceRow, kPanelColumns> rows;
  for (int64_t n = 0; n < kPanelColumns; ++n)
    rows[static_cast<size_t>(n)] = find_row(parts, index * kPanelColumns + n);
  char* panel = weight.panels.as<char>() + index * weight.panel_bytes();
  std::memset(panel, 0, static_cast<size_t>(weight.panel_bytes()));
  if (weight.dtype == DType::kF32) {
    fill_panel(rows, weight.cols, 1, reinterpret_cast<float*>(panel), value_at);
    return;
  }
  const auto bits = [](const SourceRow& row, int64_t k) {
    return reinterpret_cast<const uint16_t*>(row.data)[k];
  };
  fill_panel(rows, weight.cols, weight.dtype == DType::kBF16 ? 2 : 1, reinterpret_cast<uint16_t*>(panel),
             bits);
}

}  // namespace

Result<std::unique_ptr<MatmulWeight>> pack_weight(Device& device, ThreadPool& pool,
                                                  std::span<const HostMatrix> parts) {
  check_parts(parts);
  auto weight = std::make_unique<PackedWeight>();
  weight->cols = parts[0].cols;
  weight->dtype = parts[0].dtype;
  for (const HostMatrix& part : parts) {
    weight->rows += part.rows;
    if (part.dtype != weight->dtype) weight->dtype = DType::kF32;
  }
  Result<DeviceBuffer> panels =
      device.allocate(weight->num_panels() * weight->panel_bytes(), "packed weight");
  if (!panels) return panels.error();
  weight->panels = std::move(*panels);
  pool.run(weight->num_panels(), [&](int64_t index, int) { pack_panel(*weight, parts, index); });
  return std::unique_ptr<MatmulWeight>(std::move(weight));
}

}  // namespace quire::cpu
