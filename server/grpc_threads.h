// Whether gRPC can start its threads. It says nothing where one of them is refused: the process ends without a word, or calls are never
// answered.
#pragma once

#include "quire/result.h"

namespace quire::server {

// Before the first thing of gRPC is made.
Status check_server_threads();
Status check_client_threads();

}  // namespace quire::server
