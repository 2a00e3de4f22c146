#include "src/model/model_spec.h"

namespace quire {

int64_t ModelSpec::num_parameters() const {
  const int64_t h = hidden_size, f = intermediate_size, q = int64_t{num_q_heads} * head_dim,
                kv = int64_t{num_kv_heads} * head_dim;
  int64_t layer = (q + 2 * kv) * h + q * h + 3 * h * f + 2 * h;
  if (qkv_bias) layer += q + 2 * kv;
  if (o_bias) layer += h;
  if (mlp_bias) layer += 2 * f + h;
  if (qk_norm) layer += 2 * head_dim;
  const int64_t embedding = int64_t{vocab_size} * h;
  return num_layers * layer + h + (tied_embeddings ? 1 : 2) * embedding;
}

}  // namespace quire
