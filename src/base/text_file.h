// Files read whole, with a limit on their size. Any thread; nothing throws.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "quire/result.h"

namespace quire {

// Whether a directory has an entry of this name, whatever it is: a link that leads nowhere is there, so that reading it
// says what is wrong with it.
bool entry_exists(const std::string& path);

// What is left of an open file; `name` begins each message.
Result<std::string> read_all(std::FILE* file, const std::string& name, int64_t max_bytes);

// The whole file. The path begins each message: kNotFound, kPermissionDenied, kInvalidArgument for what is no regular file or
// has more than max_bytes, else kInternal with what the system says.
Result<std::string> read_text_file(const std::string& path, int64_t max_bytes);

}  // namespace quire
