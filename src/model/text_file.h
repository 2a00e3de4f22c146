// A small text file read whole, with a limit on its size.
#pragma once

#include <cstdint>
#include <string>

#include "quire/result.h"

namespace quire {

bool file_exists(const std::string& path);  // a regular file
// kNotFound, or kInvalidArgument when it is larger than max_bytes; the path is in the message.
Result<std::string> read_text_file(const std::string& path, int64_t max_bytes);

}  // namespace quire
