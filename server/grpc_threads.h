// Before the first thing of gRPC is made. gRPC says nothing where the system refuses one of its threads: the process ends without a word,
// or calls are never answered. So whether they can be started is tried first, and the error says which limit is in the way.
#pragma once

#include "quire/result.h"

namespace quire::server {

Status prepare_grpc_server();
Status prepare_grpc_client();

}  // namespace quire::server
