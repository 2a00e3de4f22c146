// EngineConfig as written -> EngineConfig with every 0 and "auto" that does not depend on the device resolved
// and checked.
#pragma once

#include <optional>
#include <string>

#include "quire/config.h"
#include "quire/result.h"
#include "src/base/dtype.h"
#include "src/model/model_spec.h"

namespace quire {

Result<EngineConfig> resolve_config(const EngineConfig& config, const ModelSpec& spec);

// "f32", "bf16", "f16"; nothing for "auto"; an Error that names `field` for another word.
Result<std::optional<DType>> parse_dtype(const std::string& word, const char* field);

}  // namespace quire
