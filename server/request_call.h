// What the calls that run a request share, Generate and DumpKv: how it comes to the engine, how it is aborted, what it leaves in the log.
//
// Threads: on_event() comes from the engine's delivery thread, OnXxx() from gRPC's threads, abort() and end_if_stalled() from anywhere; one
// mutex orders them. What always holds: a call ends once; it keeps itself alive until gRPC is done with it, and lives on as a mute sink
// while the engine still holds it. A prompt that is text is read by the work pool's threads: until one takes it up, the engine knows
// nothing of the call, and its end costs nothing.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "quire/engine.h"
#include "server/call_registry.h"
#include "server/tenant_limits.h"
#include "server/work_pool.h"

namespace quire::server {

struct CallParts {
  Engine& engine;
  CallRegistry& registry;
  WorkPool& pool;
  grpc::CallbackServerContext& context;
  Request request;
  int64_t text_bytes;  // of the message it came in
  TenantLease lease;
};

class RequestCall : public TokenSink, public RunningCall, public std::enable_shared_from_this<RequestCall> {
 public:
  void abort() final;
  void end_with_server() final;

 protected:
  explicit RequestCall(CallParts& parts);  // takes its name and its lease

  // Submits the request, by way of the pool where its prompt is text; a refusal ends the call. Once, of a call that somebody owns.
  void enter(CallParts parts);

  // With mutex_ held, and not ended_: sets it, with the call's status.
  virtual void end(const grpc::Status& status) = 0;
  // Without mutex_: what is left to do once something has changed.
  virtual void go_on() {}

  grpc::Status status_of(const TokenEvent& last) const;  // with mutex_ held
  void free_name();  // with mutex_ held: before its client can have read the call's status
  void log(const grpc::Status& status, double total_ms, const std::string& traceparent) const;
  static int64_t now_us();
  double ms_so_far() const;
  void done();  // OnDone: the last owner unless the engine still holds its sink

  Engine& engine_;
  CallRegistry& registry_;
  grpc::CallbackServerContext& context_;

  std::mutex mutex_;
  RequestId id_ = 0;  // 0 until the engine gave one
  bool ended_ = false;
  TenantLease lease_;
  // For the log.
  FinishReason finish_ = FinishReason::kNone;
  Usage usage_;
  Timings timings_;

 private:
  void submit(Request request);  // to the engine
  void refuse(const Error& error);
  std::optional<Error> begin(Request& request);  // what ended it while it waited, if something did

  const std::string name_;
  const int64_t started_us_;
  std::shared_ptr<RequestCall> self_;
  bool waiting_ = true;       // to be submitted
  bool handed_over_ = false;  // to the engine, which refuses it or tells its last event
  bool abort_wanted_ = false;
  bool registered_ = false;
  std::optional<Error> refusal_;

 protected:
  const std::string& name() const { return name_; }
};

}  // namespace quire::server
