#include "server/grpc_threads.h"

#include <grpc/grpc.h>
#include <grpc/support/cpu.h>

#include <algorithm>
#include <mutex>

#include "src/base/threads.h"

namespace quire::server {
namespace {

// gRPC is never shut down: when it is, it waits for all threads that it has counted, also for one that it never got.
Status prepare(int32_t num_threads) {
  if (Status room = check_thread_room("gRPC", num_threads); !room) return room;
  static std::once_flag once;
  std::call_once(once, grpc_init);
  return ok();
}

}  // namespace

// What gRPC 1.51 starts with a server, and two of those that it adds under load: executors 2, timers 1, its event engine one for each core
// (at least 2), one for what waits there and one for timers, callbacks half of the cores (2 to 16), reflection 1.
Status prepare_grpc_server() {
  const auto cores = static_cast<int32_t>(gpr_cpu_num_cores());
  return prepare(2 + 1 + std::clamp(cores, 2, 32) + 2 + std::clamp(cores / 2, 2, 16) + 1 + 2);
}

// A call that is waited for ends with one of them, and never without.
Status prepare_grpc_client() {
  return prepare(2);
}

}  // namespace quire::server
