#include "src/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cmath>

#include "src/base/utf8.h"

namespace quire {
namespace {

std::atomic<LogFormat> g_format{LogFormat::kKeyValue};

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("quire", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum level_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::string_view name_of(LogLevel level) {
  constexpr std::string_view names[] = {"debug", "info", "warn", "error"};
  return names[static_cast<int>(level)];
}

// Of ASCII, and those that follow it (C1): to a terminal U+009B is an escape and a bracket.
bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7f;
  return first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
}

void append_quoted(std::string& out, std::string_view character) {
  if (character == "\"" || character == "\\") {
    out += '\\';
    out += character;
  } else if (is_control(character)) {
    out += fmt::format("\\u{:04x}", static_cast<unsigned char>(character.back()));
  } else {
    out += character;
  }
}

// Quotes for JSON; key=value lines use the same form where a text has a blank or a quote. What is not UTF-8 would be no JSON.
std::string quote(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const Utf8Part part = first_part(text);
    append_quoted(out, part.kind == Utf8::kWhole ? text.substr(0, part.bytes) : "\ufffd");
    text.remove_prefix(part.bytes);
  }
  return out + "\"";
}

bool needs_quotes(std::string_view text) {
  if (text.empty()) return true;
  while (!text.empty()) {
    const Utf8Part part = first_part(text);
    const std::string_view character = text.substr(0, part.bytes);
    if (part.kind != Utf8::kWhole || is_control(character)) return true;
    if (character == " " || character == "\"" || character == "=") return true;
    text.remove_prefix(part.bytes);
  }
  return false;
}

std::string timestamp() {
  const auto now = std::chrono::system_clock::now();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  const std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
  return fmt::format("{}.{:03d}Z", date, ms % 1000);
}

}  // namespace

LogField::LogField(std::string_view k, double v)
    : key(k), text(std::isfinite(v) ? fmt::format("{:.6g}", v) : "null") {}

void configure_log(LogFormat format, LogLevel least) {
  g_format = format;
  logger().set_level(level_of(least));
}

void log_line(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (!logger().should_log(level_of(level))) return;
  std::string line;
  if (g_format == LogFormat::kJson) {
    line = fmt::format(R"({{"time":"{}","level":"{}","event":{})", timestamp(), name_of(level), quote(event));
    for (const LogField& f : fields)
      line += fmt::format(",{}:{}", quote(f.key), f.quoted ? quote(f.text) : f.text);
    line += "}";
  } else {
    line = fmt::format("time={} level={} event={}", timestamp(), name_of(level), event);
    for (const LogField& f : fields)
      line += fmt::format(" {}={}", f.key, f.quoted && needs_quotes(f.text) ? quote(f.text) : f.text);
  }
  logger().log(level_of(level), line);
}

}  // namespace quire
