#include "server/dump_call.h"

#include "server/call_log.h"
#include "server/call_outcome.h"
#include "server/response_mapping.h"
#include "server/status.h"
#include "server/wire_codec.h"
#include "src/base/clock.h"

namespace quire::server {

DumpCall* DumpCall::start(Engine& engine, CallRegistry& registry, WorkPool& pool,
                          grpc::CallbackServerContext& context, grpc::ByteBuffer& answer, Request request,
                          int64_t text_bytes, TenantLease lease) {
  if (request.client_request_id.empty()) request.client_request_id = registry.make_name();
  request.dump_kv = true;
  request.stream = false;
  auto call = std::make_shared<DumpCall>(engine, registry, context, answer, request.client_request_id,
                                         std::move(lease));
  call->self_ = call;
  call->registered_ = true;  // before an Abort can find it
  if (!registry.add(call->name_, call)) {
    call->registered_ = false;
    call->refuse(name_is_taken(call->name_));
    return call.get();
  }
  if (std::holds_alternative<std::vector<int32_t>>(request.prompt)) {
    call->submit(std::move(request));
    return call.get();
  }
  const Status queued = pool.submit(
      text_bytes, [call, request = std::move(request)]() mutable { call->submit(std::move(request)); });
  if (!queued) call->refuse(queued.error());
  return call.get();
}

DumpCall::DumpCall(Engine& engine, CallRegistry& registry, grpc::CallbackServerContext& context,
                   grpc::ByteBuffer& answer, std::string name, TenantLease lease)
    : engine_(engine),
      registry_(registry),
      context_(context),
      answer_(answer),
      name_(std::move(name)),
      started_us_(SteadyClock().now_us()),
      lease_(std::move(lease)) {}

// What ended it while it waited, if something did.
std::optional<Error> DumpCall::begin(Request& request) {
  const std::lock_guard lock(mutex_);
  queued_ = false;
  if (finished_) return error(Code::kCancelled, "it ended while its text waited to be read");
  handed_over_ = true;
  return charge_wait(request, started_us_, SteadyClock().now_us());
}

void DumpCall::submit(Request request) {
  if (const std::optional<Error> ended = begin(request)) return refuse(*ended);
  const Result<RequestId> id = engine_.submit(std::move(request), shared_from_this());
  if (!id) return refuse(id.error());
  const std::lock_guard lock(mutex_);
  id_ = *id;
  if (abort_wanted_ || finished_) engine_.abort(id_);  // said meanwhile
}

void DumpCall::refuse(const Error& error) {
  const std::lock_guard lock(mutex_);
  lease_.settle(0);
  if (finished_) return;
  refusal_ = error;
  finish(to_grpc_status(error));
}

void DumpCall::on_event(const TokenEvent& event) {
  const std::lock_guard lock(mutex_);
  if (event.last) lease_.settle(tokens_used(event));  // also of a call that was cut off
  if (finished_) return;
  id_ = event.request;
  if (!event.prompt_token_ids.empty())
    *response_.mutable_prompt_token_ids() = {event.prompt_token_ids.begin(), event.prompt_token_ids.end()};
  if (event.error && !failure_) failure_ = event.error;
  take_output(event);
  if (!event.last) return;
  usage_ = event.usage;
  timings_ = event.timings;
  reason_ = event.finish;
  finish(status_at(event));
}

void DumpCall::take_output(const TokenEvent& event) {
  v1::DumpKvResponse::Output* output = nullptr;
  for (auto& known : *response_.mutable_outputs())
    if (known.index() == event.index) output = &known;
  if (output == nullptr) output = response_.add_outputs();
  output->set_index(event.index);
  output->mutable_token_ids()->Add(event.token_ids.begin(), event.token_ids.end());
  output->set_finish_reason(to_wire(event.finish));
  if (!event.kv_dump.empty()) *output->mutable_kv_dump() = to_wire(event.kv_dump);
}

grpc::Status DumpCall::status_at(const TokenEvent& last) const {
  if (failure_) return to_grpc_status(*failure_);
  const bool by_drain = last.finish == FinishReason::kCancelled && !abort_wanted_ && registry_.is_draining();
  return by_drain ? outlasted_drain(engine_.config().drain_timeout_ms) : outcome_of(last);
}

void DumpCall::abort() {
  const std::lock_guard lock(mutex_);
  abort_wanted_ = true;
  if (finished_) return;
  if (queued_) return finish(cancelled_by_name());
  if (id_ != 0) engine_.abort(id_);
}

void DumpCall::OnCancel() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  if (id_ != 0) engine_.abort(id_);
  finish(lost_client());
}

void DumpCall::finish(const grpc::Status& status) {
  finished_ = true;
  log_call({.request = id_,
            .name = name_,
            .finish = reason_,
            .usage = usage_,
            .timings = timings_,
            .total_ms = static_cast<double>(SteadyClock().now_us() - started_us_) / 1000.0,
            .traceparent = traceparent(context_),
            .refusal = refusal_},
           status);
  if (status.ok()) answer_ = serialize(response_);
  if (!handed_over_) lease_.settle(0);
  if (registered_) registry_.finishing(name_);
  Finish(status);
}

void DumpCall::OnDone() {
  if (registered_) registry_.finished();
  self_.reset();  // the last owner unless the engine still holds its sink
}

}  // namespace quire::server
