// quire inspect: what a checkpoint is, and what its KV cache costs. Reads files; runs nothing.
#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "server/commands/command.h"
#include "server/commands/text_file.h"
#include "server/flags.h"
#include "server/json_output.h"
#include "src/model/checkpoint.h"
#include "src/model/config.h"
#include "src/model/weight_source.h"
#include "src/text/chat_template.h"
#include "src/text/tokenizer.h"

namespace quire::server {
namespace {

using Json = nlohmann::ordered_json;

// Layers whose caches grow alike: full attention, or one window.
struct LayerGroup {
  int32_t window = 0;  // tokens; 0 = full attention
  int32_t num_layers = 0;
  int64_t bytes_per_token = 0;

  int64_t bytes(int64_t tokens) const {
    return bytes_per_token * (window > 0 ? std::min<int64_t>(tokens, window) : tokens);
  }
  // The block table of a sequence serves all layers, so none lets go of a token before all do: a KV policy's matter.
  int64_t held_bytes(int64_t tokens) const { return bytes_per_token * tokens; }
};

std::vector<LayerGroup> layer_groups(const ModelSpec& spec, DType dtype) {
  std::map<int32_t, LayerGroup> by_window;
  const int64_t layer_bytes = spec.kv_bytes_per_token(dtype) / spec.num_layers;
  for (int32_t layer = 0; layer < spec.num_layers; ++layer) {
    if (!spec.kv_source.empty() && spec.kv_source[static_cast<size_t>(layer)] != layer)
      continue;  // reads another layer's
    const int32_t window = spec.window.empty() ? 0 : spec.window[static_cast<size_t>(layer)];
    LayerGroup& group = by_window[window];
    group.window = window;
    group.num_layers += 1;
    group.bytes_per_token += layer_bytes;
  }
  std::vector<LayerGroup> groups;
  for (const auto& [window, group] : by_window) groups.push_back(group);
  return groups;
}

Json kv_report(const ModelSpec& spec, DType dtype, const std::vector<int64_t>& contexts) {
  const auto groups = layer_groups(spec, dtype);
  Json report = {{"architecture", spec.architecture},
                 {"dtype", name_of(dtype)},
                 {"layers", spec.num_layers},
                 {"kv_heads", spec.num_kv_heads},
                 {"head_dim", spec.head_dim}};
  int64_t per_token = 0;
  for (const LayerGroup& group : groups) per_token += group.bytes_per_token;
  report["bytes_per_token"] = per_token;
  report["groups"] = Json::array();
  for (const LayerGroup& group : groups)
    report["groups"].push_back({{"kind", group.window > 0 ? "sliding_window" : "full_attention"},
                                {"window_tokens", group.window},
                                {"layers", group.num_layers},
                                {"bytes_per_token", group.bytes_per_token}});
  report["contexts"] = Json::array();
  for (const int64_t tokens : contexts) {
    Json entry = {{"tokens", tokens}, {"bytes", 0}, {"held_bytes", 0}, {"bytes_by_group", Json::array()}};
    int64_t sum = 0, held = 0;
    for (const LayerGroup& group : groups) {
      sum += group.bytes(tokens);
      held += group.held_bytes(tokens);
      entry["bytes_by_group"].push_back(group.bytes(tokens));
    }
    entry["bytes"] = sum;
    entry["held_bytes"] = held;
    report["contexts"].push_back(std::move(entry));
  }
  return report;
}

std::string amount(int64_t bytes) {
  return fmt::format("{} bytes ({:.2f} GB)", bytes, static_cast<double>(bytes) / 1e9);
}

void print_kv(const Json& report) {
  fmt::print("{}, {} KV cache: {} bytes per token\n", report["architecture"].get<std::string>(),
             report["dtype"].get<std::string>(), report["bytes_per_token"].get<int64_t>());
  for (const Json& group : report["groups"])
    fmt::print("  {:3} layers, {} {:>7}: {} bytes per token\n", group["layers"].get<int>(),
               group["kind"].get<std::string>(),
               group["window_tokens"] == 0 ? "" : std::to_string(group["window_tokens"].get<int>()),
               group["bytes_per_token"].get<int64_t>());
  for (const Json& context : report["contexts"]) {
    const auto bytes = context["bytes"].get<int64_t>(), held = context["held_bytes"].get<int64_t>();
    fmt::print("  {:>9} tokens: {}{}\n", context["tokens"].get<int64_t>(), amount(bytes),
               held == bytes ? "" : " in reach of the windows; quire holds " + amount(held));
  }
}

DType parse_dtype(const std::string& name, DType otherwise) {
  return name == "f32"    ? DType::kF32
         : name == "bf16" ? DType::kBF16
         : name == "f16"  ? DType::kF16
                          : otherwise;
}

std::string rope_name(RopeScaling scaling) {
  constexpr const char* names[] = {"default", "linear", "dynamic", "yarn", "llama3"};
  return names[static_cast<int>(scaling)];
}

Json kv_cost(const ModelSpec& spec, DType dtype) {
  return {{"dtype", name_of(dtype)}, {"bytes", spec.kv_bytes_per_token(dtype)}};
}

Json sampling_report(const SamplingParams& p) {
  return {{"temperature", p.temperature},
          {"top_k", p.top_k},
          {"top_p", p.top_p},
          {"min_p", p.min_p},
          {"typical_p", p.typical_p},
          {"repetition_penalty", p.repetition_penalty}};
}

// The KV cache of each back end by its own choice of type (--kv-cache-dtype auto).
Json model_report(const ModelSpec& spec) {
  return {
      {"architecture", spec.architecture},
      {"model_type", spec.model_type},
      {"parameters", spec.num_parameters()},
      {"layers", spec.num_layers},
      {"hidden_size", spec.hidden_size},
      {"intermediate_size", spec.intermediate_size},
      {"query_heads", spec.num_q_heads},
      {"kv_heads", spec.num_kv_heads},
      {"head_dim", spec.head_dim},
      {"vocab_size", spec.vocab_size},
      {"max_context_tokens", spec.max_positions},
      {"dtype", name_of(spec.checkpoint_dtype)},
      {"norm_eps", shortest(spec.norm_eps)},
      {"qkv_bias", spec.qkv_bias},
      {"qk_norm", spec.qk_norm},
      {"tied_embeddings", spec.tied_embeddings},
      {"rope",
       {{"theta", spec.rope.theta}, {"scaling", rope_name(spec.rope.scaling)}, {"factor", spec.rope.factor}}},
      {"window_tokens_by_layer", spec.window},
      {"eos_token_ids", spec.eos_token_ids},
      {"bos_token_id", spec.bos_token_id},
      {"default_sampling", sampling_report(spec.default_sampling)},
      {"kv_bytes_per_token",
       {{"cuda", kv_cost(spec, spec.checkpoint_dtype)}, {"cpu", kv_cost(spec, DType::kF32)}}}};
}

// They pass what the loader asks of them, or the first faults are told.
Status add_weights(const std::string& dir, const ModelSpec& spec, const std::string& weights, Json& report) {
  if (weights != "checkpoint") {
    report["weights"] = nullptr;
    return ok();
  }
  if (const auto source = open_checkpoint_source(dir, spec); !source) return source.error();
  const auto checkpoint = Checkpoint::open(dir);
  if (!checkpoint) return checkpoint.error();
  report["weights"] = {{"tensors", checkpoint->names().size()}, {"bytes", checkpoint->bytes()}};
  return ok();
}

// As the server opens them: a tokenizer of another vocabulary, or one that does not parse, is an error.
Status add_texts(const std::string& dir, const ModelSpec& spec, Json& report) {
  report["tokenizer"] = nullptr;
  report["chat_template"] = false;
  if (!Tokenizer::exists(dir)) return ok();
  const auto tokenizer = Tokenizer::open(dir, spec.vocab_size);
  if (!tokenizer) return tokenizer.error();
  const int32_t without = (*tokenizer)->ids_without_a_token();
  report["tokenizer"] = {{"tokens", spec.vocab_size - without}, {"ids_without_a_token", without}};
  const auto chat = ChatTemplate::open(dir);
  if (!chat) return chat.error();
  report["chat_template"] = *chat != nullptr;
  return ok();
}

}  // namespace

int run_inspect_kv(const Arguments& arguments) {
  std::string config, dtype = "auto", output = "text";
  std::vector<int64_t> contexts;
  Flags flags(
      "quire inspect kv",
      "What a model's KV cache costs, per token and per context, by layer group. Exact bytes, before "
      "rounding up to blocks. `bytes`: what attention reaches, in a layer with a sliding window at most its "
      "window. `held_bytes`: what quire's cache takes, which without a KV policy is every token in every "
      "layer.");
  flags.add("config", config, "The model's config.json");
  flags.require("config");
  flags.add("tokens", contexts, "Context lengths, tokens");
  flags.add_choice("dtype", dtype, {"auto", "f32", "bf16", "f16"},
                   "Element type of the cache; auto = the checkpoint's");
  flags.add_choice("output", output, {"text", "json"}, "Form of the answer");
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  for (const int64_t tokens : contexts)
    if (tokens < 0 || tokens > (int64_t{1} << 40))
      return fail(invalid(fmt::format("--tokens {}: from 0 to 2^40", tokens)), kExitUsage);
  const auto text = read_file(config, "--config");
  if (!text) return fail(text.error());
  const auto spec = parse_model_config(*text, {}, config);
  if (!spec) return fail(spec.error());
  const Json report = kv_report(*spec, parse_dtype(dtype, spec->checkpoint_dtype), contexts);
  if (output == "json")
    fmt::print("{}\n", report.dump());
  else
    print_kv(report);
  return 0;
}

int run_inspect_model(const Arguments& arguments) {
  std::string dir, weights = "checkpoint", output = "text";
  Flags flags("quire inspect model",
              "What quire understood of a checkpoint. Configuration, tokenizer, chat template, and presence, "
              "shape and element type of each tensor are checked as they are when it is served; its numbers "
              "are not read.");
  flags.add_positional("DIR", dir, "Model directory");
  flags.require("DIR");
  flags.add_choice("weights", weights, {"checkpoint", "random"},
                   "What would be served; random: DIR needs only a config.json");
  flags.add_choice("output", output, {"text", "json"}, "Form of the answer");
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  const auto spec = read_model_config(dir);
  if (!spec) return fail(spec.error());
  Json report = model_report(*spec);
  if (const Status added = add_weights(dir, *spec, weights, report); !added) return fail(added.error());
  if (const Status added = add_texts(dir, *spec, report); !added) return fail(added.error());
  if (output == "json") {
    fmt::print("{}\n", report.dump());
  } else {
    for (const auto& [key, value] : report.items())
      fmt::print("{:24} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return 0;
}

}  // namespace quire::server
