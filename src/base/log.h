// One line per event, key=value or JSON, to standard error. Ids in every line, prompts never.
// log_line(LogLevel::kInfo, "request_end", {{"id", 7}, {"tokens", 12}}) from any thread.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace quire {

enum class LogLevel { kDebug, kInfo, kWarn, kError };
enum class LogFormat { kKeyValue, kJson };

struct LogField {
  LogField(std::string_view k, std::string_view v) : key(k), text(v), quoted(true) {}
  LogField(std::string_view k, const char* v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, const std::string& v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, bool v) : key(k), text(v ? "true" : "false") {}
  LogField(std::string_view k, int v) : key(k), text(std::to_string(v)) {}
  LogField(std::string_view k, int64_t v) : key(k), text(std::to_string(v)) {}
  LogField(std::string_view k, uint64_t v) : key(k), text(std::to_string(v)) {}
  LogField(std::string_view k, double v);

  std::string key, text;
  bool quoted = false;
};

void configure_log(LogFormat format, LogLevel least);
void log_line(LogLevel level, std::string_view event, std::initializer_list<LogField> fields);

}  // namespace quire
