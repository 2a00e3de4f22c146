#include "server/request_call.h"

#include <utility>

#include "server/call_log.h"
#include "server/call_outcome.h"
#include "server/request_mapping.h"
#include "server/status.h"
#include "src/base/clock.h"

namespace quire::server {
namespace {

std::string name_of(CallParts& parts) {
  std::string& name = parts.request.client_request_id;
  if (name.empty()) name = parts.registry.make_name();
  return name;
}

}  // namespace

RequestCall::RequestCall(CallParts& parts)
    : engine_(parts.engine),
      registry_(parts.registry),
      context_(parts.context),
      lease_(std::move(parts.lease)),
      name_(name_of(parts)),
      started_us_(now_us()) {}

void RequestCall::enter(CallParts parts) {
  self_ = shared_from_this();
  registered_ = true;  // before an Abort can find it
  if (!registry_.add(name_, self_)) {
    registered_ = false;
    return refuse(name_is_taken(name_));
  }
  if (std::holds_alternative<std::vector<int32_t>>(parts.request.prompt))
    return submit(std::move(parts.request));
  const Status queued = parts.pool.submit(
      parts.text_bytes, [call = shared_from_this(), request = std::move(parts.request)]() mutable {
        call->submit(std::move(request));
      });
  if (!queued) refuse(queued.error());
}

void RequestCall::refuse(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    lease_.settle(0);
    if (!ended_) {
      refusal_ = error;
      end(to_grpc_status(error));
    }
  }
  go_on();
}

std::optional<Error> RequestCall::begin(Request& request) {
  const std::lock_guard lock(mutex_);
  waiting_ = false;
  if (ended_) return error(Code::kCancelled, "it ended while it waited to be submitted");
  handed_over_ = true;
  return charge_wait(request, started_us_, now_us());
}

void RequestCall::submit(Request request) {
  if (const std::optional<Error> ended = begin(request)) return refuse(*ended);
  const char* const prompt_field = wire_field(request.prompt);
  const Result<RequestId> id = engine_.submit(std::move(request), shared_from_this());
  if (!id) {
    Error refusal = id.error();
    if (refusal.field == "prompt") refusal.field = prompt_field;
    return refuse(refusal);
  }
  {
    const std::lock_guard lock(mutex_);
    id_ = *id;
    if (abort_wanted_ || ended_) engine_.abort(id_);  // said meanwhile
  }
  go_on();
}

void RequestCall::abort() {
  {
    const std::lock_guard lock(mutex_);
    abort_wanted_ = true;
    if (!ended_ && waiting_) end(cancelled_by_name());
    if (!ended_ && id_ != 0) engine_.abort(id_);
  }
  go_on();
}

void RequestCall::end_with_server() {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_ && id_ != 0) engine_.abort(id_);
    if (!ended_) end(outlasted_drain(engine_.config().drain_timeout_ms));
  }
  go_on();
}

grpc::Status RequestCall::status_of(const TokenEvent& last) const {
  const bool by_drain = last.finish == FinishReason::kCancelled && !abort_wanted_ && registry_.is_draining();
  return by_drain ? outlasted_drain(engine_.config().drain_timeout_ms) : outcome_of(last);
}

void RequestCall::free_name() {
  if (!handed_over_) lease_.settle(0);
  if (registered_) registry_.finishing(name_);
}

int64_t RequestCall::now_us() {
  return SteadyClock().now_us();
}

double RequestCall::ms_so_far() const {
  return static_cast<double>(now_us() - started_us_) / 1000.0;
}

void RequestCall::log(const grpc::Status& status, double total_ms, const std::string& traceparent) const {
  log_call({.request = id_,
            .name = name_,
            .finish = finish_,
            .usage = usage_,
            .timings = timings_,
            .total_ms = total_ms,
            .traceparent = traceparent,
            .refusal = refusal_},
           status);
}

void RequestCall::done() {
  if (registered_) registry_.finished();
  self_.reset();
}

}  // namespace quire::server
