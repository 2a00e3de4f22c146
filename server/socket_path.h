// A Unix socket to listen on, as --host unix:PATH.
#pragma once

#include <string>

#include "quire/result.h"

namespace quire::server {

// Errors name the path and what is wrong: empty or too long for the system, in a directory that is missing, a file that is no
// socket, a socket that another server listens on.
Status check_socket_path(const std::string& path);

}  // namespace quire::server
