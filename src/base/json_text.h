// JSON that others wrote, into a tree and into messages. nlohmann's dump, copy and comparison descend by recursion, so how deep a
// text may nest is bounded before it becomes a tree. Whoever includes this links nlohmann_json.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "quire/result.h"

namespace quire {

inline constexpr int kMaxJsonDepth = 64;  // of arrays and objects

// Whether brackets outside strings nest deeper than that. Of a text that is not JSON: up to its first fault at least.
bool nests_too_deep(std::string_view text);

// "not valid JSON: the number 1e400 is out of range", of what nlohmann says of it.
std::string out_of_range_number(std::string_view what);

// The first byte 0, counted from 1: JSON has it nowhere, and nlohmann takes it for the end of the text.
std::optional<size_t> byte_of_nul(std::string_view text);

// "not valid JSON at byte 7", counted from 1, with what is there where it is no UTF-8.
std::string not_json_at(std::string_view text, size_t byte);

// kInvalidArgument: "not valid JSON at byte 7", "nested more than 64 deep", or a number beyond every range.
template <class Json = nlohmann::json>
Result<Json> parse_json(std::string_view text, const typename Json::parser_callback_t& look = nullptr) {
  if (const auto at = byte_of_nul(text))
    return invalid("not valid JSON at byte " + std::to_string(*at) + ", a NUL byte");
  if (nests_too_deep(text)) return invalid("nested more than " + std::to_string(kMaxJsonDepth) + " deep");
  try {
    return Json::parse(text.begin(), text.end(), look);
  } catch (const typename Json::parse_error& e) {  // its text quotes the file's bytes, which may be anything
    return invalid(not_json_at(text, e.byte));
  } catch (const typename Json::exception& e) {
    return invalid(out_of_range_number(e.what()));
  }
}

// Of a hand-written text: a key that an object has twice is an error too.
Result<nlohmann::json> parse_unambiguous_json(std::string_view text);

// A parsed value for a message: at most max_bytes of its JSON, in ASCII.
std::string shown(const nlohmann::json& value, size_t max_bytes = 60);

}  // namespace quire
