// Reads a text file of a model's directory.
#pragma once

#include <string>

#include "quire/result.h"

namespace quire {

// The whole file. Errors name it: not there, not readable, over the limit (256 MiB; the largest tokenizers in
// use have 35).
Result<std::string> read_model_file(const std::string& path);

}  // namespace quire
