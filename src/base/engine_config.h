// What can be said of a configuration without its model.
#pragma once

#include "quire/config.h"
#include "quire/result.h"

namespace quire {

// The message names the field, the value and the limit.
Status validate(const EngineConfig& config);

}  // namespace quire
