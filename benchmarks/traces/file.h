// Reading whole files, gzipped or plain, and tar archives in memory.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "quire/result.h"

namespace quire {

Result<std::string> read_file(const std::string& path);  // gunzips where the file is gzip; at most 1 GiB
// (name, content)
Result<std::vector<std::pair<std::string, std::string>>> untar(const std::string& archive,
                                                               const std::string& path);

}  // namespace quire
