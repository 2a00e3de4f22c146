// The one line in the log that each call which runs a request leaves, at its end or its refusal.
#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "quire/request.h"

namespace quire::server {

struct CallRecord {
  RequestId request = 0;  // 0: the engine never had it
  std::string name;       // request_id on the wire
  FinishReason finish = FinishReason::kNone;
  Usage usage;
  Timings timings;
  double total_ms = 0;
  std::string traceparent;
  std::optional<Error> refusal;  // the engine's, if it was that
};

// call_end, or call_refused where the engine never had it.
void log_call(const CallRecord& call, const grpc::Status& outcome);

}  // namespace quire::server
