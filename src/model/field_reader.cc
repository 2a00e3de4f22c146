#include "src/model/field_reader.h"

#include <fmt/format.h>

#include <cmath>

namespace quire {

using nlohmann::json;

Result<json> parse_json_object(std::string_view text, std::string_view where) {
  Result<json> value = parse_unambiguous_json(text);
  if (!value) return invalid(fmt::format("{}: {}", where, value.error().message));
  if (!value->is_object())
    return invalid(fmt::format("{}: a JSON object is wanted, got {}", where, shown(*value)));
  return value;
}

FieldReader::FieldReader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

bool FieldReader::has(std::string_view name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

const json* FieldReader::take(std::string_view name) {
  read_.emplace(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void FieldReader::fail(Code code, std::string message) {
  if (!fault_) fault_ = error(code, fmt::format("{}: {}", where_, message));
}

void FieldReader::fail_with(Error fault) {
  if (!fault_) fault_ = std::move(fault);
}

void FieldReader::fail_type(std::string_view name, const json& value, std::string_view wanted) {
  fail(Code::kInvalidArgument, fmt::format("field `{}` is {}; {} is wanted", name, shown(value), wanted));
}

int64_t FieldReader::checked_integer(std::string_view name, const json& value, int64_t low, int64_t high) {
  // Written by hand or by a float-only writer, 4096 may read 4096.0; past 2^53 a double no longer names one
  // integer.
  const bool whole_float = value.is_number_float() && std::abs(value.get<double>()) < 9007199254740992.0 &&
                           value.get<double>() == std::floor(value.get<double>());
  if (!value.is_number_integer() && !whole_float) {
    fail_type(name, value, "an integer");
    return low;
  }
  const bool above_int64 =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t n = above_int64   ? INT64_MAX
                    : whole_float ? static_cast<int64_t>(value.get<double>())
                                  : value.get<int64_t>();
  if (above_int64 || n < low || n > high) {
    fail(Code::kInvalidArgument,
         fmt::format("field `{}` is {}; it must be from {} to {}", name, shown(value), low, high));
    return low;
  }
  return n;
}

int64_t FieldReader::integer(std::string_view name, int64_t low, int64_t high,
                             std::optional<int64_t> fallback) {
  const json* value = take(name);
  if (value != nullptr) return checked_integer(name, *value, low, high);
  if (!fallback) fail(Code::kInvalidArgument, fmt::format("field `{}` is missing", name));
  return fallback.value_or(low);
}

std::optional<double> FieldReader::optional_number(std::string_view name, double low, double high) {
  const json* value = take(name);
  if (value == nullptr) return {};
  if (!value->is_number()) {
    fail_type(name, *value, "a number");
    return {};
  }
  const double x = value->get<double>();
  if (!(x >= low && x <= high)) {
    fail(Code::kInvalidArgument,
         fmt::format("field `{}` is {}; it must be from {} to {}", name, shown(*value), low, high));
    return {};
  }
  return x;
}

double FieldReader::number(std::string_view name, double low, double high, std::optional<double> fallback) {
  if (!has(name) && !fallback) fail(Code::kInvalidArgument, fmt::format("field `{}` is missing", name));
  return optional_number(name, low, high).value_or(fallback.value_or(low));
}

bool FieldReader::boolean(std::string_view name, bool fallback) {
  const json* value = take(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    fail_type(name, *value, "true or false");
    return fallback;
  }
  return value->get<bool>();
}

std::string FieldReader::text(std::string_view name, std::optional<std::string> fallback) {
  const json* value = take(name);
  if (value == nullptr) {
    if (!fallback) fail(Code::kInvalidArgument, fmt::format("field `{}` is missing", name));
    return fallback.value_or("");
  }
  if (!value->is_string()) {
    fail_type(name, *value, "a string");
    return fallback.value_or("");
  }
  return value->get<std::string>();
}

std::vector<int64_t> FieldReader::integers(std::string_view name, int64_t low, int64_t high) {
  const json* value = take(name);
  if (value == nullptr) return {};
  if (!value->is_array()) return {checked_integer(name, *value, low, high)};
  std::vector<int64_t> out;
  for (const json& item : *value) out.push_back(checked_integer(name, item, low, high));
  return out;
}

std::vector<std::string> FieldReader::texts(std::string_view name) {
  const json* value = take(name);
  std::vector<std::string> out;
  if (value == nullptr) return out;
  if (!value->is_array()) fail_type(name, *value, "a list of strings");
  for (const json& item : *value) {
    if (item.is_string())
      out.push_back(item.get<std::string>());
    else
      fail_type(name, *value, "a list of strings");
  }
  return out;
}

std::vector<std::string> FieldReader::unread() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!value.is_null() && !read_.contains(name)) names.push_back(name);
  }
  return names;
}

}  // namespace quire
