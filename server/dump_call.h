// One DumpKv call: runs a request to its end and answers once, with the cache positions each continuation
// still saw. Threads, lifetime, name and end as in GenerateCall, without writes in between.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "quire/engine.h"
#include "quire/v1/service.pb.h"
#include "server/call_registry.h"
#include "server/tenant_limits.h"
#include "server/work_pool.h"

namespace quire::server {

class DumpCall final : public grpc::ServerUnaryReactor,
                       public TokenSink,
                       public RunningCall,
                       public std::enable_shared_from_this<DumpCall> {
 public:
  static DumpCall* start(Engine& engine, CallRegistry& registry, WorkPool& pool,
                         grpc::CallbackServerContext& context, grpc::ByteBuffer& answer, Request request,
                         int64_t text_bytes, TenantLease lease);

  DumpCall(Engine& engine, CallRegistry& registry, grpc::CallbackServerContext& context,
           grpc::ByteBuffer& answer, std::string name, TenantLease lease);

  void on_event(const TokenEvent& event) override;
  void abort() override;
  void end_if_stalled(int64_t) override {}  // writes nothing before its end
  void OnCancel() override;
  void OnDone() override;

 private:
  void submit(Request request);
  std::optional<Error> begin(Request& request);
  void refuse(const Error& error);
  void take_output(const TokenEvent& event);  // with mutex_ held, as what follows
  grpc::Status status_at(const TokenEvent& last) const;
  void finish(const grpc::Status& status);

  Engine& engine_;
  CallRegistry& registry_;
  grpc::CallbackServerContext& context_;
  grpc::ByteBuffer& answer_;  // gRPC's, until Finish
  const std::string name_;
  const int64_t started_us_;
  std::shared_ptr<DumpCall> self_;  // until OnDone

  std::mutex mutex_;
  RequestId id_ = 0;          // 0 until the engine gave one
  bool queued_ = true;        // waits for a thread of the pool
  bool handed_over_ = false;  // to the engine, which refuses it or tells its last event
  TenantLease lease_;
  bool abort_wanted_ = false;
  bool registered_ = false;
  bool finished_ = false;
  std::optional<Error> refusal_;
  std::optional<Error> failure_;  // the first of its outputs'
  Usage usage_;
  Timings timings_;
  FinishReason reason_ = FinishReason::kNone;
  v1::DumpKvResponse response_;
};

}  // namespace quire::server
