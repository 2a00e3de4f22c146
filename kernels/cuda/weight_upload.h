// Weights to the device: rows of the parts one under another, or of two parts in alternate groups of
// `gate_group`, in the activation type, each row padded with zeros. Load time only; one thread.
#pragma once

#include <memory>
#include <span>

#include "kernels/cuda/matmul/product.h"
#include "src/device/stream_device.h"

namespace quire {

class WeightUploader {
 public:
  explicit WeightUploader(StreamDevice& device);
  ~WeightUploader();

  Result<std::unique_ptr<MatmulWeight>> upload(DType dtype, std::span<const HostMatrix> parts,
                                               int32_t gate_group);
  // Lets go the pinned memory that copies pass through, which is kept from weight to weight: to pin it takes as long as to fill it.
  void finish();

 private:
  class PinnedChunks;
  Result<PinnedChunks*> chunks_of(int64_t bytes);
  void send_rows(std::span<const HostMatrix> parts, DType dtype, StoredWeight& weight, PinnedChunks& chunks);

  StreamDevice& device_;
  std::unique_ptr<PinnedChunks> chunks_;
};

}  // namespace quire
