#include "kernels/cuda/weight_upload.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "src/base/check.h"
#include "src/base/f32_at.h"

namespace quire {
namespace {

constexpr int64_t kChunkBytes = 16 << 20;

void convert(char* target, DType to, const char* source, DType from, int64_t count) {
  if (to == from) {
    std::memcpy(target, source, static_cast<size_t>(count * bytes_of(to)));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float f = f32_at(from, source, i);
    if (to == DType::kF32) {
      reinterpret_cast<float*>(target)[i] = f;
    } else {
      reinterpret_cast<uint16_t*>(target)[i] = to == DType::kBF16 ? f32_to_bf16(f) : f32_to_f16(f);
    }
  }
}

// Two pinned chunks: one is filled by the host while the other is copied.
class PinnedChunks {
 public:
  static Result<PinnedChunks> make(StreamDevice& device, int64_t chunk_bytes) {
    PinnedChunks chunks(device);
    for (int i = 0; i < 2; ++i) {
      Result<DeviceBuffer> buffer = device.allocate_pinned(chunk_bytes, "staging of weights");
      if (!buffer) return buffer.error();
      chunks.buffers_[i] = std::move(*buffer);
      chunks.sent_[i] = device.make_event();
    }
    return chunks;
  }
  char* next() {
    index_ ^= 1;
    if (used_[index_]) sent_[index_]->wait();
    return buffers_[index_].as<char>();
  }
  void send(void* target, int64_t bytes) {
    device_->copy_to_device(target, buffers_[index_].data(), bytes);
    sent_[index_]->record();
    used_[index_] = true;
  }

 private:
  explicit PinnedChunks(StreamDevice& device) : device_(&device) {}

  StreamDevice* device_;
  std::array<DeviceBuffer, 2> buffers_;
  std::array<std::unique_ptr<StreamEvent>, 2> sent_;
  std::array<bool, 2> used_{};
  int index_ = 0;
};

struct SourceRow {
  const HostMatrix* part;
  int64_t row;
};

// Where the weight's row comes from.
SourceRow source_of(std::span<const HostMatrix> parts, int32_t gate_group, int64_t row) {
  if (gate_group > 0) {
    const int64_t group = row / gate_group;
    return {&parts[static_cast<size_t>(group % 2)], group / 2 * gate_group + row % gate_group};
  }
  for (const HostMatrix& part : parts) {
    if (row < part.rows) return {&part, row};
    row -= part.rows;
  }
  check_failed("weights: a row that no part has", __FILE__, __LINE__);
}

void send_rows(std::span<const HostMatrix> parts, DType dtype, StoredWeight& weight, PinnedChunks& chunks) {
  const int64_t row_bytes = weight.row_elements * bytes_of(dtype), used_bytes = weight.cols * bytes_of(dtype);
  const int64_t rows_at_once = std::max<int64_t>(kChunkBytes / row_bytes, 1);
  for (int64_t first = 0; first < weight.rows; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, weight.rows - first);
    char* staged = chunks.next();
    for (int64_t r = 0; r < rows; ++r) {
      const SourceRow source = source_of(parts, weight.gate_group, first + r);
      convert(staged + r * row_bytes, dtype,
              static_cast<const char*>(source.part->data) +
                  source.row * weight.cols * bytes_of(source.part->dtype),
              source.part->dtype, weight.cols);
      std::memset(staged + r * row_bytes + used_bytes, 0, static_cast<size_t>(row_bytes - used_bytes));
    }
    chunks.send(weight.data.as<char>() + first * row_bytes, rows * row_bytes);
  }
}

}  // namespace

Result<std::unique_ptr<MatmulWeight>> upload_weight(StreamDevice& device, DType dtype,
                                                    std::span<const HostMatrix> parts, int32_t gate_group) {
  auto weight = std::make_unique<StoredWeight>();
  weight->cols = parts[0].cols;
  weight->gate_group = gate_group;
  weight->row_elements = stored_row_elements(weight->cols);
  for (const HostMatrix& part : parts) weight->rows += part.rows;
  const int64_t row_bytes = weight->row_elements * bytes_of(dtype);
  Result<DeviceBuffer> data = device.allocate(weight->rows * row_bytes, "weights");
  if (!data) return data.error();
  weight->data = std::move(*data);
  Result<PinnedChunks> chunks =
      PinnedChunks::make(device, std::max(std::min(kChunkBytes, weight->rows * row_bytes), row_bytes));
  if (!chunks) return chunks.error();
  send_rows(parts, dtype, *weight, *chunks);
  device.synchronize();  // the chunks are let go
  return std::unique_ptr<MatmulWeight>(std::move(weight));
}

}  // namespace quire
