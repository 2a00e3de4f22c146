// How a call that runs a request begins and ends, whichever method made it: Generate and DumpKv say the same. Any thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "quire/request.h"

namespace quire::server {

// The status that goes with a request's last event.
grpc::Status outcome_of(const TokenEvent& last);
// Of a request that the end of a drain cancelled: with the delay after which another server, or this one started again, takes it.
grpc::Status outlasted_drain(int64_t drain_timeout_ms);
// What it used of the tokens its client may use: nothing where no step ran a token of it.
int64_t tokens_used(const TokenEvent& last);
grpc::Status cancelled_by_name();
grpc::Status lost_client();
Error name_is_taken(const std::string& name);

// What a request waited for a thread that reads its text counts against its deadline: an Error if it is over.
std::optional<Error> charge_wait(Request& request, int64_t arrived_us, int64_t now_us);

// W3C trace context of the caller (55 bytes), logged so that a trace finds the request.
std::string traceparent(const grpc::ServerContextBase& context);

}  // namespace quire::server
