// The tensors of a model directory by name: model.safetensors, or the shards that
// model.safetensors.index.json names.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "quire/result.h"
#include "src/model/safetensors.h"

namespace quire {

class Checkpoint {
 public:
  static Result<Checkpoint> open(const std::string& model_dir);

  const TensorView* find(std::string_view name) const;  // null when there is none
  std::vector<std::string> names() const;               // sorted
  int64_t bytes() const;                                // of all tensors
  // For messages: the file a tensor came from.
  const std::string& file_of(const TensorView& tensor) const;

 private:
  Status add(SafetensorsFile file);
  Status open_shards(const std::string& model_dir);

  struct Place {
    size_t file = 0, tensor = 0;
  };
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, Place> places_;
};

}  // namespace quire
