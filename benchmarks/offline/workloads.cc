// A JSON array of workloads; strict: an unknown key or a wrong type is an error that names it.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "benchmarks/offline/offline.h"

namespace quire {
namespace {

using nlohmann::json;

Error bad(const std::string& path, const std::string& why) {
  return invalid(fmt::format("{}: {}", path, why), "workloads");
}

struct Count {
  const char* name;
  int32_t OfflineOptions::* field;
};
constexpr Count kCounts[] = {{"batch", &OfflineOptions::batch},
                             {"n", &OfflineOptions::n},
                             {"prompt_tokens", &OfflineOptions::prompt_tokens},
                             {"new_tokens", &OfflineOptions::new_tokens},
                             {"shared_prefix_tokens", &OfflineOptions::shared_prefix_tokens},
                             {"rounds", &OfflineOptions::rounds}};

// Sets one field; a text on failure.
std::string set_field(const std::string& path, const std::string& key, const json& value, OfflineOptions& o) {
  for (const Count& c : kCounts) {
    if (key != c.name) continue;
    if (!value.is_number_integer())
      return fmt::format("`{}` is {}; it must be a whole number", key, value.dump());
    o.*c.field = value.get<int32_t>();
    return {};
  }
  if (key != "name" && key != "requests") return fmt::format("unknown key `{}`", key);
  if (!value.is_string()) return fmt::format("`{}` is {}; it must be a text", key, value.dump());
  if (key == "name") {
    o.name = value.get<std::string>();
    return {};
  }
  const auto file = std::filesystem::path(path).parent_path() / value.get<std::string>();
  Result<std::vector<RequestLengths>> list = read_request_list(file.string());
  if (!list) return list.error().message;
  o.requests = std::move(*list);
  return {};
}

}  // namespace

Result<std::vector<OfflineOptions>> read_workloads(const std::string& path, const OfflineOptions& base) {
  std::ifstream file(path);
  if (!file) return bad(path, "cannot be read");
  const json list = json::parse(file, nullptr, false);
  if (!list.is_array() || list.empty()) return bad(path, "must hold a JSON array of at least one workload");
  std::vector<OfflineOptions> workloads;
  for (const json& entry : list) {
    if (!entry.is_object()) return bad(path, fmt::format("{} is not an object", entry.dump()));
    OfflineOptions o = base;
    for (const auto& [key, value] : entry.items())
      if (std::string why = set_field(path, key, value, o); !why.empty()) return bad(path, why);
    workloads.push_back(std::move(o));
  }
  return workloads;
}

}  // namespace quire
