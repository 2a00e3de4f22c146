#include "server/dump_call.h"

#include "server/call_outcome.h"
#include "server/response_mapping.h"
#include "server/status.h"
#include "server/wire_codec.h"

namespace quire::server {

DumpCall* DumpCall::start(CallParts parts, grpc::ByteBuffer& answer) {
  parts.request.dump_kv = true;
  parts.request.stream = false;
  const auto call = std::make_shared<DumpCall>(parts, answer);
  call->enter(std::move(parts));
  return call.get();
}

void DumpCall::on_event(const TokenEvent& event) {
  const std::lock_guard lock(mutex_);
  if (event.last) lease_.settle(tokens_used(event));  // also of a call that was cut off
  if (ended_) return;
  id_ = event.request;
  if (!event.prompt_token_ids.empty())
    *response_.mutable_prompt_token_ids() = {event.prompt_token_ids.begin(), event.prompt_token_ids.end()};
  if (event.error && !failure_) failure_ = event.error;
  take_output(event);
  if (!event.last) return;
  usage_ = event.usage;
  timings_ = event.timings;
  finish_ = event.finish;
  end(failure_ ? to_grpc_status(*failure_) : status_of(event));
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

void DumpCall::OnCancel() {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  if (id_ != 0) engine_.abort(id_);
  end(lost_client());
}

void DumpCall::end(const grpc::Status& status) {
  ended_ = true;
  log(status, ms_so_far(), traceparent(context_));
  if (status.ok()) answer_ = serialize(response_);
  free_name();
  Finish(status);
}

void DumpCall::OnDone() {
  done();
}

}  // namespace quire::server
