#include "server/generate_call.h"

#include <fmt/format.h>

#include "server/call_outcome.h"
#include "server/response_mapping.h"
#include "server/wire_codec.h"

namespace quire::server {
GenerateCall* GenerateCall::start(CallParts parts, const StreamLimits& limits) {
  const auto call = std::make_shared<GenerateCall>(parts, limits);
  call->enter(std::move(parts));
  return call.get();
}

GenerateCall::~GenerateCall() {
  log(outcome_, total_ms_, traceparent_);
}

void GenerateCall::end(const grpc::Status& status) {
  ended_ = true;
  outcome_ = status;
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
    if (std::exchange(first_message_, false)) message.set_request_id(name());
    if (event.last) {
      end(status_of(event));
      take_end(event);
    }
    enqueue(serialize(message));
  }
  go_on();
}

void GenerateCall::take_end(const TokenEvent& last) {
  finish_ = last.finish;
  usage_ = last.usage;
  timings_ = last.timings;
  lease_.settle(tokens_used(last));
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

void GenerateCall::go_on() {
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
      free_name();
    } else {
      return;
    }
  }
  if (write) {
    StartWrite(&in_flight_);
  } else {
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
  go_on();
}

void GenerateCall::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    end_early(lost_client());
  }
  go_on();
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
  {
    const std::lock_guard lock(mutex_);  // gRPC's context goes with this call
    total_ms_ = ms_so_far();
    traceparent_ = traceparent(context_);
  }
  done();
}

}  // namespace quire::server
