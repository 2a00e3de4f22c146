// A serving process from start to drain. One call; it owns the signals SIGTERM, SIGINT and, where it is not ignored, SIGHUP
// while it runs.
//
//   loading:  health NOT_SERVING for the service, SERVING for "" (live); calls get UNAVAILABLE with a retry delay
//   serving:  READY line on standard output; NOT_SERVING while the engine is wedged (work, but no step for a while)
//   draining: from the first signal on. NOT_SERVING, new requests UNAVAILABLE, running ones get drain_timeout_ms, then CANCELLED with a
//             retry delay. Texts have the same time, and are refused once no request runs. At its end the process ends, whatever a text's
//             thread does, and after drain_timeout_ms also where the engine is wedged, or after as long again (10 s at least) where a copy to a disk
//             does not return (both with exit code 1). A second signal (no second SIGHUP), or one while
//             loading: it ends at once
#pragma once

#include <functional>
#include <memory>

#include "quire/engine.h"
#include "server/listener.h"
#include "server/service.h"

namespace quire::server {

struct ServeOptions {
  ListenOptions listen;
  ServiceOptions service;
  int64_t wedged_after_ms = 30'000;
};

// Blocks these signals for this thread and those it starts, so that serve() alone takes them. Call first in main.
void block_stop_signals();

// Listens, opens the engine, serves until a signal, drains. Returns an error when it never got to serve.
Status serve(const ServeOptions& options, const std::function<Result<std::unique_ptr<Engine>>()>& open_engine,
             const std::function<int64_t(const Engine&)>& untouched_host_bytes);

}  // namespace quire::server
