// Tells two models apart whose K and V must not be mixed: what of them outlives a process bears it.
#pragma once

#include <cstdint>
#include <string>

#include "quire/result.h"

namespace quire {

// Of config.json and of every tensor's name, dtype, shape and bytes. For random weights of the config and `weights`
// (EngineConfig::weights) alone. Reads the whole checkpoint, which is about to be read anyway.
Result<uint64_t> model_fingerprint(const std::string& model_dir, const std::string& weights);

}  // namespace quire
