// quire.v1.GenerationService over an Engine. Handlers run on gRPC's threads, never wait for the engine's steps and
// hand texts to the work pool.
#pragma once

#include <atomic>
#include <memory>

#include "quire/engine.h"
#include "quire/v1/service.grpc.pb.h"
#include "server/call_registry.h"
#include "server/generate_call.h"
#include "server/host_memory.h"
#include "server/tenant_limits.h"
#include "server/text_calls.h"
#include "server/work_pool.h"

namespace quire::server {

struct ServiceOptions {
  StreamLimits stream;
  WorkPoolOptions texts;
  TenantLimits tenants;
  HostMemoryOptions host_memory;
  const Clock* clock = nullptr;  // of the tenants' limits; none = the real one. It outlives the engine
  bool allow_debug = true;       // DumpKv, and dump_kv of Generate
};

// Each method takes and gives bytes (see wire_codec.h); the generated mix-ins say so one by one.
namespace detail {
using Service = v1::GenerationService;
template <class Base>
using RawUnary = Service::WithRawCallbackMethod_Tokenize<Service::WithRawCallbackMethod_Detokenize<
    Service::WithRawCallbackMethod_GetModel<Service::WithRawCallbackMethod_GetLoad<
        Service::WithRawCallbackMethod_Abort<Service::WithRawCallbackMethod_DumpKv<Base>>>>>>;
using RawService = Service::WithRawCallbackMethod_Generate<RawUnary<Service::Service>>;
}  // namespace detail

class GenerationServer final : public detail::RawService {
 public:
  explicit GenerationServer(const ServiceOptions& options);

  Status start();  // its threads; once, before it listens

  // Once, when the engine is open: from here on its memory has a ceiling.
  Status watch_host_memory(int64_t untouched_bytes);
  // Until an engine is set every call but Abort, which finds nothing that runs, gets UNAVAILABLE. It must outlive the gRPC server.
  void set_engine(Engine* engine) { engine_ = engine; }
  void set_draining() { registry_.set_draining(); }
  size_t num_calls() const { return registry_.size(); }
  size_t num_queued_texts() const { return texts_.num_queued(); }
  // Those of every call, with the ones that are being read.
  size_t num_unfinished_texts() const { return texts_.num_unfinished(); }
  // Tokenize and Detokenize get UNAVAILABLE from here on; those that were taken go on.
  void close_texts() { text_calls_.close(); }
  // Calls that still go on, all of which wait for a text of theirs once the engine has drained, end with CANCELLED and a retry delay;
  // the threads that read their texts come to no end by that.
  void end_texts();

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerWriteReactor<Bytes>* Generate(Context* context, const Bytes* request) override;
  grpc::ServerUnaryReactor* Tokenize(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* Detokenize(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* GetModel(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* GetLoad(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* Abort(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* DumpKv(Context* context, const Bytes* request, Bytes* response) override;

 private:
  Result<Engine*> engine() const;
  // What may run a request: an engine, and host memory.
  Result<Engine*> ready_engine();
  CallParts parts_of(Engine& engine, Context& context, const Bytes& bytes, Request request,
                     TenantLease lease);
  TenantLimiter::Admission admit(const Request& request, const Context& context, const Engine& engine);

  const ServiceOptions options_;
  std::atomic<Engine*> engine_{nullptr};
  HostMemory memory_;
  const std::shared_ptr<TenantLimiter> tenants_;  // calls that the engine still holds share it
  CallRegistry registry_;
  TextCalls text_calls_;
  WorkPool texts_;  // ends first: its work names the others
};

// Full name, as health checks and reflection know it.
inline constexpr const char* kServiceName = "quire.v1.GenerationService";

}  // namespace quire::server
