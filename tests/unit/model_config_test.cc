// config.json and generation_config.json: what is understood, and that everything else is an error naming the
// field, the value and the limit. Method: one good configuration, one field changed at a time.
#include "src/model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/model/rope_table.h"

namespace quire {
namespace {

using nlohmann::json;

json good() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16"})");
}
json qwen2() {
  json c = good();
  c["architectures"] = {"Qwen2ForCausalLM"};
  c["model_type"] = "qwen2";
  return c;
}

Result<ModelSpec> parse(const json& config) {
  return parse_model_config(config.dump());
}

// The message of a configuration that must be refused.
std::string refusal(const json& config) {
  const Result<ModelSpec> spec = parse(config);
  return spec ? "accepted" : spec.error().message;
}
std::string refusal_with(const char* field, const json& value) {
  json config = good();
  config[field] = value;
  return refusal(config);
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ModelConfig, ReadsALlama) {
  const Result<ModelSpec> spec = parse(good());
  ASSERT_TRUE(spec) << spec.error().message;
  EXPECT_EQ(spec->head_dim, 16);
  EXPECT_EQ(spec->max_positions, 256);
  EXPECT_EQ(spec->checkpoint_dtype, DType::kBF16);
  EXPECT_FALSE(spec->tied_embeddings);
  EXPECT_EQ(spec->window, std::vector<int32_t>(3, 0));
  EXPECT_EQ(spec->kv_source, (std::vector<int32_t>{0, 1, 2}));
}

TEST(ModelConfig, CountsParametersAsTheTensorsAre) {
  // embedding and head 2 * 128 * 64; a layer (64 + 2 * 32 + 64) * 64 + 3 * 64 * 96 + 2 * 64; the last
  // norm 64.
  EXPECT_EQ(parse(good())->num_parameters(), 2 * 128 * 64 + 3 * (192 * 64 + 3 * 64 * 96 + 128) + 64);
}

TEST(ModelConfig, NamesEveryMissingSize) {
  for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                            "vocab_size", "max_position_embeddings"}) {
    json config = good();
    config.erase(field);
    EXPECT_TRUE(contains(refusal(config), std::string("`") + field + "` is missing")) << refusal(config);
  }
}

TEST(ModelConfig, NamesAbsurdSizesWithTheirLimits) {
  for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                            "num_key_value_heads", "vocab_size", "max_position_embeddings", "head_dim"}) {
    for (const json& value : {json(0), json(-4), json(1 << 30), json(INT64_MAX), json(UINT64_MAX)}) {
      const std::string message = refusal_with(field, value);
      EXPECT_TRUE(contains(message, std::string("`") + field + "` is " + value.dump())) << message;
      EXPECT_TRUE(contains(message, "it must be from 1 to ")) << message;
    }
    EXPECT_TRUE(contains(refusal_with(field, "64"), "an integer is wanted"));
    EXPECT_TRUE(contains(refusal_with(field, 1.5), "an integer is wanted"));
  }
  EXPECT_TRUE(contains(refusal_with("num_attention_heads", 3), "multiple of num_key_value_heads"));
  EXPECT_TRUE(contains(refusal_with("hidden_size", 66), "multiple of num_attention_heads"));
  EXPECT_TRUE(contains(refusal_with("head_dim", 15), "head_dim is 15; it must be even"));
  EXPECT_TRUE(contains(refusal_with("rms_norm_eps", 0), "`rms_norm_eps` is 0"));
  EXPECT_TRUE(contains(refusal_with("rms_norm_eps", "x"), "a number is wanted"));
}

TEST(ModelConfig, TakesWholeFloatsAsIntegers) {
  EXPECT_EQ(parse([] {
              json c = good();
              c["vocab_size"] = 128.0;
              return c;
            }())
                ->vocab_size,
            128);
}

TEST(ModelConfig, RefusesWhatIsNotAConfiguration) {
  for (const char* text :
       {"", "[]", "3", "{", "{\"a\": }", "{\"architectures\": [\"LlamaForCausalLM\"]", "\xff\xfe"}) {
    const Result<ModelSpec> spec = parse_model_config(text);
    ASSERT_FALSE(spec) << text;
    EXPECT_TRUE(contains(spec.error().message, "config.json")) << spec.error().message;
  }
  EXPECT_FALSE(parse_model_config("{\"architectures\": [\"\xff\"]}"));  // invalid UTF-8
  EXPECT_FALSE(parse_model_config(std::string(1 << 20, '[')));  // deep nesting neither overflows nor parses
}

TEST(ModelConfig, RefusesWhatSaysTwoThings) {
  const std::string text = good().dump(), open = text.substr(0, text.size() - 1);
  const auto why = [](const std::string& config, const std::string& generation = "") {
    const Result<ModelSpec> spec = parse_model_config(config, generation);
    return spec ? "accepted" : spec.error().message;
  };
  EXPECT_EQ(why(open + R"(,"vocab_size":64})"), R"(config.json: key "vocab_size" is given twice)");
  EXPECT_EQ(why(open + R"(,"rope_scaling":{"type":"linear","factor":2,"factor":4}})"),
            R"(config.json: key "factor" is given twice)");
  EXPECT_EQ(why(text, R"({"top_k":1,"top_k":2})"), R"(generation_config.json: key "top_k" is given twice)");
  EXPECT_EQ(why(text + std::string(1, '\0') + "junk"),
            "config.json: not valid JSON at byte " + std::to_string(text.size() + 1) + ", a NUL byte");

  const json linear = {{"rope_type", "linear"}, {"factor", 2.0}};
  json config = good();
  config["rope_scaling"] = linear;
  config["rope_scaling"]["type"] = "linear";
  EXPECT_EQ(refusal(config), "accepted");
  config["rope_scaling"]["type"] = "yarn";
  EXPECT_TRUE(
      contains(refusal(config), R"(rope_scaling: field `type` is "yarn" and field `rope_type` is "linear")"))
      << refusal(config);

  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    config = good();
    config["rope_theta"] = 10000;
    config[name] = linear;
    config[name]["rope_theta"] = 10000.0;
    EXPECT_EQ(refusal(config), "accepted");
    config[name]["rope_theta"] = 20000;
    EXPECT_TRUE(contains(refusal(config), "field `rope_theta` is 20000, and `rope_theta` beside it is 10000"))
        << refusal(config);
    config.erase("rope_theta");
    EXPECT_EQ(parse(config)->rope.theta, 20000);
  }
}

TEST(ModelConfig, NamesAnUnknownArchitecture) {
  EXPECT_TRUE(
      contains(refusal_with("architectures", json{"GPT2LMHeadModel"}), "`GPT2LMHeadModel` is not supported"));
  EXPECT_EQ(parse([] {
              json c = good();
              c["architectures"] = {"Gemma2ForCausalLM"};
              return c;
            }())
                .error()
                .code,
            Code::kUnimplemented);
  EXPECT_TRUE(contains(refusal_with("architectures", json::array()), "names 0 architectures"));
  EXPECT_TRUE(contains(refusal_with("model_type", "mistral"), "`model_type` is `mistral`"));
}

TEST(ModelConfig, NamesFieldsThatChangeTheComputation) {
  const std::pair<const char*, json> fields[] = {{"hidden_act", "gelu"},
                                                 {"logit_scale", 0.5},
                                                 {"quantization_config", json{{"bits", 4}}},
                                                 {"sliding_window", 128},
                                                 {"partial_rotary_factor", 0.5},
                                                 {"attention_multiplier", 0.1},
                                                 {"is_encoder_decoder", true},
                                                 {"rope_interleaved", true},
                                                 {"final_logit_softcapping", 30.0},
                                                 {"auto_map", json{{"AutoModel", "x.py"}}}};
  for (const auto& [field, value] : fields) {
    const std::string message = refusal_with(field, value);
    EXPECT_TRUE(contains(message, field)) << field << ": " << message;
    EXPECT_TRUE(contains(message, "changes the computation and is not supported")) << message;
  }
}

TEST(ModelConfig, SaysOfAFieldItDoesNotKnowThatItDoesNotKnowIt) {
  EXPECT_TRUE(contains(refusal_with("some_new_field", 1),
                       "config.json: field `some_new_field` (1) is not known to quire and may change the "
                       "computation; if it does not, take it out of the file or set it to null"));
  json config = good();
  config.update({{"a_new_field", 1}, {"logit_scale", 0.5}});
  EXPECT_TRUE(contains(parse_model_config(config.dump()).error().message, "`logit_scale` (0.5) changes"))
      << "what is certain comes first";
}

TEST(ModelConfig, AcceptsFieldsThatAreHarmlessNeutralOrNull) {
  json config = good();
  config.update({{"transformers_version", "4.44.0"},
                 {"use_cache", true},
                 {"attention_dropout", 0.0},
                 {"quantization_config", nullptr},
                 {"some_new_field", nullptr},
                 {"is_encoder_decoder", false},
                 {"pruned_heads", json::object()},
                 {"sliding_window", nullptr},
                 {"rope_scaling", nullptr},
                 {"is_llama_config", true},
                 {"rope_interleaved", false},
                 {"transformers.js_config", json{{"dtype", "q4"}}},
                 {"pretraining_tp", 1}});
  EXPECT_EQ(refusal(config), "accepted");
}

TEST(ModelConfig, ReadsBiasesWhereTheFamilyHasThem) {
  json config = good();
  config["attention_bias"] = config["mlp_bias"] = true;
  const Result<ModelSpec> llama = parse(config);
  ASSERT_TRUE(llama);
  EXPECT_TRUE(llama->qkv_bias && llama->o_bias && llama->mlp_bias);
  const Result<ModelSpec> qwen = parse(qwen2());
  ASSERT_TRUE(qwen);
  EXPECT_TRUE(qwen->qkv_bias);
  EXPECT_FALSE(qwen->o_bias);
  json other = qwen2();
  other["mlp_bias"] = true;
  EXPECT_TRUE(contains(refusal(other), "`mlp_bias`"));
}

TEST(ModelConfig, ReadsMistralsWindow) {
  json config = good();
  config["architectures"] = {"MistralForCausalLM"};
  config["model_type"] = "mistral";
  EXPECT_EQ(parse(config)->window,
            std::vector<int32_t>(3, 4096));  // transformers' default for an absent field
  config["sliding_window"] = nullptr;
  EXPECT_EQ(parse(config)->window, std::vector<int32_t>(3, 0));
  config["sliding_window"] = 8;
  EXPECT_EQ(parse(config)->window, std::vector<int32_t>(3, 8));
  config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_TRUE(contains(refusal(config), "`layer_types[1]`"));
}

TEST(ModelConfig, ReadsQwensWindowsByFlagByLayerAndByList) {
  json config = qwen2();
  config["sliding_window"] = 32;
  EXPECT_EQ(parse(config)->window, std::vector<int32_t>(3, 0));
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 1;
  EXPECT_EQ(parse(config)->window, (std::vector<int32_t>{0, 32, 32}));
  config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(parse(config)->window, (std::vector<int32_t>{32, 0, 32}));
  config["layer_types"] = {"full_attention"};
  EXPECT_TRUE(contains(refusal(config), "`layer_types` has 1 entries; num_hidden_layers is 3"));
  config["layer_types"] = {"full_attention", "linear_attention", "full_attention"};
  EXPECT_TRUE(contains(refusal(config), "linear_attention"));
  config["layer_types"] = {"sliding_attention", "sliding_attention", "sliding_attention"};
  config["use_sliding_window"] = false;
  EXPECT_TRUE(contains(refusal(config), "contradicts"));
}

TEST(ModelConfig, ReadsRopeInBothForms) {
  json older = good();
  older["rope_theta"] = 500000.0;
  older["rope_scaling"] =
      json::parse(R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 64})");
  json newer = good();
  newer["rope_parameters"] = older["rope_scaling"];
  newer["rope_parameters"]["rope_theta"] = 500000.0;
  for (const json& config : {older, newer}) {
    const Result<ModelSpec> spec = parse(config);
    ASSERT_TRUE(spec) << spec.error().message;
    EXPECT_EQ(spec->rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(spec->rope.theta, 500000.0);
    EXPECT_EQ(spec->rope.original_max_position, 64);
    EXPECT_EQ(spec->max_positions, 256);
  }
  newer["rope_scaling"] = json{{"type", "linear"}, {"factor", 2}};
  EXPECT_TRUE(contains(refusal(newer), "both set and differ"));
}

TEST(ModelConfig, ReadsTheOriginalLengthInsideTheScalingOrBesideIt) {
  const json llama3 = {
      {"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}};
  for (const json& scaling : {json{{"type", "yarn"}}, llama3}) {
    json beside = good();
    beside["rope_scaling"] = scaling;
    beside["original_max_position_embeddings"] = 64;
    json inside = good();
    inside["rope_scaling"] = scaling;
    inside["rope_scaling"]["original_max_position_embeddings"] = 64;
    json both = beside;
    both["rope_scaling"]["original_max_position_embeddings"] = 64;
    for (const json& config : {beside, inside, both}) {
      const Result<ModelSpec> spec = parse(config);
      ASSERT_TRUE(spec) << spec.error().message;
      EXPECT_EQ(spec->rope.original_max_position, 64);
      EXPECT_EQ(spec->rope.factor, scaling == llama3 ? 8 : 4);
    }
    both["rope_scaling"]["original_max_position_embeddings"] = 32;
    EXPECT_TRUE(contains(refusal(both),
                         "field `original_max_position_embeddings` is 32, and "
                         "`original_max_position_embeddings` beside it is 64"))
        << refusal(both);
  }
}

TEST(ModelConfig, StretchesTheContextByTheScaling) {
  json config = good();
  config["rope_scaling"] = json{{"type", "linear"}, {"factor", 4}};
  EXPECT_EQ(parse(config)->max_positions, 1024);
  config["rope_scaling"] = json{{"type", "dynamic"}, {"factor", 2}};
  EXPECT_EQ(parse(config)->max_positions, 512);
  config["rope_scaling"] = json{{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 256}};
  EXPECT_EQ(parse(config)->max_positions, 1024);
}

TEST(ModelConfig, NamesFaultsOfTheRope) {
  const auto scaling = [](const char* text) { return refusal_with("rope_scaling", json::parse(text)); };
  EXPECT_TRUE(
      contains(scaling(R"({"type": "longrope", "factor": 2})"), "`longrope` changes the computation"));
  EXPECT_TRUE(contains(scaling(R"({"type": "linear"})"), "`factor` is missing"));
  EXPECT_TRUE(
      contains(scaling(R"({"type": "linear", "factor": 0.5})"), "`factor` is 0.5; it must be from 1"));
  EXPECT_TRUE(contains(scaling(R"({"type": "linear", "factor": 1e9})"), "it must be from 1"));
  EXPECT_TRUE(contains(scaling(R"({"type": "linear", "factor": 2, "mystery": 1})"),
                       "`mystery` changes the computation"));
  EXPECT_TRUE(
      contains(scaling(R"({"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4})"),
               "must be above"));
  EXPECT_TRUE(contains(scaling(R"({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 64})"),
                       "not supported"));
  EXPECT_TRUE(
      contains(scaling(R"({"type": "yarn", "factor": 2, "attention_factor": "x"})"), "a number is wanted"));
  EXPECT_TRUE(contains(scaling("[1]"), "an object is wanted"));
  EXPECT_TRUE(contains(refusal_with("rope_theta", 0), "`rope_theta` is 0"));
  json big = good();
  big["max_position_embeddings"] = 1 << 24;
  big["rope_scaling"] = json{{"type", "linear"}, {"factor", 100}};
  EXPECT_TRUE(contains(refusal(big), "the limit is 16777216"));
}

TEST(ModelConfig, NamesABadDtype) {
  EXPECT_TRUE(contains(refusal_with("torch_dtype", "int8"), "dtype `int8` is not supported"));
  EXPECT_EQ(parse([] {
              json c = good();
              c["dtype"] = "torch.float16";
              return c;
            }())
                ->checkpoint_dtype,
            DType::kF16);
}

TEST(ModelConfig, TakesTokenIdsFromGenerationConfigFirst) {
  json config = good();
  config["eos_token_id"] = 2;
  config["bos_token_id"] = 1;
  EXPECT_EQ(parse(config)->eos_token_ids, std::vector<int32_t>{2});
  const Result<ModelSpec> spec = parse_model_config(
      config.dump(),
      R"({"eos_token_id": [7, 9], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": true, "other": 1})");
  ASSERT_TRUE(spec) << spec.error().message;
  EXPECT_EQ(spec->eos_token_ids, (std::vector<int32_t>{7, 9}));
  EXPECT_EQ(spec->bos_token_id, 1);
  EXPECT_EQ(spec->default_sampling.temperature, 0.6);
  EXPECT_EQ(spec->default_sampling.top_p, 0.9);
  EXPECT_EQ(spec->default_sampling.top_k, 20);
  EXPECT_EQ(spec->default_sampling.min_p, 0) << "what it does not say stays neutral";
  EXPECT_EQ(spec->default_sampling.max_tokens, SamplingParams().max_tokens);
  EXPECT_TRUE(validate(spec->default_sampling, {}).has_value());
  EXPECT_TRUE(contains(refusal_with("eos_token_id", 128), "`eos_token_id` is 128; it must be from 0 to 127"));
  EXPECT_TRUE(contains(refusal_with("eos_token_id", json{1, -1}), "`eos_token_id` is -1"));
  const Result<ModelSpec> bad = parse_model_config(config.dump(), R"({"top_p": 1.5})");
  ASSERT_FALSE(bad);
  EXPECT_TRUE(contains(bad.error().message, "generation_config.json: field `top_p` is 1.5"))
      << bad.error().message;
  for (const char* refused : {R"({"top_p": 0})", R"({"typical_p": 0})", R"({"temperature": 200})"})
    EXPECT_FALSE(parse_model_config(config.dump(), refused)) << refused << ": no request could take it";
  EXPECT_EQ(parse_model_config(config.dump(), R"({"top_k": -1})")->default_sampling.top_k, 0) << "all";
}

TEST(ModelConfig, NamesTheDirectoryThatHasNone) {
  const Result<ModelSpec> spec = read_model_config("/no/such/model");
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, Code::kNotFound);
  EXPECT_TRUE(contains(spec.error().message, "/no/such/model/config.json"));
}

TEST(RopeTable, TurnsPairIByItsFrequencyTimesThePosition) {
  std::vector<float> table(5 * 8);
  fill_rope_table({.theta = 10000}, 8, 5, table);
  for (int p = 0; p < 5; ++p) {
    for (int i = 0; i < 4; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / 8);
      EXPECT_NEAR(table[static_cast<size_t>(p * 8 + i)], std::cos(angle), 1e-6);
      EXPECT_NEAR(table[static_cast<size_t>(p * 8 + 4 + i)], std::sin(angle), 1e-6);
    }
  }
}

TEST(RopeTable, GrowsTheDynamicBaseOnlyBeyondTheOriginalLength) {
  const RopeSpec rope{
      .theta = 10000, .scaling = RopeScaling::kDynamic, .factor = 2, .original_max_position = 16};
  EXPECT_EQ(rope_inverse_frequencies(rope, 8, 1), rope_inverse_frequencies({.theta = 10000}, 8, 1));
  EXPECT_EQ(rope_inverse_frequencies(rope, 8, 16), rope_inverse_frequencies(rope, 8, 1));
  EXPECT_LT(rope_inverse_frequencies(rope, 8, 17)[3], rope_inverse_frequencies(rope, 8, 16)[3]);
}

}  // namespace
}  // namespace quire
