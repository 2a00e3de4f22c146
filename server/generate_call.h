// One Generate call: a gRPC stream on one side, the engine's token events on the other. Threads and lifetime as in RequestCall. What always
// holds besides: at most one write is in flight; Finish is called exactly once, after the last write.
//
// Backlog: bytes written by the engine and not yet taken by the client. Past the bound the engine is asked to
// pause the request, so a slow reader costs no step and no memory; a reader that takes nothing for
// max_stall_ms loses its call.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <string>

#include "server/request_call.h"

namespace quire::server {

struct StreamLimits {
  int64_t max_backlog_bytes = 256 << 10;  // resumed below a quarter of it
  int64_t max_stall_ms = 30'000;
};

class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public RequestCall {
 public:
  // Returns the reactor to hand to gRPC; a refusal finishes the call with its status.
  static GenerateCall* start(CallParts parts, const StreamLimits& limits);

  GenerateCall(CallParts& parts, const StreamLimits& limits) : RequestCall(parts), limits_(limits) {}
  ~GenerateCall()
      override;  // writes the log's line: the engine has told by then what it knows of the request

  void on_event(const TokenEvent& event) override;
  void end_if_stalled(int64_t now_us) override;

  void OnWriteDone(bool delivered) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void end(const grpc::Status& status) override;
  void go_on() override;                 // starts the next write, or Finish
  void end_early(grpc::Status outcome);  // with mutex_ held: nothing more is written, the engine's work ends
  void enqueue(grpc::ByteBuffer message);  // with mutex_ held
  void take_end(const TokenEvent& last);   // with mutex_ held

  const StreamLimits limits_;
  bool first_message_ = true;

  std::deque<grpc::ByteBuffer> backlog_;
  int64_t backlog_bytes_ = 0;  // with the write in flight
  grpc::ByteBuffer in_flight_;
  bool writing_ = false;
  int64_t write_started_us_ = 0;
  bool paused_ = false;

  // Once ended_ outcome_ is known, and events are ignored. Usage is counted from events until the engine gives its own.
  bool finish_called_ = false;
  bool cut_off_ = false;  // outcome_ is why, and not the engine's
  grpc::Status outcome_;
  double total_ms_ = 0;
  std::string traceparent_;
};

}  // namespace quire::server
