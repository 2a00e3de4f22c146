#include "src/model/tensor_names.h"

#include <fmt/format.h>

namespace quire {
namespace {

void add_attention(const ModelSpec& s, int32_t layer, std::vector<TensorSlot>& out) {
  const int64_t h = s.hidden_size, q = int64_t{s.num_q_heads} * s.head_dim,
                kv = int64_t{s.num_kv_heads} * s.head_dim;
  const auto name = [&](const char* rest) { return layer_tensor_name(layer, rest); };
  out.push_back({name("input_layernorm.weight"), {h}, TensorKind::kNorm});
  for (const auto& [part, rows] : {std::pair("q", q), std::pair("k", kv), std::pair("v", kv)}) {
    const std::string stem = name("self_attn.") + part + "_proj.";
    out.push_back({stem + "weight", {rows, h}});
    if (s.qkv_bias) out.push_back({stem + "bias", {rows}, TensorKind::kBias});
  }
  if (s.qk_norm) {
    out.push_back({name("self_attn.q_norm.weight"), {s.head_dim}, TensorKind::kNorm});
    out.push_back({name("self_attn.k_norm.weight"), {s.head_dim}, TensorKind::kNorm});
  }
  out.push_back({name("self_attn.o_proj.weight"), {h, q}, TensorKind::kMatrix, true});
  if (s.o_bias) out.push_back({name("self_attn.o_proj.bias"), {h}, TensorKind::kBias});
}

void add_mlp(const ModelSpec& s, int32_t layer, std::vector<TensorSlot>& out) {
  const int64_t h = s.hidden_size, f = s.intermediate_size;
  const auto name = [&](const char* rest) { return layer_tensor_name(layer, rest); };
  out.push_back({name("post_attention_layernorm.weight"), {h}, TensorKind::kNorm});
  for (const char* part : {"gate", "up"}) {
    const std::string stem = name("mlp.") + part + "_proj.";
    out.push_back({stem + "weight", {f, h}});
    if (s.mlp_bias) out.push_back({stem + "bias", {f}, TensorKind::kBias});
  }
  out.push_back({name("mlp.down_proj.weight"), {h, f}, TensorKind::kMatrix, true});
  if (s.mlp_bias) out.push_back({name("mlp.down_proj.bias"), {h}, TensorKind::kBias});
}

}  // namespace

std::string layer_tensor_name(int32_t layer, std::string_view rest) {
  return fmt::format("model.layers.{}.{}", layer, rest);
}

TensorSlot embedding_slot(const ModelSpec& s) {
  return {"model.embed_tokens.weight", {s.vocab_size, s.hidden_size}, TensorKind::kEmbedding};
}
TensorSlot final_norm_slot(const ModelSpec& s) {
  return {"model.norm.weight", {s.hidden_size}, TensorKind::kNorm};
}
TensorSlot lm_head_slot(const ModelSpec& s) {
  return {"lm_head.weight", {s.vocab_size, s.hidden_size}};
}

std::vector<TensorSlot> layer_slots(const ModelSpec& spec, int32_t layer) {
  std::vector<TensorSlot> out;
  add_attention(spec, layer, out);
  add_mlp(spec, layer, out);
  return out;
}

std::vector<TensorSlot> all_slots(const ModelSpec& spec) {
  std::vector<TensorSlot> out = {embedding_slot(spec)};
  for (int32_t i = 0; i < spec.num_layers; ++i) {
    for (TensorSlot& slot : layer_slots(spec, i)) out.push_back(std::move(slot));
  }
  out.push_back(final_norm_slot(spec));
  if (!spec.tied_embeddings) out.push_back(lm_head_slot(spec));
  return out;
}

bool is_redundant_tensor(const ModelSpec& spec, std::string_view name) {
  if (name == "lm_head.weight") return spec.tied_embeddings;
  return name.ends_with(".rotary_emb.inv_freq");
}

}  // namespace quire
