#include "benchmarks/traces/servegen.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "src/base/random.h"

namespace quire {
namespace {

constexpr double kWindowSeconds = 600;

enum class Gaps { kGamma, kWeibull };

struct Window {
  double start_s = 0, rate = 0;
  Gaps gaps = Gaps::kGamma;
  double shape = 0, scale = 0;
};

// Lengths by cumulative share.
struct Histogram {
  std::vector<std::pair<double, int32_t>> cumulative;

  int32_t draw(Random& random) const {
    const double at = random.uniform() * cumulative.back().first;
    const auto found = std::lower_bound(cumulative.begin(), cumulative.end(), at,
                                        [](const auto& entry, double x) { return entry.first < x; });
    return found == cumulative.end() ? cumulative.back().second : found->second;
  }
};

struct Lengths {
  double start_s = 0;
  Histogram prompt, output;
};

double draw_normal(Random& random) {  // Box-Muller
  const double u = std::max(random.uniform(), 1e-300), v = random.uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

// Marsaglia and Tsang, "A simple method for generating gamma variables" (2000); below shape 1 by their boosting step.
double draw_gamma(Random& random, double shape) {
  if (shape < 1)
    return draw_gamma(random, shape + 1) * std::pow(std::max(random.uniform(), 1e-300), 1 / shape);
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  while (true) {
    const double x = draw_normal(random), v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(std::max(random.uniform(), 1e-300)) < 0.5 * x * x + d - d * v + d * std::log(v))
      return d * v;
  }
}

double draw_gap(Random& random, const Window& w) {
  if (w.gaps == Gaps::kGamma) return w.scale * draw_gamma(random, w.shape);
  return w.scale * std::pow(-std::log(std::max(random.uniform(), 1e-300)), 1 / w.shape);
}

// All of the text, and finite.
std::optional<double> number_in(const std::string& text) {
  double number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc() || end != text.data() + text.size() || !std::isfinite(number))
    return std::nullopt;
  return number;
}

// "start,rate,cv,Gamma|Weibull,shape,scale"; a window without requests has no distribution and is left out.
Result<std::vector<Window>> parse_windows(const std::string& csv, const std::string& name) {
  std::vector<Window> windows;
  size_t line_number = 0;
  for (size_t at = 0; at < csv.size();) {
    const size_t end = std::min(csv.find('\n', at), csv.size());
    std::string line = csv.substr(at, end - at);
    if (line.ends_with('\r')) line.pop_back();
    at = end + 1;
    ++line_number;
    std::vector<std::string> fields;
    for (size_t from = 0; from <= line.size();) {
      const size_t comma = std::min(line.find(',', from), line.size());
      fields.push_back(line.substr(from, comma - from));
      from = comma + 1;
    }
    if (fields.size() != 6) return invalid(fmt::format("{}:{}: six fields are expected", name, line_number));
    if (fields[3].empty()) continue;
    if (fields[3] != "Gamma" && fields[3] != "Weibull")
      return invalid(fmt::format("{}:{}: unknown distribution '{}'", name, line_number, fields[3]));
    const std::optional<double> start = number_in(fields[0]), rate = number_in(fields[1]),
                                shape = number_in(fields[4]), scale = number_in(fields[5]);
    if (!start || *start < 0 || !rate || !shape || !scale)
      return invalid(fmt::format("{}:{}: start, rate, shape and scale must be numbers", name, line_number));
    const Window w{.start_s = *start,
                   .rate = *rate,
                   .gaps = fields[3] == "Gamma" ? Gaps::kGamma : Gaps::kWeibull,
                   .shape = *shape,
                   .scale = *scale};
    if (!(w.shape > 0) || !(w.scale > 0))
      return invalid(fmt::format("{}:{}: shape and scale must be above 0", name, line_number));
    windows.push_back(w);
  }
  return windows;
}

// The histograms are Python dictionaries in a string: "{4: 7.2e-05, 5: 0.00016}".
Result<Histogram> parse_histogram(const std::string& text, const std::string& name) {
  if (text.size() < 2 || text.front() != '{' || text.back() != '}')
    return invalid(fmt::format("{}: a histogram does not stand in braces", name));
  Histogram histogram;
  double sum = 0;
  for (size_t at = 1; at < text.size() - 1;) {
    char* end = nullptr;
    const long length = std::strtol(text.c_str() + at, &end, 10);
    if (end == text.c_str() + at || *end != ':')
      return invalid(fmt::format("{}: a histogram is not of the form {{length: share, ...}}", name));
    const char* share_text = end + 1;
    const double share = std::strtod(share_text, &end);
    if (end == share_text || !(share >= 0) || length < 0 || length > (1 << 24))
      return invalid(fmt::format("{}: a histogram entry is out of range", name));
    sum += share;
    histogram.cumulative.emplace_back(sum, static_cast<int32_t>(length));
    at = static_cast<size_t>(end - text.c_str());
    while (at < text.size() && (text[at] == ',' || text[at] == ' ')) ++at;
  }
  if (!(sum > 0)) return invalid(fmt::format("{}: a histogram is empty", name));
  return histogram;
}

Result<std::vector<Lengths>> parse_lengths(const std::string& text, const std::string& name) {
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& e) {
    const size_t at = std::min(e.byte, text.size());
    return invalid(
        fmt::format("{}:{}: not JSON", name, 1 + std::count(text.begin(), text.begin() + at, '\n')));
  }
  if (!object.is_object()) return invalid(fmt::format("{}:1: not a JSON object", name));
  std::vector<Lengths> all;
  for (const auto& [start, entry] : object.items()) {
    const bool shaped = entry.is_object() && entry.contains("input_tokens") &&
                        entry["input_tokens"].is_string() && entry.contains("output_tokens") &&
                        entry["output_tokens"].is_string();
    if (!shaped) return invalid(fmt::format("{}: '{}' lacks input_tokens or output_tokens", name, start));
    // a window without requests
    if (entry["input_tokens"] == "{}" || entry["output_tokens"] == "{}") continue;
    const std::optional<double> seconds = number_in(start);
    if (!seconds) return invalid(fmt::format("{}: '{}' is no window's start in seconds", name, start));
    const std::string of = fmt::format("{}, window {}", name, start);
    Result<Histogram> prompt = parse_histogram(entry["input_tokens"], of),
                      output = parse_histogram(entry["output_tokens"], of);
    if (!prompt) return prompt.error();
    if (!output) return output.error();
    all.push_back({.start_s = *seconds, .prompt = std::move(*prompt), .output = std::move(*output)});
  }
  if (all.empty()) return invalid(fmt::format("{}: no lengths in any window", name));
  std::sort(all.begin(), all.end(), [](const Lengths& a, const Lengths& b) { return a.start_s < b.start_s; });
  return all;
}

const Lengths& lengths_at(const std::vector<Lengths>& all, double seconds) {
  const Lengths* found = &all.front();
  for (const Lengths& l : all)
    if (l.start_s <= seconds) found = &l;
  return *found;
}

void draw_client(const std::vector<Window>& windows, const std::vector<Lengths>& lengths, double until_s,
                 Random& random, Trace& trace) {
  for (const Window& w : windows) {
    const double end = std::min(w.start_s + kWindowSeconds, until_s);
    for (double t = w.start_s + draw_gap(random, w); t < end; t += draw_gap(random, w)) {
      const Lengths& at = lengths_at(lengths, t);
      trace.requests.push_back({.arrival_us = static_cast<int64_t>(t * 1e6),
                                .prompt_tokens = std::max(1, at.prompt.draw(random)),
                                .output_tokens = std::max(1, at.output.draw(random)),
                                .prefix_pieces = {}});
    }
  }
}

}  // namespace

Result<Trace> draw_servegen(const std::vector<std::pair<std::string, std::string>>& files,
                            const std::string& path, const TraceOptions& options) {
  const std::map<std::string, std::string> by_name(files.begin(), files.end());
  const std::string suffix = "-trace.csv";
  Trace trace;
  Random random(options.seed);
  for (const auto& [name, content] : by_name) {
    if (!name.ends_with(suffix)) continue;
    const std::string partner = name.substr(0, name.size() - suffix.size()) + "-dataset.json";
    const auto dataset = by_name.find(partner);
    if (dataset == by_name.end()) return invalid(fmt::format("{}: '{}' has no '{}'", path, name, partner));
    const Result<std::vector<Window>> windows = parse_windows(content, path + "/" + name);
    const Result<std::vector<Lengths>> lengths = parse_lengths(dataset->second, path + "/" + partner);
    if (!windows) return windows.error();
    if (!lengths) return lengths.error();
    draw_client(*windows, *lengths, options.max_seconds, random, trace);
  }
  return trace;
}

}  // namespace quire
