// One DumpKv call: runs a request to its end and answers once, with the cache positions each continuation
// still saw. Threads and lifetime as in GenerateCall, without writes in between.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>

#include "quire/engine.h"
#include "quire/v1/service.pb.h"
#include "server/work_pool.h"

namespace quire::server {

class DumpCall final : public grpc::ServerUnaryReactor,
                       public TokenSink,
                       public std::enable_shared_from_this<DumpCall> {
 public:
  static DumpCall* start(Engine& engine, WorkPool& pool, grpc::ByteBuffer& answer, Request request,
                         int64_t text_bytes);

  DumpCall(Engine& engine, grpc::ByteBuffer& answer) : engine_(engine), answer_(answer) {}

  void on_event(const TokenEvent& event) override;
  void OnCancel() override;
  void OnDone() override { self_.reset(); }

 private:
  void submit(Request request);
  void finish(const grpc::Status& status);  // with mutex_ held

  Engine& engine_;
  grpc::ByteBuffer& answer_;  // gRPC's, until Finish
  std::shared_ptr<DumpCall> self_;

  std::mutex mutex_;
  RequestId id_ = 0;
  bool finished_ = false;
  std::string name_;
  int64_t started_us_ = 0;
  Usage usage_;
  Timings timings_;
  FinishReason reason_ = FinishReason::kNone;
  v1::DumpKvResponse response_;
};

}  // namespace quire::server
