// Reads the fields of one JSON object with types and limits. The first fault is kept and later reads give
// their fallback, so a caller reads everything and looks once. A field that is null counts as absent.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "quire/result.h"
#include "src/base/json_text.h"

namespace quire {

class FieldReader {
 public:
  // `where` begins each message: "config.json", "config.json: rope_scaling". `object` must outlive the
  // reader.
  FieldReader(const nlohmann::json& object, std::string where);

  const std::string& where() const { return where_; }
  bool has(std::string_view name) const;  // present and not null
  bool was_read(std::string_view name) const { return read_.contains(name); }
  // The field if it is there and not null; it then counts as read.
  const nlohmann::json* take(std::string_view name);

  // Without a fallback an absent field is a fault.
  int64_t integer(std::string_view name, int64_t low, int64_t high, std::optional<int64_t> fallback = {});
  double number(std::string_view name, double low, double high, std::optional<double> fallback = {});
  std::optional<double> optional_number(std::string_view name, double low, double high);
  bool boolean(std::string_view name, bool fallback);
  std::string text(std::string_view name, std::optional<std::string> fallback = {});
  std::vector<int64_t> integers(std::string_view name, int64_t low,
                                int64_t high);            // one or a list; absent: none
  std::vector<std::string> texts(std::string_view name);  // absent: none

  void fail(Code code, std::string message);  // "where: message"
  void fail_with(Error fault);                // a fault of an inner object, its place already in the message
  const std::optional<Error>& fault() const { return fault_; }
  std::vector<std::string> unread() const;  // names of non-null fields that nobody asked for, in order

 private:
  void fail_type(std::string_view name, const nlohmann::json& value, std::string_view wanted);
  int64_t checked_integer(std::string_view name, const nlohmann::json& value, int64_t low, int64_t high);

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string, std::less<>> read_;
  std::optional<Error> fault_;
};

// `text` as one JSON object, or an Error that begins with `where`.
Result<nlohmann::json> parse_json_object(std::string_view text, std::string_view where);

}  // namespace quire
