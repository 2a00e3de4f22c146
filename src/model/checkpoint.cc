#include "src/model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "src/base/check.h"
#include "src/base/text_file.h"
#include "src/model/field_reader.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

using WeightMap = std::map<std::string, std::set<std::string>>;  // shard's file name -> its tensors

// A shard is named by a bare file name: an index must not reach outside its directory.
bool is_bare_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

Result<WeightMap> read_index(const std::string& path) {
  const Result<std::string> text = read_text_file(path, kMaxIndexBytes);
  if (!text) return text.error();
  const Result<json> index = parse_json_object(*text, path);
  if (!index) return index.error();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty())
    return invalid(fmt::format("{}: field `weight_map` is missing or empty", path));
  WeightMap shards;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !is_bare_name(file.get<std::string>())) {
      return invalid(fmt::format("{}: tensor `{}` lies in {}; the name of a file beside the index is wanted",
                                 path, tensor, shown(file)));
    }
    shards[file.get<std::string>()].insert(tensor);
  }
  return shards;
}

// Of a tensor that the index does not list for the shard in which it lies.
Error misplaced(const SafetensorsFile& file, const std::string& tensor, const WeightMap& shards,
                const std::string& model_dir) {
  const auto named = std::ranges::find_if(shards, [&](const auto& s) { return s.second.contains(tensor); });
  if (named == shards.end())
    return invalid(fmt::format("{}: tensor `{}` is not in the index", file.path(), tensor));
  const std::string& shard = named->first;
  return invalid(fmt::format("{}: tensor `{}` lies here; the index says that it lies in {}{}", file.path(),
                             tensor, shard,
                             entry_exists(model_dir + "/" + shard) ? "" : ", which is not there"));
}

// The index and a shard must name the same tensors.
Status compare(const SafetensorsFile& file, const std::string& name, const WeightMap& shards,
               const std::string& model_dir) {
  const std::set<std::string>& listed = shards.at(name);
  size_t found = 0;
  for (const TensorView& t : file.tensors()) {
    if (!listed.contains(t.name)) return misplaced(file, t.name, shards, model_dir);
    ++found;
  }
  if (found == listed.size()) return ok();
  std::set<std::string> missing = listed;
  for (const TensorView& t : file.tensors()) missing.erase(t.name);
  return invalid(fmt::format("{}: tensor `{}` is missing; the index says that it lies here", file.path(),
                             *missing.begin()));
}

}  // namespace

Status Checkpoint::add(SafetensorsFile file) {
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const std::string& name = file.tensors()[i].name;
    const auto [it, is_new] = places_.try_emplace(name, Place{files_.size(), i});
    if (!is_new) {
      return invalid(
          fmt::format("{}: tensor `{}` is also in {}", file.path(), name, files_[it->second.file].path()));
    }
  }
  files_.push_back(std::move(file));
  return ok();
}

Status Checkpoint::open_shards(const std::string& model_dir) {
  const Result<WeightMap> shards = read_index(model_dir + "/" + kIndexFile);
  if (!shards) return shards.error();
  for (const auto& [name, tensors] : *shards) {
    Result<SafetensorsFile> file = SafetensorsFile::open(model_dir + "/" + name);
    if (!file) return file.error();
    if (Status same = compare(*file, name, *shards, model_dir); !same) return same;
    if (Status added = add(std::move(*file)); !added) return added;
  }
  return ok();
}

Result<Checkpoint> Checkpoint::open(const std::string& model_dir) {
  Checkpoint checkpoint;
  if (entry_exists(model_dir + "/" + kSingleFile)) {
    Result<SafetensorsFile> file = SafetensorsFile::open(model_dir + "/" + kSingleFile);
    if (!file) return file.error();
    if (Status added = checkpoint.add(std::move(*file)); !added) return added.error();
    return checkpoint;
  }
  if (!entry_exists(model_dir + "/" + kIndexFile)) {
    return error(Code::kNotFound, fmt::format("{}: neither {} nor {} is there (only safetensors is read)",
                                              model_dir, kSingleFile, kIndexFile));
  }
  if (Status opened = checkpoint.open_shards(model_dir); !opened) return opened.error();
  return checkpoint;
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto it = places_.find(std::string(name));
  return it == places_.end() ? nullptr : &files_[it->second.file].tensors()[it->second.tensor];
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

int64_t Checkpoint::bytes() const {
  int64_t sum = 0;
  for (const SafetensorsFile& file : files_) {
    for (const TensorView& t : file.tensors()) sum += t.bytes();
  }
  return sum;
}

const std::string& Checkpoint::file_of(const TensorView& tensor) const {
  const auto it = places_.find(tensor.name);
  check(it != places_.end(), "checkpoint: a tensor of its own is wanted");
  return files_[it->second.file].path();
}

}  // namespace quire
