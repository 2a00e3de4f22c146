#include "server/generate_call.h"

#include <fmt/format.h>

#include "server/call_log.h"
#include "server/call_outcome.h"
#include "server/response_mapping.h"
#include "server/status.h"
#include "server/wire_codec.h"
#include "src/base/clock.h"

namespace quire::server {
namespace {

int64_t now_us() {
  return SteadyClock().now_us();
}

}  // namespace

GenerateCall* GenerateCall::start(Engine& engine, CallRegistry& registry, WorkPool& pool,
                                  const StreamLimits& limits, grpc::CallbackServerContext& context,
                                  Request request, int64_t text_bytes, TenantLease lease) {
  if (request.client_request_id.empty()) request.client_request_id = registry.make_name();
  auto call = std::make_shared<GenerateCall>(engine, registry, limits, context, request.client_request_id,
                                             std::move(lease));
  call->self_ = call;
  if (!call->enter()) return call.get();
  if (std::holds_alternative<std::vector<int32_t>>(request.prompt)) {
    call->submit(std::move(request));
    return call.get();
  }
  {
    const std::lock_guard lock(call->mutex_);  // its name is known, so it may be aborted by now
    call->queued_ = true;
  }
  const Status queued = pool.submit(
      text_bytes, [call, request = std::move(request)]() mutable { call->submit(std::move(request)); });
  if (!queued) call->refuse(queued.error());
  return call.get();
}

GenerateCall::GenerateCall(Engine& engine, CallRegistry& registry, const StreamLimits& limits,
                           grpc::CallbackServerContext& context, std::string name, TenantLease lease)
    : engine_(engine),
      registry_(registry),
      limits_(limits),
      context_(context),
      name_(std::move(name)),
      started_us_(now_us()),
      lease_(std::move(lease)) {}

GenerateCall::~GenerateCall() {
  log_call({.request = id_,
            .name = name_,
            .finish = finish_,
            .usage = usage_,
            .timings = timings_,
            .total_ms = total_ms_,
            .traceparent = traceparent_,
            .refusal = refusal_},
           outcome_);
}

bool GenerateCall::enter() {
  registered_ = true;  // before an Abort can find it
  if (registry_.add(name_, shared_from_this())) return true;
  registered_ = false;
  refuse(name_is_taken(name_));
  return false;
}

void GenerateCall::refuse(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    lease_.settle(0);
    if (!ended_) {
      outcome_ = to_grpc_status(error);
      refusal_ = error;
    }
    ended_ = true;
  }
  pump();
}

std::optional<Error> GenerateCall::begin(Request& request) {
  const std::lock_guard lock(mutex_);
  queued_ = false;
  if (abort_wanted_ && !ended_) return error(Code::kCancelled, "the request was cancelled");
  if (ended_) return error(Code::kCancelled, "it ended while its text waited to be read");
  handed_over_ = true;
  return charge_wait(request, started_us_, now_us());
}

void GenerateCall::submit(Request request) {
  if (const std::optional<Error> ended = begin(request)) return refuse(*ended);
  const Result<RequestId> id = engine_.submit(std::move(request), shared_from_this());
  if (!id) return refuse(id.error());
  {
    const std::lock_guard lock(mutex_);
    id_ = *id;
    if (abort_wanted_ || ended_) engine_.abort(id_);  // said meanwhile
  }
  pump();
}

void GenerateCall::on_event(const TokenEvent& event) {
  v1::GenerateResponse message = to_wire(event);
  {
    const std::lock_guard lock(mutex_);
    if (ended_ && event.last) take_end(event);
    if (ended_) return;
    id_ = event.request;
    usage_.prompt_tokens += static_cast<int32_t>(event.prompt_token_ids.size());
    usage_.completion_tokens += static_cast<int32_t>(event.token_ids.size());
    if (std::exchange(first_message_, false)) message.set_request_id(name_);
    if (event.last) {
      ended_ = true;
      outcome_ =
          is_stopped_by_drain(event) ? outlasted_drain(engine_.config().drain_timeout_ms) : outcome_of(event);
      take_end(event);
    }
    enqueue(serialize(message));
  }
  pump();
}

void GenerateCall::take_end(const TokenEvent& last) {
  finish_ = last.finish;
  usage_ = last.usage;
  timings_ = last.timings;
  lease_.settle(tokens_used(last));
}

bool GenerateCall::is_stopped_by_drain(const TokenEvent& event) const {
  return event.finish == FinishReason::kCancelled && !abort_wanted_ && registry_.is_draining();
}

void GenerateCall::enqueue(grpc::ByteBuffer message) {
  backlog_bytes_ += static_cast<int64_t>(message.Length());
  backlog_.push_back(std::move(message));
  // The engine is told under the lock, so that a pause and the resume that follows it cannot change places.
  if (!paused_ && !ended_ && backlog_bytes_ > limits_.max_backlog_bytes) {
    paused_ = true;
    engine_.set_paused(id_, true);
  }
}

void GenerateCall::pump() {
  bool write = false;
  {
    const std::lock_guard lock(mutex_);
    if (writing_ || finish_called_) return;
    if (!backlog_.empty()) {
      in_flight_.Swap(&backlog_.front());
      backlog_.pop_front();
      writing_ = write = true;
      write_started_us_ = now_us();
    } else if (ended_) {
      finish_called_ = true;
      if (!handed_over_) lease_.settle(0);  // before its client can have read the status
    } else {
      return;
    }
  }
  if (write) {
    StartWrite(&in_flight_);
  } else {
    if (registered_) registry_.finishing(name_);
    Finish(outcome_);
  }
}

void GenerateCall::OnWriteDone(bool delivered) {
  {
    const std::lock_guard lock(mutex_);
    if (!delivered) end_early({grpc::StatusCode::CANCELLED, "the client is gone"});
    writing_ = false;
    backlog_bytes_ -= static_cast<int64_t>(in_flight_.Length());
    if (paused_ && backlog_bytes_ <= limits_.max_backlog_bytes / 4) {
      paused_ = false;
      engine_.set_paused(id_, false);
    }
  }
  pump();
}

void GenerateCall::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    end_early(lost_client());
  }
  pump();
}

void GenerateCall::end_early(grpc::Status outcome) {
  const bool runs = !std::exchange(ended_, true);
  // An end that the engine told is the call's only if all before it reached the client; of two things that cut it off, the first.
  if (!cut_off_ && (runs || writing_ || !backlog_.empty())) {
    cut_off_ = true;
    outcome_ = std::move(outcome);
  }
  backlog_.clear();
  backlog_bytes_ = writing_ ? static_cast<int64_t>(in_flight_.Length()) : 0;
  if (runs && id_ != 0) engine_.abort(id_);
}

void GenerateCall::abort() {
  {
    const std::lock_guard lock(mutex_);
    abort_wanted_ = true;
    if (queued_) end_early(cancelled_by_name());
    if (id_ != 0 && !ended_) engine_.abort(id_);
  }
  pump();
}

void GenerateCall::end_if_stalled(int64_t now) {
  const std::lock_guard lock(mutex_);
  if (!writing_ || now - write_started_us_ < limits_.max_stall_ms * 1000) return;
  end_early({grpc::StatusCode::CANCELLED,
             fmt::format("the client took nothing for {} ms (max_stall_ms)", limits_.max_stall_ms)});
  // Breaks the write in flight; its OnWriteDone finishes the call. The context lives: Finish waits for that
  // write.
  context_.TryCancel();
}

void GenerateCall::OnDone() {
  if (registered_) registry_.finished();
  {
    const std::lock_guard lock(mutex_);  // gRPC's context goes with this call
    total_ms_ = static_cast<double>(now_us() - started_us_) / 1000.0;
    traceparent_ = traceparent(context_);
  }
  self_.reset();  // the last owner unless the engine still holds its sink
}

}  // namespace quire::server
