#include "benchmarks/offline/request_list.h"

#include <fmt/format.h>

#include <charconv>
#include <fstream>
#include <optional>
#include <string_view>

#include "benchmarks/offline/offline.h"

namespace quire {
namespace {

constexpr std::string_view kHeader = "prompt_tokens,output_tokens";

std::optional<int32_t> parse_count(std::string_view text) {
  int32_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxOfflineTokens)
    return {};
  return value;
}

std::optional<RequestLengths> parse_line(std::string_view line) {
  const size_t comma = line.find(',');
  if (comma == std::string_view::npos) return {};
  const std::optional<int32_t> prompt = parse_count(line.substr(0, comma)),
                               output = parse_count(line.substr(comma + 1));
  if (!prompt || !output) return {};
  return RequestLengths{.prompt_tokens = *prompt, .new_tokens = *output};
}

}  // namespace

Result<std::vector<RequestLengths>> read_request_list(const std::string& path) {
  std::ifstream file(path);
  if (!file) return invalid(fmt::format("{}: cannot be read", path), "requests");
  std::vector<RequestLengths> requests;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || (number == 1 && line == kHeader)) continue;
    const std::optional<RequestLengths> lengths = parse_line(line);
    if (!lengths)
      return invalid(fmt::format("{} line {} is `{}`; wanted two counts from 1 to {}, as in `{}`", path,
                                 number, line.substr(0, 80), kMaxOfflineTokens, kHeader),
                     "requests");
    if (requests.size() == kMaxOfflineRequests)
      return invalid(fmt::format("{} holds more than {} requests", path, kMaxOfflineRequests), "requests");
    requests.push_back(*lengths);
  }
  if (requests.empty()) return invalid(fmt::format("{} holds no requests", path), "requests");
  return requests;
}

}  // namespace quire
