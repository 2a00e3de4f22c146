// Tells two models apart whose K and V must not be mixed: what of them outlives a process bears it.
#pragma once

#include <cstdint>
#include <string>

#include "quire/result.h"

namespace quire {

// Of config.json and of every tensor's name, dtype, shape and a sample of its bytes: two checkpoints of one
// shape, one of them trained on, differ in every tensor that training touched. For random weights of the config
// and `weights` (EngineConfig::weights) alone. Reads a few pages of each tensor.
Result<uint64_t> model_fingerprint(const std::string& model_dir, const std::string& weights);

}  // namespace quire
