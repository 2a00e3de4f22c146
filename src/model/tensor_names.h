// The tensors a model must have: Hugging Face names and shapes, in the order in which they are used.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/model_spec.h"

namespace quire {

enum class TensorKind { kMatrix, kEmbedding, kNorm, kBias };

struct TensorSlot {
  std::string name;
  std::vector<int64_t> shape;  // [rows, cols] or [rows]
  TensorKind kind = TensorKind::kMatrix;
  bool writes_residual = false;  // o_proj, down_proj: their outputs add up over the layers

  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape.size() > 1 ? shape[1] : 1; }
};

TensorSlot embedding_slot(const ModelSpec& spec);
TensorSlot final_norm_slot(const ModelSpec& spec);
TensorSlot lm_head_slot(const ModelSpec& spec);  // for untied embeddings
std::vector<TensorSlot> layer_slots(const ModelSpec& spec, int32_t layer);
std::vector<TensorSlot> all_slots(const ModelSpec& spec);

std::string layer_tensor_name(int32_t layer, std::string_view rest);  // "model.layers.3." + rest

// Tensors that some checkpoints carry and no computation reads: rotary tables, and the copy of a tied
// embedding.
bool is_redundant_tensor(const ModelSpec& spec, std::string_view name);

}  // namespace quire
