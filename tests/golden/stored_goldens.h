// Where a model's stored goldens and the model are: the demo model's and the families' in this repository, so that a clone with no data
// folder beside it has them; the others' in the data folder.
#pragma once

#include <filesystem>
#include <string>

#include "tests/golden/engine_rig.h"

namespace quire::golden {

constexpr const char* kDemoModel = "recall-9M";  // the name of models/demo where there are others

inline std::string family_directory(const std::string& model) {
  return root_dir() + "/tests/golden/families/" + model;
}
inline bool is_family(const std::string& model) {
  return std::filesystem::is_directory(family_directory(model));
}

inline std::string goldens_of(const std::string& model) {
  if (is_family(model)) return family_directory(model) + "/golden.json";
  const bool is_demo = model == kDemoModel;
  return (is_demo ? root_dir() + "/tests/golden/demo/" : shared_data() + "/goldens/") + model + ".json";
}
inline std::string directory_of(const std::string& model) {
  if (is_family(model)) return family_directory(model);
  return model == kDemoModel ? root_dir() + "/models/demo" : shared_data() + "/models/" + model;
}

}  // namespace quire::golden
