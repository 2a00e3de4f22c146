#include "src/base/json_text.h"

#include <set>
#include <vector>

#include "src/base/utf8.h"

namespace quire {

bool nests_too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') in_string = !in_string;
    if (in_string) {
      i += c == '\\' ? 1 : 0;
      continue;
    }
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kMaxJsonDepth) return true;
  }
  return false;
}

std::optional<size_t> byte_of_nul(std::string_view text) {
  const size_t at = text.find('\0');
  return at == text.npos ? std::nullopt : std::optional(at + 1);
}

std::string out_of_range_number(std::string_view what) {
  constexpr size_t kMaxShown = 40;
  const size_t begin = what.find("parsing '"), end = what.rfind('\'');
  if (begin == what.npos || end < begin + 9) return "not valid JSON: a number is out of range";
  const std::string_view number = what.substr(begin + 9, end - begin - 9);
  return "not valid JSON: the number " + std::string(number.substr(0, kMaxShown)) +
         (number.size() > kMaxShown ? "..." : "") + " is out of range";
}

std::string not_json_at(std::string_view text, size_t byte) {
  const std::optional<size_t> wrong = find_invalid_utf8(text);
  if (wrong && *wrong < byte)
    return "not valid JSON at byte " + std::to_string(*wrong + 1) + ", which is not UTF-8";
  return "not valid JSON at byte " + std::to_string(byte);
}

Result<nlohmann::json> parse_unambiguous_json(std::string_view text) {
  using Json = nlohmann::json;
  std::vector<std::set<std::string>> open;  // keys of the objects that the reader is in
  std::optional<std::string> twice;
  const auto look = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end) open.pop_back();
    if (event == Json::parse_event_t::key && !open.back().insert(value.get<std::string>()).second && !twice)
      twice = value.get<std::string>();
    return true;
  };
  Result<Json> whole = parse_json<Json>(text, look);
  if (whole && twice) return invalid("key " + shown(Json(*twice)) + " is given twice");
  return whole;
}

std::string shown(const nlohmann::json& value, size_t max_bytes) {
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return text.size() <= max_bytes ? text : text.substr(0, max_bytes) + "...";
}

}  // namespace quire
