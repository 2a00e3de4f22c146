#include "benchmarks/traces/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "benchmarks/traces/file.h"
#include "benchmarks/traces/servegen.h"
#include "src/base/random.h"

namespace quire {
namespace {

constexpr int32_t kMooncakePieceTokens = 512;
constexpr int32_t kMostTokens = 1 << 24;
constexpr int64_t kMostMs = 100'000'000'000'000;  // since whatever a trace counts from

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.push_back(line);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
  }
  return lines;
}

Error at_line(const std::string& path, size_t line, const std::string& why) {
  return invalid(fmt::format("{}:{}: {}", path, line, why));
}

template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<int32_t> parse_tokens(std::string_view text) {
  const std::optional<int32_t> tokens = parse_number<int32_t>(text);
  return tokens && *tokens >= 0 && *tokens <= kMostTokens ? tokens : std::nullopt;
}

// "2023-11-16" to days since 1970.
std::optional<int64_t> parse_date(std::string_view date) {
  if (date[4] != '-' || date[7] != '-') return std::nullopt;
  const auto year = parse_number<int32_t>(date.substr(0, 4));
  const auto month = parse_number<uint32_t>(date.substr(5, 2)),
             day = parse_number<uint32_t>(date.substr(8, 2));
  if (!year || !month || !day) return std::nullopt;
  const std::chrono::year_month_day calendar{std::chrono::year(*year), std::chrono::month(*month),
                                             std::chrono::day(*day)};
  if (!calendar.ok()) return std::nullopt;
  return std::chrono::sys_days(calendar).time_since_epoch().count();
}

// "2023-11-16 18:15:46.6805900" to microseconds since 1970.
std::optional<int64_t> parse_time(std::string_view stamp) {
  if (stamp.size() < 19 || stamp[10] != ' ' || stamp[13] != ':' || stamp[16] != ':') return std::nullopt;
  const std::optional<int64_t> days = parse_date(stamp.substr(0, 10));
  const auto hours = parse_number<uint32_t>(stamp.substr(11, 2)),
             minutes = parse_number<uint32_t>(stamp.substr(14, 2));
  const auto seconds = parse_number<double>(stamp.substr(17));
  const bool told =
      days && hours && *hours < 24 && minutes && *minutes < 60 && seconds && *seconds >= 0 && *seconds < 61;
  if (!told) return std::nullopt;
  return ((*days * 24 + *hours) * 60 + *minutes) * 60'000'000 + static_cast<int64_t>(*seconds * 1e6);
}

Result<Trace> parse_azure(const std::string& text, const std::string& path) {
  Trace trace;
  const std::vector<std::string_view> lines = lines_of(text);
  if (lines.empty() || lines[0] != "TIMESTAMP,ContextTokens,GeneratedTokens")
    return at_line(path, 1, "the header must be TIMESTAMP,ContextTokens,GeneratedTokens");
  for (size_t i = 1; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    const size_t first = lines[i].find(','), second = lines[i].find(',', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos)
      return at_line(path, i + 1, "three fields are expected");
    const auto when = parse_time(lines[i].substr(0, first));
    const auto prompt = parse_tokens(lines[i].substr(first + 1, second - first - 1)),
               output = parse_tokens(lines[i].substr(second + 1));
    if (!when || !prompt || !output)
      return at_line(path, i + 1, fmt::format("'{}' is not a time stamp and two token counts", lines[i]));
    trace.requests.push_back(
        {.arrival_us = *when, .prompt_tokens = *prompt, .output_tokens = *output, .prefix_pieces = {}});
  }
  return trace;
}

Result<TraceRequest> parse_mooncake_line(std::string_view line, const std::string& path, size_t number) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  const bool shaped = object.is_object() && object.contains("timestamp") &&
                      object["timestamp"].is_number_integer() && object.contains("input_length") &&
                      object["input_length"].is_number_integer() && object.contains("output_length") &&
                      object["output_length"].is_number_integer() && object.contains("hash_ids") &&
                      object["hash_ids"].is_array();
  if (!shaped)
    return at_line(path, number, "timestamp, input_length, output_length and hash_ids are expected");
  TraceRequest request;
  const auto when_ms = object["timestamp"].get<int64_t>();
  if (when_ms < 0 || when_ms > kMostMs)
    return at_line(path, number,
                   fmt::format("timestamp is {}; it must be from 0 to {} ms", when_ms, kMostMs));
  request.arrival_us = when_ms * 1000;
  const auto prompt = object["input_length"].get<int64_t>(), output = object["output_length"].get<int64_t>();
  if (prompt < 0 || prompt > kMostTokens || output < 0 || output > kMostTokens)
    return at_line(path, number, fmt::format("a count is out of range (0 to {})", kMostTokens));
  request.prompt_tokens = static_cast<int32_t>(prompt);
  request.output_tokens = static_cast<int32_t>(output);
  for (const nlohmann::json& id : object["hash_ids"]) {
    if (!id.is_number_integer()) return at_line(path, number, "hash_ids must be whole numbers");
    request.prefix_pieces.push_back(id.get<uint64_t>());
  }
  const size_t needed = (static_cast<size_t>(prompt) + kMooncakePieceTokens - 1) / kMooncakePieceTokens;
  if (request.prefix_pieces.size() != needed)
    return at_line(
        path, number,
        fmt::format("input_length {} takes {} hash_ids, one for each {} tokens begun, and there are {}",
                    prompt, needed, kMooncakePieceTokens, request.prefix_pieces.size()));
  return request;
}

Result<Trace> parse_mooncake(const std::string& text, const std::string& path) {
  Trace trace{.requests = {}, .prefix_piece_tokens = kMooncakePieceTokens};
  const std::vector<std::string_view> lines = lines_of(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    Result<TraceRequest> request = parse_mooncake_line(lines[i], path, i + 1);
    if (!request) return request.error();
    trace.requests.push_back(std::move(*request));
  }
  return trace;
}

Result<Trace> parse_servegen(const std::string& archive, const std::string& path,
                             const TraceOptions& options) {
  const auto files = untar(archive, path);
  if (!files) return files.error();
  return draw_servegen(*files, path, options);
}

void order_and_cut(Trace& trace, const TraceOptions& options) {
  std::stable_sort(trace.requests.begin(), trace.requests.end(),
                   [](const TraceRequest& a, const TraceRequest& b) { return a.arrival_us < b.arrival_us; });
  if (options.max_requests > 0 && trace.requests.size() > static_cast<size_t>(options.max_requests))
    trace.requests.resize(static_cast<size_t>(options.max_requests));
  if (trace.requests.empty()) return;
  const int64_t start = trace.requests.front().arrival_us;
  for (TraceRequest& request : trace.requests) request.arrival_us -= start;
}

}  // namespace

Result<TraceFormat> parse_trace_format(std::string_view name) {
  if (name == "azure") return TraceFormat::kAzure;
  if (name == "mooncake") return TraceFormat::kMooncake;
  if (name == "servegen") return TraceFormat::kServeGen;
  return invalid(fmt::format("unknown trace format '{}'; known: azure, mooncake, servegen", name),
                 "trace_format");
}

Result<Trace> read_trace(const std::string& path, TraceFormat format, const TraceOptions& options) {
  const Result<std::string> text = read_file(path);
  if (!text) return text.error();
  Result<Trace> trace = format == TraceFormat::kAzure      ? parse_azure(*text, path)
                        : format == TraceFormat::kMooncake ? parse_mooncake(*text, path)
                                                           : parse_servegen(*text, path, options);
  if (!trace) return trace;
  if (trace->requests.empty()) return invalid(fmt::format("'{}' holds no requests", path));
  order_and_cut(*trace, options);
  return trace;
}

std::vector<int32_t> prompt_of(const Trace& trace, size_t request, int32_t vocab_size) {
  const TraceRequest& from = trace.requests[request];
  std::vector<int32_t> tokens(static_cast<size_t>(from.prompt_tokens));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t piece = trace.prefix_piece_tokens > 0 ? i / static_cast<size_t>(trace.prefix_piece_tokens)
                                                       : from.prefix_pieces.size();
    const bool shared = piece < from.prefix_pieces.size();
    // The top bit keeps a request's own tokens apart from every shared piece.
    const uint64_t source = shared ? from.prefix_pieces[piece] : (uint64_t{1} << 63) | request;
    const uint64_t place = shared ? i % static_cast<size_t>(trace.prefix_piece_tokens) : i;
    tokens[i] = static_cast<int32_t>(
        Random(source * 0x9E3779B97F4A7C15ull + place).below(static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

}  // namespace quire
