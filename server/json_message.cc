#include "server/json_message.h"

#include <fmt/format.h>

#include <limits>

#include "src/base/json_text.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::json;

Status read_object(const Json& json, const std::string& path, Message& message);

Error wrong_type(const std::string& path, const char* expected, const Json& json) {
  return invalid(fmt::format("{} must be {}, not {}", path, expected, shown(json, 40)), path);
}

// The single repeated field of a message that only wraps a list.
const FieldDescriptor* wrapped_list(const Descriptor& type) {
  return type.field_count() == 1 && type.field(0)->is_repeated() ? type.field(0) : nullptr;
}

template <class Int>
Status read_integer(const Json& json, const std::string& path, Int& out) {
  const bool fits = json.is_number_unsigned()
                        ? std::in_range<Int>(json.get<uint64_t>())
                        : json.is_number_integer() && std::in_range<Int>(json.get<int64_t>());
  if (!fits) {
    const std::string expected = fmt::format("an integer from {} to {}", std::numeric_limits<Int>::min(),
                                             std::numeric_limits<Int>::max());
    return wrong_type(path, expected.c_str(), json);
  }
  out = json.get<Int>();
  return ok();
}

// Sets (or, for a list, adds) one value.
Status read_value(const Json& json, const std::string& path, Message& message, const FieldDescriptor& field) {
  const Reflection& fields = *message.GetReflection();
  const bool add = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      int32_t value = 0;
      if (Status s = read_integer(json, path, value); !s) return s;
      add ? fields.AddInt32(&message, &field, value) : fields.SetInt32(&message, &field, value);
      return ok();
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t value = 0;
      if (Status s = read_integer(json, path, value); !s) return s;
      add ? fields.AddInt64(&message, &field, value) : fields.SetInt64(&message, &field, value);
      return ok();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value = 0;
      if (Status s = read_integer(json, path, value); !s) return s;
      add ? fields.AddUInt64(&message, &field, value) : fields.SetUInt64(&message, &field, value);
      return ok();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
      if (!json.is_number()) return wrong_type(path, "a number", json);
      add ? fields.AddDouble(&message, &field, json.get<double>())
          : fields.SetDouble(&message, &field, json.get<double>());
      return ok();
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!json.is_boolean()) return wrong_type(path, "true or false", json);
      add ? fields.AddBool(&message, &field, json.get<bool>())
          : fields.SetBool(&message, &field, json.get<bool>());
      return ok();
    case FieldDescriptor::CPPTYPE_STRING:
      if (!json.is_string()) return wrong_type(path, "a string", json);
      add ? fields.AddString(&message, &field, json.get<std::string>())
          : fields.SetString(&message, &field, json.get<std::string>());
      return ok();
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return read_object(
          json, path, add ? *fields.AddMessage(&message, &field) : *fields.MutableMessage(&message, &field));
    default:
      return invalid(fmt::format("{} cannot be written in JSON", path), path);
  }
}

Status read_list(const Json& json, const std::string& path, Message& message, const FieldDescriptor& field) {
  if (!json.is_array()) return wrong_type(path, "a list", json);
  for (size_t i = 0; i < json.size(); ++i)
    if (Status s = read_value(json[i], fmt::format("{}[{}]", path, i), message, field); !s) return s;
  return ok();
}

// {"12": -1.5} as entries of map<int32, double>.
Status read_map(const Json& json, const std::string& path, Message& message, const FieldDescriptor& field) {
  if (!json.is_object()) return wrong_type(path, "an object of token ids and numbers", json);
  for (const auto& [key, value] : json.items()) {
    const std::string entry_path = path + "." + key;
    const bool is_integer = key.find_first_not_of("-0123456789") == key.npos;
    const Json id = is_integer ? Json::parse(key, nullptr, false) : Json();
    if (!id.is_number_integer()) return invalid(fmt::format("{}: '{}' is not a token id", path, key), path);
    Message& entry = *message.GetReflection()->AddMessage(&message, &field);
    if (Status s = read_value(id, entry_path, entry, *field.message_type()->map_key()); !s) return s;
    if (Status s = read_value(value, entry_path, entry, *field.message_type()->map_value()); !s) return s;
  }
  return ok();
}

Status read_field(const Json& json, const std::string& path, Message& message, const FieldDescriptor& field) {
  if (field.is_map()) return read_map(json, path, message, field);
  if (field.is_repeated()) return read_list(json, path, message, field);
  if (const auto* one_of = field.real_containing_oneof();
      one_of != nullptr && message.GetReflection()->HasOneof(message, one_of))
    return invalid(fmt::format("{}: a {} is given already", path, one_of->name()), path);
  return read_value(json, path, message, field);
}

Status read_object(const Json& json, const std::string& path, Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  if (const FieldDescriptor* list = wrapped_list(type); list != nullptr && !json.is_object())
    return read_list(json, path, message, *list);
  if (!json.is_object()) return wrong_type(path.empty() ? "the request" : path, "an object", json);
  for (const auto& [key, value] : json.items()) {
    const std::string field_path = path.empty() ? key : path + "." + key;
    const FieldDescriptor* field = type.FindFieldByName(key);
    if (field == nullptr) return invalid(fmt::format("unknown field '{}'", field_path), field_path);
    if (Status s = read_field(value, field_path, message, *field); !s) return s;
  }
  return ok();
}

// The short forms of a hand-written line, moved to where the wire has them.
Result<Json> to_wire_shape(const Json& line) {
  const Descriptor& sampling_type = *v1::SamplingParams::descriptor();
  Json out = Json::object();
  Json sampling = Json::object();
  for (const auto& [key, value] : line.items()) {
    const bool is_prompt = key == "prompt" || key == "prompt_ids" || key == "prompt_token_ids";
    if (is_prompt && !value.is_array() && !(key == "prompt" && value.is_string()))
      return wrong_type(key, key == "prompt" ? "a text or a list of token ids" : "a list of token ids",
                        value);
    const std::string name = !is_prompt ? key : key == "prompt" && value.is_string() ? "text" : "token_ids";
    if (name == "sampling") {
      if (!value.is_object()) return wrong_type(key, "an object", value);
      for (const auto& [field, nested] : value.items())
        if (!sampling.emplace(field, nested).second)
          return invalid(fmt::format("sampling.{} is given twice", field), "sampling." + field);
    } else if (sampling_type.FindFieldByName(name) != nullptr) {
      if (!sampling.emplace(name, value).second)
        return invalid(fmt::format("sampling.{} is given twice", name), "sampling." + name);
    } else if (!out.emplace(name, value).second) {
      return invalid(fmt::format("{} is given twice", key), key);
    }
  }
  if (!sampling.empty()) out["sampling"] = std::move(sampling);
  return out;
}

}  // namespace

Result<v1::GenerateRequest> request_from_json(std::string_view text) {
  if (const auto offset = find_invalid_utf8(text))
    return invalid(fmt::format("not UTF-8 at byte {}", *offset));
  const Result<Json> line = parse_unambiguous_json(text);
  if (!line) return line.error();
  if (!line->is_object()) return wrong_type("the request", "an object", *line);
  const Result<Json> shaped = to_wire_shape(*line);
  if (!shaped) return shaped.error();
  v1::GenerateRequest request;
  if (Status s = read_object(*shaped, "", request); !s) return s.error();
  return request;
}

}  // namespace quire::server
