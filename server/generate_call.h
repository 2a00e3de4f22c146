// One Generate call: a gRPC stream on one side, the engine's token events on the other.
//
// Threads: on_event() comes from the engine's delivery thread, OnXxx() from gRPC's threads, abort() and
// end_if_stalled() from anywhere; one mutex orders them. What always holds: at most one write is in flight;
// Finish is called exactly once, after the last write; the call keeps itself alive until OnDone, and lives on
// as a mute sink while the engine still holds it. A prompt that is text is read by the work pool's threads: until
// one takes it up, the engine knows nothing of the call, and its end costs nothing.
//
// Backlog: bytes written by the engine and not yet taken by the client. Past the bound the engine is asked to
// pause the request, so a slow reader costs no step and no memory; a reader that takes nothing for
// max_stall_ms loses its call.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "quire/engine.h"
#include "server/call_registry.h"
#include "server/tenant_limits.h"
#include "server/work_pool.h"

namespace quire::server {

struct StreamLimits {
  int64_t max_backlog_bytes = 256 << 10;  // resumed below a quarter of it
  int64_t max_stall_ms = 30'000;
};

class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public TokenSink,
                           public RunningCall,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Submits the request, by way of the pool where its prompt is text; a refusal finishes the call with its
  // status. text_bytes: of the message it came in. Returns the reactor to hand to gRPC.
  static GenerateCall* start(Engine& engine, CallRegistry& registry, WorkPool& pool,
                             const StreamLimits& limits, grpc::CallbackServerContext& context,
                             Request request, int64_t text_bytes, TenantLease lease);

  GenerateCall(Engine& engine, CallRegistry& registry, const StreamLimits& limits,
               grpc::CallbackServerContext& context, std::string name, TenantLease lease);
  ~GenerateCall()
      override;  // writes the log's line: the engine has told by then what it knows of the request

  void on_event(const TokenEvent& event) override;
  void abort() override;
  void end_if_stalled(int64_t now_us) override;

  void OnWriteDone(bool delivered) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  bool enter();                  // false: the name is taken, and the call is finished
  void submit(Request request);  // to the engine
  void refuse(const Error& error);
  std::optional<Error> begin(Request& request);  // what ended it while it waited, if something did
  void end_early(grpc::Status outcome);  // with mutex_ held: nothing more is written, the engine's work ends
  void enqueue(grpc::ByteBuffer message);                   // with mutex_ held
  bool is_stopped_by_drain(const TokenEvent& event) const;  // with mutex_ held
  void take_end(const TokenEvent& last);                    // with mutex_ held
  void pump();  // without mutex_: starts the next write, or Finish

  Engine& engine_;
  CallRegistry& registry_;
  const StreamLimits limits_;
  grpc::CallbackServerContext& context_;
  const std::string name_;
  const int64_t started_us_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone

  std::mutex mutex_;
  RequestId id_ = 0;          // 0 until the engine gave one
  bool queued_ = false;       // waits for a thread of the pool
  bool handed_over_ = false;  // to the engine, which refuses it or tells its last event
  TenantLease lease_;
  bool abort_wanted_ = false;
  bool first_message_ = true;
  bool registered_ = false;

  std::deque<grpc::ByteBuffer> backlog_;
  int64_t backlog_bytes_ = 0;  // with the write in flight
  grpc::ByteBuffer in_flight_;
  bool writing_ = false;
  int64_t write_started_us_ = 0;
  bool paused_ = false;

  bool ended_ = false;  // outcome_ is known; events after it are ignored
  bool finish_called_ = false;
  bool cut_off_ = false;  // outcome_ is why, and not the engine's
  grpc::Status outcome_;
  std::optional<Error> refusal_;
  // For the log. Usage is counted from events until the engine gives its own.
  FinishReason finish_ = FinishReason::kNone;
  Usage usage_;
  Timings timings_;
  double total_ms_ = 0;
  std::string traceparent_;
};

}  // namespace quire::server
