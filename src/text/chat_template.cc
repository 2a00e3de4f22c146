#include "src/text/chat_template.h"

#include <chrono>

#include "src/base/check.h"
#include "src/base/json_text.h"
#include "src/base/text_file.h"
#include "src/text/ffi/quire_text_ffi.h"
#include "src/text/ffi_result.h"

namespace quire {
namespace {

using Json =
    nlohmann::ordered_json;  // tools keep the order of their fields: it is what the model was trained on

struct Sources {
  std::string main, with_tools;  // "" = none
};

// chat_template: a string, or [{"name": "default", "template": "..."}, {"name": "tool_use", ...}].
Result<Sources> sources_of(const Json& field, const std::string& path) {
  if (field.is_string()) return Sources{.main = field.get<std::string>(), .with_tools = {}};
  if (!field.is_array())
    return invalid(path + ": chat_template is neither a string nor a list of named templates");
  Sources sources;
  for (const Json& entry : field) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !entry.contains("template") || !entry["template"].is_string())
      return invalid(path + ": an entry of chat_template has no name or no template");
    if (entry["name"] == "default") sources.main = entry["template"].get<std::string>();
    if (entry["name"] == "tool_use") sources.with_tools = entry["template"].get<std::string>();
  }
  if (sources.main.empty()) return invalid(path + ": chat_template has no template named \"default\"");
  return sources;
}

// bos_token, eos_token, ...: a string, or an object with its content.
Json special_tokens_of(const Json& config) {
  Json tokens = Json::object();
  for (const auto& [key, value] : config.items()) {
    if (!key.ends_with("_token")) continue;
    if (value.is_string()) tokens[key] = value;
    if (value.is_object() && value.contains("content") && value["content"].is_string())
      tokens[key] = value["content"];
  }
  return tokens;
}

Result<Json> read_config(const std::string& path) {
  if (!entry_exists(path)) return Json::object();
  Result<std::string> text = read_text_file(path, kMaxModelTextBytes);
  if (!text) return text.error();
  Result<Json> config = parse_json<Json>(*text);
  if (!config) return invalid(path + ": " + config.error().message);
  if (!config->is_object()) return invalid(path + ": it is not a JSON object");
  return config;
}

Result<quire_template*> open_template(std::string_view source, std::string_view variables,
                                      const ChatTemplate::Limits& limits, const std::string& prefix) {
  quire_template* handle = nullptr;
  quire_text error{};
  const int code = quire_template_open(source.data(), source.size(), variables.data(), variables.size(),
                                       limits.max_steps, limits.max_output_bytes, &handle, &error);
  if (code != 0) return ffi_error(code, error, prefix);
  return handle;
}

Result<std::string> render_with(const quire_template* handle, std::string_view variables_json,
                                int64_t now_unix_s) {
  quire_text rendered{}, error{};
  const int code = quire_template_render(handle, variables_json.data(), variables_json.size(), now_unix_s,
                                         &rendered, &error);
  if (code != 0) {
    Error refusal = ffi_error(code, error);
    refusal.field = "messages";  // a template refuses what it is given
    return refusal;
  }
  return take_text(rendered);
}

int64_t unix_now_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Every text in a value goes through guard, keys of objects too.
Status guard_texts(Json& value, const Tokenizer& tokenizer) {
  if (value.is_string()) {
    Result<std::string> guarded = tokenizer.guard(value.get_ref<const std::string&>());
    if (!guarded) return guarded.error();
    value = std::move(*guarded);
  } else if (value.is_array()) {
    for (Json& item : value)
      if (Status status = guard_texts(item, tokenizer); !status) return status;
  } else if (value.is_object()) {
    Json object = Json::object();
    for (auto& [key, item] : value.items()) {
      Result<std::string> guarded = tokenizer.guard(key);
      if (!guarded) return guarded.error();
      if (Status status = guard_texts(item, tokenizer); !status) return status;
      object[*guarded] = std::move(item);
    }
    value = std::move(object);
  }
  return ok();
}

Result<Json> parse_tools(std::string_view text) {
  Result<Json> tools = parse_json<Json>(text);
  if (!tools) return invalid("tools is " + tools.error().message, "tools");
  if (!tools->is_array()) return invalid("tools is not a JSON array", "tools");
  return tools;
}

Result<Json> variables_of(std::span<const ChatMessage> messages, bool add_generation_prompt,
                          std::string_view tools_json) {
  // Hugging Face gives tools and documents always: without any they are none, not undefined.
  Json variables = {{"messages", Json::array()},
                    {"tools", nullptr},
                    {"documents", nullptr},
                    {"add_generation_prompt", add_generation_prompt}};
  for (const ChatMessage& message : messages)
    variables["messages"].push_back({{"role", message.role}, {"content", message.content}});
  if (tools_json.empty()) return variables;
  Result<Json> tools = parse_tools(tools_json);
  if (!tools) return tools.error();
  if (!tools->empty()) variables["tools"] = std::move(*tools);
  return variables;
}

bool has_tools(const Json& variables) {
  return !variables["tools"].is_null();
}

// Text that is not UTF-8 has no JSON form.
Result<std::string> to_text(const Json& json) {
  try {
    return json.dump();
  } catch (const nlohmann::json::exception&) {
    return invalid("a message is not UTF-8", "messages");
  }
}

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::open(const std::string& dir) {
  const std::string config_path = dir + "/tokenizer_config.json", file_path = dir + "/chat_template.jinja";
  Result<Json> config = read_config(config_path);
  if (!config) return config.error();
  Sources sources;
  std::string from = config_path;
  if (entry_exists(file_path)) {
    Result<std::string> file = read_text_file(file_path, kMaxModelTextBytes);
    if (!file) return file.error();
    sources.main = std::move(*file);
    from = file_path;
  } else if (config->contains("chat_template") && !(*config)["chat_template"].is_null()) {
    Result<Sources> found = sources_of((*config)["chat_template"], config_path);
    if (!found) return found.error();
    sources = std::move(*found);
  } else {
    return std::unique_ptr<ChatTemplate>();
  }
  const std::string variables = special_tokens_of(*config).dump();
  Result<quire_template*> main = open_template(sources.main, variables, Limits{}, from + ": ");
  if (!main) return main.error();
  std::unique_ptr<ChatTemplate> made(new ChatTemplate(*main, nullptr));
  if (!sources.with_tools.empty()) {
    Result<quire_template*> with_tools =
        open_template(sources.with_tools, variables, Limits{}, from + ": tool_use: ");
    if (!with_tools) return with_tools.error();
    made->with_tools_ = *with_tools;
  }
  return made;
}

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::from_source(std::string_view source,
                                                                std::string_view special_tokens_json,
                                                                Limits limits) {
  Result<quire_template*> handle = open_template(source, special_tokens_json, limits, {});
  if (!handle) return handle.error();
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(*handle, nullptr));
}

ChatTemplate::~ChatTemplate() {
  quire_template_close(main_);
  quire_template_close(with_tools_);
}

Result<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                         std::string_view tools_json) const {
  Result<Json> variables = variables_of(messages, add_generation_prompt, tools_json);
  if (!variables) return variables.error();
  Result<std::string> text = to_text(*variables);
  if (!text) return text.error();
  return render_with(template_for(has_tools(*variables)), *text, unix_now_s());
}

Result<std::vector<int32_t>> ChatTemplate::encode(const Tokenizer& tokenizer,
                                                  std::span<const ChatMessage> messages,
                                                  bool add_generation_prompt, bool special_as_text,
                                                  std::string_view tools_json, size_t max_ids) const {
  if (!special_as_text) {
    Result<std::string> rendered = render(messages, add_generation_prompt, tools_json);
    if (!rendered) return rendered.error();
    return tokenizer.encode(*rendered, /*add_special_tokens=*/false, /*special_as_text=*/false, max_ids);
  }
  Result<Json> variables = variables_of(messages, add_generation_prompt, tools_json);
  if (!variables) return variables.error();
  if (Status guarded = guard_texts(*variables, tokenizer); !guarded) return guarded.error();
  Result<std::string> text = to_text(*variables);
  if (!text) return text.error();
  Result<std::string> rendered = render_with(template_for(has_tools(*variables)), *text, unix_now_s());
  if (!rendered) return rendered.error();
  return tokenizer.encode_guarded(*rendered, max_ids);
}

Result<std::string> ChatTemplate::render_json(std::string_view variables_json, int64_t now_unix_s) const {
  return render_with(main_, variables_json, now_unix_s);
}

}  // namespace quire
