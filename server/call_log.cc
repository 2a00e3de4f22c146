#include "server/call_log.h"

#include "server/status.h"
#include "src/base/log.h"
#include "src/base/prompt_privacy.h"

namespace quire::server {

void log_call(const CallRecord& call, const grpc::Status& outcome) {
  const char* code = code_name(static_cast<Code>(outcome.error_code()));
  const std::string message = call.refusal ? loggable_message(*call.refusal) : outcome.error_message();
  if (call.request == 0 && !outcome.ok())
    return log_line(LogLevel::kInfo, "call_refused",
                    {{"name", call.name},
                     {"code", code},
                     {"message", message},
                     {"total_ms", call.total_ms},
                     {"traceparent", call.traceparent}});
  log_line(LogLevel::kInfo, "call_end",
           {{"request", static_cast<uint64_t>(call.request)},
            {"name", call.name},
            {"code", code},
            {"message", message},
            {"finish", to_string(call.finish)},
            {"prompt_tokens", call.usage.prompt_tokens},
            {"completion_tokens", call.usage.completion_tokens},
            {"cached_tokens", call.usage.cached_tokens},
            {"queued_ms", call.timings.queued_ms},
            {"first_token_ms", call.timings.first_token_ms},
            {"total_ms", call.total_ms},
            {"traceparent", call.traceparent}});
}

}  // namespace quire::server
