// The lengths of a round's requests, from a CSV file with the columns prompt_tokens and output_tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/result.h"

namespace quire {

struct RequestLengths {
  int32_t prompt_tokens = 0;
  int32_t new_tokens = 0;
};

// Errors name the file, the line and what it holds; at most 4096 requests.
Result<std::vector<RequestLengths>> read_request_list(const std::string& path);

}  // namespace quire
