// The project's version, set by CMake on the one file that defines it.
#pragma once

namespace quire::server {

extern const char* const kVersion;  // "0.1.0"

}  // namespace quire::server
