#include "server/grpc_threads.h"

#include <grpc/support/cpu.h>

#include <algorithm>

#include "src/base/threads.h"

namespace quire::server {

// What gRPC 1.51 starts with a server, and two of those that it adds under load: executors 2, timers 1, its event engine one for each core
// (at least 2), one for what waits there and one for timers, callbacks half of the cores (2 to 16), reflection 1.
Status check_server_threads() {
  const auto cores = static_cast<int32_t>(gpr_cpu_num_cores());
  return check_thread_room("gRPC",
                           2 + 1 + std::clamp(cores, 2, 32) + 2 + std::clamp(cores / 2, 2, 16) + 1 + 2);
}

// A call that is waited for ends with one of them, and never without.
Status check_client_threads() {
  return check_thread_room("gRPC", 2);
}

}  // namespace quire::server
