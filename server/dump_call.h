// One DumpKv call: runs a request to its end and answers once, with the cache positions each continuation
// still saw. Threads and lifetime as in RequestCall.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <optional>

#include "quire/v1/service.pb.h"
#include "server/request_call.h"

namespace quire::server {

class DumpCall final : public grpc::ServerUnaryReactor, public RequestCall {
 public:
  // Returns the reactor to hand to gRPC; a refusal finishes the call with its status.
  static DumpCall* start(CallParts parts, grpc::ByteBuffer& answer);

  DumpCall(CallParts& parts, grpc::ByteBuffer& answer) : RequestCall(parts), answer_(answer) {}

  void on_event(const TokenEvent& event) override;
  void end_if_stalled(int64_t) override {}  // writes nothing before its end
  void OnCancel() override;
  void OnDone() override;

 private:
  void end(const grpc::Status& status) override;
  void take_output(const TokenEvent& event);  // with mutex_ held

  grpc::ByteBuffer& answer_;      // gRPC's, until Finish
  std::optional<Error> failure_;  // the first of its outputs'
  v1::DumpKvResponse response_;
};

}  // namespace quire::server
