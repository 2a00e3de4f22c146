// Where weights come from: a checkpoint, or random numbers of the right shapes. Load time only, one thread
// calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/kernels.h"
#include "quire/result.h"
#include "src/model/model_spec.h"
#include "src/model/tensor_names.h"

namespace quire {

// One tensor in host memory: in the checkpoint's mapping, or in storage of its own.
struct HostTensor {
  HostMatrix matrix;
  std::shared_ptr<std::byte[]> storage;  // null when matrix.data lies in a mapping
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual HostTensor tensor(const TensorSlot& slot) = 0;  // the slot is one of all_slots(spec)
  virtual DType dtype_of(const TensorSlot& slot) const = 0;
};

// Opens the checkpoint and checks presence, shape and dtype of every tensor, and that no other is there,
// before anything is read: the Error lists up to five of what is wrong.
Result<std::unique_ptr<WeightSource>> open_checkpoint_source(const std::string& model_dir,
                                                             const ModelSpec& spec);

// Uniform numbers with variance 1 / cols (and 1 / (2 * layers) of that where the residual stream is written),
// so that activations keep their size through any depth. The dtype is the config's; the same seed gives the
// same weights on any machine and with any number of threads.
std::unique_ptr<WeightSource> make_random_source(const ModelSpec& spec, uint64_t seed, int threads);

// EngineConfig::weights: "checkpoint", "random" (seed 0) or "random:SEED".
Result<std::unique_ptr<WeightSource>> open_weight_source(const std::string& weights,
                                                         const std::string& model_dir, const ModelSpec& spec,
                                                         int threads);

}  // namespace quire
