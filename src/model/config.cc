#include "src/model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string_view>

#include "src/base/text_file.h"
#include "src/model/field_reader.h"
#include "src/model/rope_config.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxVocab = 1 << 22, kMaxHidden = 1 << 16, kMaxIntermediate = 1 << 20, kMaxLayers = 1 << 10;
constexpr int64_t kMaxHeads = 1 << 10, kMaxHeadDim = 256, kMaxPositions = 1 << 24;

enum class Windows { kNone, kEveryLayer, kByFlag };  // how sliding_window is to be read

// What distinguishes the dense families; everything else they share.
struct Family {
  const char* architecture;
  const char* model_type;
  bool qkv_bias;        // always there (Qwen2)
  bool attention_bias;  // has the field: biases on q, k, v and o
  bool mlp_bias;        // has the field
  bool qk_norm;
  Windows windows;
  int32_t default_head_dim;  // 0 = hidden_size / heads
};

constexpr std::array<Family, 4> kFamilies = {{
    {"LlamaForCausalLM", "llama", false, true, true, false, Windows::kNone, 0},
    {"MistralForCausalLM", "mistral", false, false, false, false, Windows::kEveryLayer, 0},
    {"Qwen2ForCausalLM", "qwen2", true, false, false, false, Windows::kByFlag, 0},
    {"Qwen3ForCausalLM", "qwen3", false, true, false, true, Windows::kByFlag, 128},
}};

// Fields that say how a model was trained, stored or labelled, or what transformers' own objects return: none
// of them changes what a forward pass computes.
constexpr std::string_view kHarmlessFields[] = {"transformers_version",
                                                "_name_or_path",
                                                "name_or_path",
                                                "_commit_hash",
                                                "use_cache",
                                                "initializer_range",
                                                "attention_dropout",
                                                "hidden_dropout",
                                                "resid_pdrop",
                                                "embd_pdrop",
                                                "pad_token_id",
                                                "sep_token_id",
                                                "unk_token_id",
                                                "_attn_implementation",
                                                "_attn_implementation_autoset",
                                                "attn_implementation",
                                                "_flash_attn_2_enabled",
                                                "pretraining_tp",
                                                "is_decoder",
                                                "output_attentions",
                                                "output_hidden_states",
                                                "return_dict",
                                                "return_dict_in_generate",
                                                "use_return_dict",
                                                "torchscript",
                                                "chunk_size_feed_forward",
                                                "tf_legacy_loss",
                                                "use_bfloat16",
                                                "problem_type",
                                                "id2label",
                                                "label2id",
                                                "num_labels",
                                                "finetuning_task",
                                                "task_specific_params",
                                                "tokenizer_class",
                                                "prefix",
                                                "decoder_start_token_id",
                                                "forced_bos_token_id",
                                                "forced_eos_token_id",
                                                "suppress_tokens",
                                                "begin_suppress_tokens",
                                                "max_length",
                                                "min_length",
                                                "do_sample",
                                                "early_stopping",
                                                "num_beams",
                                                "num_beam_groups",
                                                "diversity_penalty",
                                                "temperature",
                                                "top_k",
                                                "top_p",
                                                "typical_p",
                                                "repetition_penalty",
                                                "length_penalty",
                                                "no_repeat_ngram_size",
                                                "encoder_no_repeat_ngram_size",
                                                "bad_words_ids",
                                                "num_return_sequences",
                                                "output_scores",
                                                "exponential_decay_length_penalty",
                                                "remove_invalid_values",
                                                "unsloth_version",
                                                "unsloth_fixed",
                                                "unsloth_template",
                                                "gradient_checkpointing",
                                                "model_max_length",
                                                "neftune_noise_alpha",
                                                "is_llama_config",
                                                "transformers.js_config",
                                                "cache_implementation",
                                                "license",
                                                "debug"};

// Fields of other architectures that are known to change what a forward pass computes.
constexpr std::string_view kComputingFields[] = {"attention_chunk_size",
                                                 "attention_multiplier",
                                                 "attn_logit_softcapping",
                                                 "attn_temperature_tuning",
                                                 "clip_qkv",
                                                 "cross_attention_layers",
                                                 "dim_model_base",
                                                 "embedding_multiplier",
                                                 "final_logit_softcapping",
                                                 "kv_lora_rank",
                                                 "layer_norm_eps",
                                                 "logit_scale",
                                                 "logits_scaling",
                                                 "moe_intermediate_size",
                                                 "no_rope_layers",
                                                 "num_experts",
                                                 "num_experts_per_tok",
                                                 "num_local_experts",
                                                 "partial_rotary_factor",
                                                 "q_lora_rank",
                                                 "qk_layernorm",
                                                 "query_pre_attn_scalar",
                                                 "residual_multiplier",
                                                 "rotary_pct",
                                                 "scale_depth",
                                                 "scale_emb",
                                                 "use_mla",
                                                 "use_qk_norm"};

bool is_among(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string refusal(std::string_view field, const json& value) {
  return fmt::format("field `{}` ({}) changes the computation and is not supported", field, shown(value));
}

const Family* read_family(FieldReader& config) {
  const std::vector<std::string> names = config.texts("architectures");
  if (names.size() != 1) {
    config.fail(Code::kInvalidArgument,
                fmt::format("field `architectures` names {} architectures; one is wanted", names.size()));
    return nullptr;
  }
  const auto it = std::find_if(kFamilies.begin(), kFamilies.end(),
                               [&](const Family& f) { return names[0] == f.architecture; });
  if (it == kFamilies.end()) {
    config.fail(Code::kUnimplemented, fmt::format("architecture `{}` is not supported ({} are)", names[0],
                                                  supported_architectures()));
    return nullptr;
  }
  const std::string type = config.text("model_type", it->model_type);
  if (type != it->model_type) {
    config.fail(Code::kInvalidArgument, fmt::format("field `model_type` is `{}`; `{}` goes with {}", type,
                                                    it->model_type, it->architecture));
  }
  return &*it;
}

void read_sizes(FieldReader& config, const Family& family, ModelSpec& spec) {
  const auto size = [&](const char* name, int64_t limit, std::optional<int64_t> fallback = {}) {
    return static_cast<int32_t>(config.integer(name, 1, limit, fallback));
  };
  spec.vocab_size = size("vocab_size", kMaxVocab);
  spec.hidden_size = size("hidden_size", kMaxHidden);
  spec.intermediate_size = size("intermediate_size", kMaxIntermediate);
  spec.num_layers = size("num_hidden_layers", kMaxLayers);
  spec.num_q_heads = size("num_attention_heads", kMaxHeads);
  // Null and absent mean "as many as query heads" in Llama; the other families' absent default is a number
  // that no checkpoint relies on, so there the field is asked for.
  const bool may_lack = family.windows == Windows::kNone;
  spec.num_kv_heads = size("num_key_value_heads", kMaxHeads,
                           may_lack ? std::optional<int64_t>(spec.num_q_heads) : std::nullopt);
  const int32_t derived = spec.num_q_heads > 0 ? spec.hidden_size / spec.num_q_heads : 0;
  spec.head_dim =
      size("head_dim", kMaxHeadDim, family.default_head_dim > 0 ? family.default_head_dim : derived);
  spec.norm_eps = static_cast<float>(config.number("rms_norm_eps", 1e-12, 1, 1e-6));
}

void check_sizes(FieldReader& config, int32_t default_head_dim, const ModelSpec& spec) {
  if (config.fault()) return;
  if (spec.num_q_heads % spec.num_kv_heads != 0) {
    config.fail(Code::kInvalidArgument,
                fmt::format("num_attention_heads is {}; it must be a multiple of num_key_value_heads, {}",
                            spec.num_q_heads, spec.num_kv_heads));
  }
  if (!config.has("head_dim") && default_head_dim == 0 && spec.hidden_size % spec.num_q_heads != 0) {
    config.fail(
        Code::kInvalidArgument,
        fmt::format("hidden_size is {}; without head_dim it must be a multiple of num_attention_heads, {}",
                    spec.hidden_size, spec.num_q_heads));
  }
  if (spec.head_dim < 2 || spec.head_dim > kMaxHeadDim || spec.head_dim % 2 != 0) {
    config.fail(Code::kInvalidArgument,
                fmt::format("head_dim is {}; it must be even and from 2 to {}", spec.head_dim, kMaxHeadDim));
  }
}

void read_switches(FieldReader& config, const Family& family, ModelSpec& spec) {
  spec.qk_norm = family.qk_norm;
  spec.qkv_bias = family.qkv_bias;
  if (family.attention_bias) spec.qkv_bias = spec.o_bias = config.boolean("attention_bias", false);
  if (family.mlp_bias) spec.mlp_bias = config.boolean("mlp_bias", false);
  spec.tied_embeddings = config.boolean("tie_word_embeddings", false);
  const std::string act = config.text("hidden_act", "silu");
  if (act != "silu" && act != "swish") config.fail(Code::kUnimplemented, refusal("hidden_act", act));
}

// Fields of transformers' base class, or of a family that has no such bias, with the one value that changes
// nothing.
void read_neutral_fields(FieldReader& config) {
  for (const char* name :
       {"attention_bias", "mlp_bias", "is_encoder_decoder", "add_cross_attention", "use_mrope",
        "cross_attention_hidden_size", "tie_encoder_decoder", "quantization_config", "pruned_heads",
        "layer_norm_in_fp32", "auto_map", "rope_interleaved", "output_router_logits"}) {
    if (config.was_read(name)) continue;
    const json* value = config.take(name);
    if (value != nullptr && *value != json(false) && !(value->is_object() && value->empty())) {
      config.fail(Code::kUnimplemented, refusal(name, *value));
    }
  }
}

struct WindowRule {
  int32_t width = 0;  // 0 = none
  int64_t first_layer = 0;
};

// Mistral: every layer, absent means 4096 (transformers' default), null means none. Qwen: only with
// use_sliding_window, and then the layers from max_window_layers on, unless layer_types lists them.
WindowRule read_window_rule(FieldReader& config, bool width_is_absent, Windows windows) {
  constexpr int32_t kDefaultWidth = 4096;
  const auto written = static_cast<int32_t>(config.integer("sliding_window", 0, kMaxPositions, 0));
  WindowRule rule{.width = width_is_absent ? kDefaultWidth : written};
  if (windows == Windows::kNone) {
    if (written != 0) config.fail(Code::kUnimplemented, refusal("sliding_window", written));
    return {};
  }
  if (windows == Windows::kByFlag) {
    rule.first_layer = config.integer("max_window_layers", 0, 1 << 20, 28);
    if (!config.boolean("use_sliding_window", false)) rule.width = 0;
  }
  return rule;
}

// Qwen's layer_types decides; elsewhere transformers does not read it, so it may only say what holds anyway.
void read_layer_types(FieldReader& config, const Family& family, int32_t width, ModelSpec& spec) {
  const std::vector<std::string> types = config.texts("layer_types");
  if (types.empty() || config.fault()) return;
  if (types.size() != spec.window.size()) {
    config.fail(Code::kInvalidArgument,
                fmt::format("field `layer_types` has {} entries; num_hidden_layers is {}", types.size(),
                            spec.num_layers));
    return;
  }
  for (size_t i = 0; i < types.size(); ++i) {
    const bool sliding = types[i] == "sliding_attention";
    if (!sliding && types[i] != "full_attention") {
      config.fail(Code::kUnimplemented, refusal(fmt::format("layer_types[{}]", i), types[i]));
    }
    if (family.windows == Windows::kByFlag && width > 0) spec.window[i] = sliding ? width : 0;
    if (sliding != (spec.window[i] != 0)) {
      config.fail(
          Code::kInvalidArgument,
          fmt::format("field `layer_types[{}]` is {}, which contradicts the fields of the sliding window", i,
                      types[i]));
    }
  }
}

void read_windows(FieldReader& config, const json& object, const Family& family, ModelSpec& spec) {
  const WindowRule rule = read_window_rule(config, !object.contains("sliding_window"), family.windows);
  spec.window.assign(static_cast<size_t>(spec.num_layers), 0);
  for (int64_t i = rule.first_layer; i < spec.num_layers; ++i)
    spec.window[static_cast<size_t>(i)] = rule.width;
  read_layer_types(config, family, rule.width, spec);
}

void read_positions(FieldReader& config, ModelSpec& spec) {
  const int64_t length = config.integer("max_position_embeddings", 1, kMaxPositions);
  spec.rope = read_rope(config, length);
  if (config.fault()) return;
  const int64_t stretched = stretched_max_positions(spec.rope, length);
  if (stretched > kMaxPositions) {
    config.fail(Code::kInvalidArgument,
                fmt::format("rope scaling stretches max_position_embeddings to {}; the limit is {}",
                            stretched, kMaxPositions));
  }
  spec.max_positions = static_cast<int32_t>(std::min(stretched, kMaxPositions));
}

void read_dtype(FieldReader& config, ModelSpec& spec) {
  const std::string older = config.text("torch_dtype", "float32");
  std::string name = config.text("dtype", older);
  if (name.starts_with("torch.")) name = name.substr(6);
  if (name == "float32")
    spec.checkpoint_dtype = DType::kF32;
  else if (name == "bfloat16")
    spec.checkpoint_dtype = DType::kBF16;
  else if (name == "float16")
    spec.checkpoint_dtype = DType::kF16;
  else
    config.fail(Code::kUnimplemented,
                fmt::format("dtype `{}` is not supported (float32, bfloat16, float16 are)", name));
}

void read_token_ids(FieldReader& reader, ModelSpec& spec) {
  const int64_t last = spec.vocab_size - 1;
  const std::vector<int64_t> eos = reader.integers("eos_token_id", 0, last),
                             bos = reader.integers("bos_token_id", 0, last);
  if (!eos.empty()) spec.eos_token_ids.assign(eos.begin(), eos.end());
  if (!bos.empty()) spec.bos_token_id = static_cast<int32_t>(bos[0]);
}

std::string unknown(const std::string& field, const json& value) {
  return fmt::format(
      "field `{}` ({}) is not known to quire and may change the computation; if it does not, take it out of "
      "the "
      "file or set it to null",
      field, shown(value));
}

// A known field first: what is certain is said before what is not.
void refuse_unread(FieldReader& config, const json& object) {
  std::optional<std::string> first_unknown;
  for (const std::string& name : config.unread()) {
    if (is_among(kHarmlessFields, name)) continue;
    if (is_among(kComputingFields, name))
      config.fail(Code::kUnimplemented, refusal(name, object[name]));
    else if (!first_unknown)
      first_unknown = unknown(name, object[name]);
  }
  if (first_unknown) config.fail(Code::kUnimplemented, *first_unknown);
}

Result<ModelSpec> read_config(const json& object, std::string_view name) {
  FieldReader config(object, std::string(name));
  ModelSpec spec;
  const Family* family = read_family(config);
  if (family == nullptr) return *config.fault();
  spec.architecture = family->architecture;
  spec.model_type = family->model_type;
  read_sizes(config, *family, spec);
  check_sizes(config, family->default_head_dim, spec);
  if (config.fault()) return *config.fault();
  read_switches(config, *family, spec);
  read_positions(config, spec);
  read_windows(config, object, *family, spec);
  read_dtype(config, spec);
  read_token_ids(config, spec);
  read_neutral_fields(config);
  refuse_unread(config, object);
  if (config.fault()) return *config.fault();
  for (int32_t i = 0; i < spec.num_layers; ++i) spec.kv_source.push_back(i);
  return spec;
}

// How a request is sampled that does not say it, as vLLM reads it: do_sample has no say (temperature 0 is greedy), and fields that
// quire has no use for are left alone, for this file changes no computation.
Status read_generation(const json& object, ModelSpec& spec) {
  constexpr double kLeast = 1e-6;  // of what must be above 0
  FieldReader reader(object, "generation_config.json");
  read_token_ids(reader, spec);
  SamplingParams& out = spec.default_sampling;
  out.temperature = reader.number("temperature", 0, 100, out.temperature);
  out.top_p = reader.number("top_p", kLeast, 1, out.top_p);
  out.min_p = reader.number("min_p", 0, 1, out.min_p);
  out.typical_p = reader.number("typical_p", kLeast, 1, out.typical_p);
  out.repetition_penalty = reader.number("repetition_penalty", kLeast, 100, out.repetition_penalty);
  out.top_k = static_cast<int32_t>(std::max<int64_t>(reader.integer("top_k", -1, kMaxVocab, out.top_k), 0));
  if (reader.fault()) return *reader.fault();
  return ok();
}

}  // namespace

std::string supported_architectures() {
  std::string names;
  for (const Family& family : kFamilies)
    names += (names.empty() ? "" : ", ") + std::string(family.architecture);
  return names;
}

Result<ModelSpec> parse_model_config(std::string_view config_json, std::string_view generation_json,
                                     std::string_view config_name) {
  const Result<json> config = parse_json_object(config_json, config_name);
  if (!config) return config.error();
  Result<ModelSpec> spec = read_config(*config, config_name);
  if (!spec || generation_json.empty()) return spec;
  const Result<json> generation = parse_json_object(generation_json, "generation_config.json");
  if (!generation) return generation.error();
  if (Status read = read_generation(*generation, *spec); !read) return read.error();
  return spec;
}

Result<ModelSpec> read_model_config(const std::string& model_dir) {
  const Result<std::string> config = read_text_file(model_dir + "/config.json", kMaxConfigBytes);
  if (!config) return config.error();
  const std::string generation_path = model_dir + "/generation_config.json";
  std::string generation;
  if (entry_exists(generation_path)) {
    Result<std::string> text = read_text_file(generation_path, kMaxConfigBytes);
    if (!text) return text.error();
    generation = std::move(*text);
  }
  Result<ModelSpec> spec = parse_model_config(*config, generation);
  if (!spec) return error(spec.error().code, model_dir + "/" + spec.error().message);
  return spec;
}

}  // namespace quire
