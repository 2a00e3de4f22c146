#include "server/call_outcome.h"

#include <fmt/format.h>

#include "server/status.h"
#include "src/base/retry_delay.h"

namespace quire::server {
grpc::Status outcome_of(const TokenEvent& last) {
  if (last.error) return to_grpc_status(*last.error);
  switch (last.finish) {
    case FinishReason::kCancelled:
      return cancelled_by_name();
    case FinishReason::kDeadline:
      return {grpc::StatusCode::DEADLINE_EXCEEDED, "the request's deadline passed"};
    case FinishReason::kFailed:
      return {grpc::StatusCode::INTERNAL, "the request failed"};
    default:
      return grpc::Status::OK;
  }
}

grpc::Status outlasted_drain(int64_t drain_timeout_ms) {
  return to_grpc_status(
      {.code = Code::kCancelled,
       .message = fmt::format(
           "the server stops, and the request outlasted the {} ms that it gives (drain_timeout_ms)",
           drain_timeout_ms),
       .field = {},
       .retry_delay_ms = kRetryDelayMs});
}

int64_t tokens_used(const TokenEvent& last) {
  if (last.timings.queued_ms < 0) return 0;
  return int64_t{last.usage.prompt_tokens} + last.usage.completion_tokens;
}

grpc::Status cancelled_by_name() {
  return {grpc::StatusCode::CANCELLED, "the request was cancelled"};
}

grpc::Status lost_client() {
  return {grpc::StatusCode::CANCELLED,
          "the client cancelled, its deadline passed, or its connection was lost"};
}

Error name_is_taken(const std::string& name) {
  return {.code = Code::kAlreadyExists,
          .message = fmt::format("request_id '{}' is running already", name),
          .field = "request_id",
          .retry_delay_ms = {}};
}

std::optional<Error> charge_wait(Request& request, int64_t arrived_us, int64_t now_us) {
  if (!request.deadline_ms) return {};
  const int64_t waited_ms = (now_us - arrived_us) / 1000;
  if (waited_ms >= *request.deadline_ms)
    return error(
        Code::kDeadlineExceeded,
        fmt::format(
            "the deadline of {} ms (deadline_ms, or the call's timeout) passed while the prompt's text "
            "waited to be read, for {} ms",
            *request.deadline_ms, waited_ms));
  *request.deadline_ms -= waited_ms;
  return {};
}

std::string traceparent(const grpc::ServerContextBase& context) {
  const auto found = context.client_metadata().find("traceparent");
  if (found == context.client_metadata().end() || found->second.size() != 55) return "";
  return {found->second.data(), found->second.size()};
}

}  // namespace quire::server
