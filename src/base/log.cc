#include "src/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cmath>

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

// Quotes for JSON; key=value lines use the same form where a text has a blank or a quote.
std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      out += fmt::format("\\u{:04x}", u);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

bool needs_quotes(std::string_view text) {
  if (text.empty()) return true;
  for (const char c : text)
    if (static_cast<unsigned char>(c) <= 0x20 || c == '"' || c == '=') return true;
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
