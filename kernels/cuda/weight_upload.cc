#include "kernels/cuda/weight_upload.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include "src/base/check.h"
#include "src/base/f32_at.h"
#include "src/base/threads.h"

namespace quire {
namespace {

constexpr int64_t kChunkBytes = 16 << 20;
constexpr int64_t kLeastBytesOfAThread = 1 << 20;
constexpr unsigned kMostThreads = 8;  // more than the bus takes

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

// One row of the stored weight, padded with zeros.
void stage_row(std::span<const HostMatrix> parts, DType dtype, const StoredWeight& weight, int64_t row,
               char* staged) {
  const SourceRow source = source_of(parts, weight.gate_group, row);
  const int64_t row_bytes = weight.row_elements * bytes_of(dtype), used_bytes = weight.cols * bytes_of(dtype);
  convert(
      staged, dtype,
      static_cast<const char*>(source.part->data) + source.row * weight.cols * bytes_of(source.part->dtype),
      source.part->dtype, weight.cols);
  std::memset(staged + used_bytes, 0, static_cast<size_t>(row_bytes - used_bytes));
}

// work(first, last) over parts of [0, rows), side by side.
template <class Work>
void by_threads(int64_t rows, int64_t bytes, const Work& work) {
  const int64_t most = std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
  const int64_t threads = std::clamp<int64_t>(bytes / kLeastBytesOfAThread, 1, std::min(most, rows));
  const int64_t each = (rows + threads - 1) / threads;
  run_side_by_side((rows + each - 1) / each,
                   [&](int64_t part) { work(part * each, std::min(rows, (part + 1) * each)); });
}

}  // namespace

// Two pinned chunks: one is filled by the host while the other is copied.
class WeightUploader::PinnedChunks {
 public:
  static Result<std::unique_ptr<PinnedChunks>> make(StreamDevice& device, int64_t chunk_bytes) {
    std::unique_ptr<PinnedChunks> chunks(new PinnedChunks(device));
    for (int i = 0; i < 2; ++i) {
      Result<DeviceBuffer> buffer = device.allocate_pinned(chunk_bytes, "staging of weights");
      if (!buffer) return buffer.error();
      chunks->buffers_[i] = std::move(*buffer);
      chunks->sent_[i] = device.make_mark();
    }
    return chunks;
  }
  int64_t bytes() const { return buffers_[0].bytes(); }  // of one
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

WeightUploader::WeightUploader(StreamDevice& device) : device_(device) {}
WeightUploader::~WeightUploader() {
  finish();
}

void WeightUploader::finish() {
  if (chunks_ == nullptr) return;
  device_.synchronize();  // copies out of them
  chunks_.reset();
}

Result<WeightUploader::PinnedChunks*> WeightUploader::chunks_of(int64_t bytes) {
  if (chunks_ != nullptr && chunks_->bytes() >= bytes) return chunks_.get();
  finish();
  Result<std::unique_ptr<PinnedChunks>> made = PinnedChunks::make(device_, bytes);
  if (!made) return made.error();
  chunks_ = std::move(*made);
  return chunks_.get();
}

void WeightUploader::send_rows(std::span<const HostMatrix> parts, DType dtype, StoredWeight& weight,
                               PinnedChunks& chunks) {
  const int64_t row_bytes = weight.row_elements * bytes_of(dtype);
  const int64_t rows_at_once = std::max<int64_t>(kChunkBytes / row_bytes, 1);
  for (int64_t first = 0; first < weight.rows; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, weight.rows - first);
    char* staged = chunks.next();
    by_threads(rows, rows * row_bytes, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        stage_row(parts, dtype, weight, first + r, staged + r * row_bytes);
    });
    chunks.send(weight.data.as<char>() + first * row_bytes, rows * row_bytes);
  }
}

Result<std::unique_ptr<MatmulWeight>> WeightUploader::upload(DType dtype, std::span<const HostMatrix> parts,
                                                             int32_t gate_group) {
  auto weight = std::make_unique<StoredWeight>();
  weight->cols = parts[0].cols;
  weight->gate_group = gate_group;
  weight->row_elements = stored_row_elements(weight->cols);
  for (const HostMatrix& part : parts) weight->rows += part.rows;
  const int64_t row_bytes = weight->row_elements * bytes_of(dtype);
  Result<DeviceBuffer> data = device_.allocate(weight->rows * row_bytes, "weights");
  if (!data) return data.error();
  weight->data = std::move(*data);
  const Result<PinnedChunks*> chunks =
      chunks_of(std::max(std::min(kChunkBytes, weight->rows * row_bytes), row_bytes));
  if (!chunks) return chunks.error();
  send_rows(parts, dtype, *weight, **chunks);
  return std::unique_ptr<MatmulWeight>(std::move(weight));
}

}  // namespace quire
