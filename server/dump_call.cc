#include "server/dump_call.h"

#include "server/call_log.h"
#include "server/response_mapping.h"
#include "server/status.h"
#include "server/wire_codec.h"
#include "src/base/clock.h"

namespace quire::server {

DumpCall* DumpCall::start(Engine& engine, WorkPool& pool, grpc::ByteBuffer& answer, Request request,
                          int64_t text_bytes) {
  auto call = std::make_shared<DumpCall>(engine, answer);
  call->self_ = call;
  call->name_ = request.client_request_id;
  call->started_us_ = SteadyClock().now_us();
  request.dump_kv = true;
  request.stream = false;
  const Status queued = pool.submit(
      text_bytes, [call, request = std::move(request)]() mutable { call->submit(std::move(request)); });
  if (queued) return call.get();
  const std::lock_guard lock(call->mutex_);
  call->finish(to_grpc_status(queued.error()));
  return call.get();
}

void DumpCall::submit(Request request) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;  // cancelled while it waited
  }
  const Result<RequestId> id = engine_.submit(std::move(request), shared_from_this());
  const std::lock_guard lock(mutex_);
  if (id) id_ = *id;
  if (id && finished_) engine_.abort(*id);
  if (!id && !finished_) finish(to_grpc_status(id.error()));
}

void DumpCall::on_event(const TokenEvent& event) {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  if (!event.prompt_token_ids.empty())
    *response_.mutable_prompt_token_ids() = {event.prompt_token_ids.begin(), event.prompt_token_ids.end()};
  if (event.error) return finish(to_grpc_status(*event.error));
  v1::DumpKvResponse::Output* output = nullptr;
  for (auto& known : *response_.mutable_outputs())
    if (known.index() == event.index) output = &known;
  if (output == nullptr) output = response_.add_outputs();
  output->set_index(event.index);
  output->mutable_token_ids()->Add(event.token_ids.begin(), event.token_ids.end());
  output->set_finish_reason(to_wire(event.finish));
  if (!event.kv_dump.empty()) *output->mutable_kv_dump() = to_wire(event.kv_dump);
  if (!event.last) return;
  usage_ = event.usage;
  timings_ = event.timings;
  reason_ = event.finish;
  finish(grpc::Status::OK);
}

void DumpCall::OnCancel() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  if (id_ != 0) engine_.abort(id_);
  finish(
      {grpc::StatusCode::CANCELLED, "the client cancelled, its deadline passed, or its connection was lost"});
}

void DumpCall::finish(const grpc::Status& status) {
  finished_ = true;
  log_call({.request = id_,
            .name = name_,
            .finish = reason_,
            .usage = usage_,
            .timings = timings_,
            .total_ms = static_cast<double>(SteadyClock().now_us() - started_us_) / 1000.0,
            .traceparent = {}},
           status);
  if (status.ok()) answer_ = serialize(response_);
  Finish(status);
}

}  // namespace quire::server
