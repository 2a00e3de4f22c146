// What was understood of a config.json: every number the forward pass and the cache need, nothing else. A
// value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quire/sampling_params.h"
#include "src/base/dtype.h"

namespace quire {

enum class RopeScaling { kNone, kLinear, kDynamic, kYarn, kLlama3 };

struct RopeSpec {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double original_max_position = 0;                                // yarn, llama3, dynamic
  double low_freq_factor = 1.0, high_freq_factor = 4.0;            // llama3
  double beta_fast = 32.0, beta_slow = 1.0;                        // yarn
  std::optional<double> attention_factor, mscale, mscale_all_dim;  // yarn
  bool truncate = true;  // yarn: round the correction range to whole dimensions
};

struct ModelSpec {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  int32_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int32_t num_layers = 0, num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
  int32_t max_positions = 0;
  float norm_eps = 1e-5f;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;  // RMSNorm on each q and k head (Qwen3)
  bool tied_embeddings = false;
  RopeSpec rope;
  std::vector<int32_t> window;     // per layer; 0 = full attention
  std::vector<int32_t> kv_source;  // per layer: the layer whose K and V it reads (itself unless shared)
  DType checkpoint_dtype = DType::kBF16;  // what torch_dtype / dtype names; tensors tell their own
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;
  SamplingParams default_sampling;  // where a request says nothing: generation_config.json's, else neutral

  int64_t kv_bytes_per_token(DType kv) const {
    return 2ll * num_layers * num_kv_heads * head_dim * bytes_of(kv);
  }
  int64_t num_parameters() const;
};

}  // namespace quire
