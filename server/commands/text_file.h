// Files that commands read whole. "-" is standard input.
#pragma once

#include <string>

#include "quire/result.h"

namespace quire::server {

// Errors name the flag, the path and the reason; more than max_bytes is refused.
Result<std::string> read_file(const std::string& path, const std::string& flag,
                              size_t max_bytes = size_t{1} << 30);

}  // namespace quire::server
