// A model's weights on the device, packed as the back end likes them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "quire/result.h"
#include "src/device/device.h"
#include "src/model/model_spec.h"
#include "src/model/weight_source.h"

namespace quire {

struct LayerWeights {
  DeviceBuffer input_norm, post_norm;     // [hidden] f32
  std::unique_ptr<MatmulWeight> qkv;      // [(q + 2 kv) * head_dim, hidden]: q | k | v
  std::unique_ptr<MatmulWeight> o;        // [hidden, q * head_dim]
  std::unique_ptr<MatmulWeight> gate_up;  // [2 * intermediate, hidden]: gate | up, or as its gate_group says
  std::unique_ptr<MatmulWeight> down;     // [hidden, intermediate]
  DeviceBuffer qkv_bias, o_bias, gate_up_bias, down_bias;  // f32; empty where the model has none
  DeviceBuffer q_norm, k_norm;                             // [head_dim] f32; empty where the model has none
};

struct Weights {
  DeviceBuffer embedding;  // [vocab, hidden], embedding_dtype
  DType embedding_dtype = DType::kF32;
  std::vector<LayerWeights> layers;
  DeviceBuffer final_norm;                // [hidden] f32
  std::unique_ptr<MatmulWeight> lm_head;  // [vocab, hidden]; packed from the embedding when they are tied
};

// Reads, packs and copies everything; returns when the device has it.
Result<Weights> load_weights(WeightSource& source, const ModelSpec& spec, Kernels& kernels);

// What load_weights will take of the device: matrices as stored (f16 and f32 alike as f32 where the back end
// widens f16), the embedding once as a table and once more packed when it is also the output matrix, norms
// and biases in f32.
int64_t weight_bytes(const WeightSource& source, const ModelSpec& spec, bool widens_f16);

}  // namespace quire
