#include "server/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string_view>
#include <unordered_set>

#include "server/call_log.h"
#include "server/call_outcome.h"
#include "server/client.h"
#include "server/dump_call.h"
#include "server/list_counts.h"
#include "server/request_mapping.h"
#include "server/response_mapping.h"
#include "server/status.h"
#include "server/wire_codec.h"
#include "src/base/longest_time.h"
#include "src/base/retry_delay.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

Error debugging_is_off() {
  return {.code = Code::kPermissionDenied,
          .message = "KV dumps are off on a public address; start the server with --debug-rpcs",
          .field = "dump_kv",
          .retry_delay_ms = {}};
}

Error stopping() {
  return {.code = Code::kUnavailable,
          .message = "the server stops and reads no more texts",
          .field = {},
          .retry_delay_ms = kRetryDelayMs};
}

// A look-up each, on the thread that answers health checks: half a million took a third of a second.
constexpr int kMaxAbortNames = 1024;

Error too_many_names(int count) {
  return invalid(fmt::format("request_ids has {} names; at most {}", count, kMaxAbortNames), "request_ids");
}

// With its line in the log.
grpc::Status refusal(const grpc::CallbackServerContext& context, const Error& error,
                     const std::string& name = {}, std::span<const QuotaViolation> violations = {}) {
  grpc::Status status = to_grpc_status(error, violations);
  log_call({.name = cut_text(name, kMaxNameBytes), .traceparent = traceparent(context)}, status);
  return status;
}

// DumpKv's request is one of Generate's: its fields are called as they are there, whoever finds fault with them.
Error named_as_in_generate(Error error) {
  constexpr std::string_view kOuter = "request.";
  if (!error.field.starts_with(kOuter)) return error;
  error.field.erase(0, kOuter.size());
  if (error.message.starts_with(kOuter)) error.message.erase(0, kOuter.size());
  return error;
}

// Parses where the lists, counted first, are within the limits; `name` is the request's in any case.
Status parse_counted(const grpc::ByteBuffer& bytes, WireRequest (*look)(std::string_view),
                     const SamplingLimits& limits, google::protobuf::Message& wire, std::string& name) {
  const Result<std::string> flat = flatten(bytes);
  if (!flat) return flat.error();
  const WireRequest seen = look(*flat);
  name = seen.request_id;
  if (Status counted = validate(seen.lists, limits); !counted) return counted;
  return parse(*flat, wire);
}

// What the wire leaves out of its sampling is the model's to say.
Result<Request> request_of(const v1::GenerateRequest& wire, const ModelCard& model) {
  Request defaults = wire_defaults();
  defaults.sampling = model.default_sampling;
  return to_request(wire, model.vocab_size, defaults);
}

// A stream that only says why it did not start.
class RefusedStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Parses, calls `handler(request) -> Result<Response>`, gives the response and the status.
template <class RequestMessage, class Handler>
grpc::Status respond(const grpc::ByteBuffer& bytes, grpc::ByteBuffer& response, const Handler& handler) {
  RequestMessage request;
  if (const Status parsed = parse(bytes, request); !parsed) return to_grpc_status(parsed.error());
  const auto result = handler(request);
  if (!result) return to_grpc_status(result.error());
  response = serialize(*result);
  return grpc::Status::OK;
}

// On gRPC's thread: for what is quick.
template <class RequestMessage, class Handler>
grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext& context, const grpc::ByteBuffer& bytes,
                                 grpc::ByteBuffer& response, const Handler& handler) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(respond<RequestMessage>(bytes, response, handler));
  return reactor;
}

// On a thread of the pool: for texts. Context, request and response are gRPC's and live until Finish, which may come before the thread
// is done with the text.
template <class RequestMessage, class Handler>
grpc::ServerUnaryReactor* answer_from(WorkPool& pool, TextCalls& calls, HostMemory& memory,
                                      grpc::CallbackServerContext& context, const grpc::ByteBuffer& bytes,
                                      grpc::ByteBuffer& response, const Handler& handler) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  if (const std::optional<Error> full = memory.refuse_text()) {
    reactor->Finish(to_grpc_status(*full));
    return reactor;
  }
  const std::optional<TextCalls::Id> id = calls.add(context);
  if (!id) {
    reactor->Finish(to_grpc_status(stopping()));
    return reactor;
  }
  const Status queued =
      pool.submit(static_cast<int64_t>(bytes.Length()), [&calls, &response, id = *id, held = bytes, handler] {
        grpc::ByteBuffer answer;
        const grpc::Status status =
            calls.is_wanted(id) ? respond<RequestMessage>(held, answer, handler) : grpc::Status::CANCELLED;
        grpc::ServerUnaryReactor* const call = calls.take(id);
        if (call == nullptr) return;
        response.Swap(&answer);
        call->Finish(status);
      });
  if (queued) return reactor;
  if (calls.take(*id) != nullptr) reactor->Finish(to_grpc_status(queued.error()));
  return reactor;
}

const Clock& real_clock() {
  static const SteadyClock clock;
  return clock;
}

// The call's own gRPC deadline, told to the engine so that it can refuse what it cannot finish in time.
void apply_call_deadline(const grpc::CallbackServerContext& context, Request& request) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return;
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::system_clock::now())
          .count();
  const int64_t left_ms = std::clamp<int64_t>(left, 1, kLongestMs);
  request.deadline_ms = std::min(request.deadline_ms.value_or(left_ms), left_ms);
}

}  // namespace

// A stall is noticed at most an eighth of the limit late.
GenerationServer::GenerationServer(const ServiceOptions& options)
    : options_(options),
      memory_(options.host_memory),
      tenants_(std::make_shared<TenantLimiter>(options.tenants,
                                               options.clock != nullptr ? *options.clock : real_clock())),
      registry_(std::clamp<int64_t>(options.stream.max_stall_ms / 8, 10, 1000)),
      texts_(options.texts) {}

Status GenerationServer::start() {
  if (Status watches = registry_.start(); !watches) return watches;
  return texts_.start();
}

Result<Engine*> GenerationServer::engine() const {
  if (Engine* engine = engine_) return engine;
  return Error{.code = Code::kUnavailable,
               .message = "the model is loading",
               .field = {},
               .retry_delay_ms = kRetryDelayMs};
}

Result<Engine*> GenerationServer::ready_engine() {
  Result<Engine*> engine = this->engine();
  if (!engine) return engine;
  if (std::optional<Error> full = memory_.refuse_request()) return *std::move(full);
  return engine;
}

Status GenerationServer::watch_host_memory(int64_t untouched_bytes) {
  return memory_.watch(untouched_bytes);
}

void GenerationServer::end_texts() {
  const Engine* engine = engine_;
  text_calls_.end_all(outlasted_drain(engine == nullptr ? 0 : engine->config().drain_timeout_ms));
  registry_.end_all();
}

TenantLimiter::Admission GenerationServer::admit(const Request& request, const Context& context,
                                                 const Engine& engine) {
  if (!options_.tenants.any()) return {};
  return tenants_->admit(client_of(request.tenant, context.peer()),
                         most_tokens(request, engine.config().sampling_limits));
}

CallParts GenerationServer::parts_of(Engine& engine, Context& context, const Bytes& bytes, Request request,
                                     TenantLease lease) {
  apply_call_deadline(context, request);
  return {.engine = engine,
          .registry = registry_,
          .pool = texts_,
          .context = context,
          .request = std::move(request),
          .text_bytes = static_cast<int64_t>(bytes.Length()),
          .lease = std::move(lease)};
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServer::Generate(Context* context, const Bytes* bytes) {
  v1::GenerateRequest wire;
  std::string name;
  const auto refuse = [&](const Error& error, std::span<const QuotaViolation> violations = {}) {
    return new RefusedStream(refusal(*context, error, name, violations));
  };
  const Result<Engine*> engine = ready_engine();
  if (!engine) return refuse(engine.error());
  const SamplingLimits& limits = (*engine)->config().sampling_limits;
  if (const Status parsed = parse_counted(*bytes, look_at_generate, limits, wire, name); !parsed)
    return refuse(parsed.error());
  Result<Request> request = request_of(wire, (*engine)->model());
  if (!request) return refuse(request.error());
  if (request->dump_kv && !options_.allow_debug) return refuse(debugging_is_off());
  TenantLimiter::Admission admission = admit(*request, *context, **engine);
  if (admission.refusal) return refuse(admission.refusal->error, admission.refusal->violations);
  return GenerateCall::start(
      parts_of(**engine, *context, *bytes, *std::move(request), std::move(admission.lease)), options_.stream);
}

grpc::ServerUnaryReactor* GenerationServer::Tokenize(Context* context, const Bytes* bytes, Bytes* response) {
  return answer_from<v1::TokenizeRequest>(
      texts_, text_calls_, memory_, *context, *bytes, *response,
      [this](const v1::TokenizeRequest& wire) -> Result<v1::TokenizeResponse> {
        const Result<Engine*> engine = this->engine();
        if (!engine) return engine.error();
        const bool add_special = wire.has_add_special_tokens() ? wire.add_special_tokens() : true;
        const bool as_text = wire.has_special_as_text() ? wire.special_as_text() : true;
        const auto ids = (*engine)->tokenize(wire.text(), add_special, as_text);
        if (!ids) return ids.error();
        v1::TokenizeResponse out;
        *out.mutable_token_ids() = {ids->begin(), ids->end()};
        return out;
      });
}

grpc::ServerUnaryReactor* GenerationServer::Detokenize(Context* context, const Bytes* bytes,
                                                       Bytes* response) {
  return answer_from<v1::DetokenizeRequest>(
      texts_, text_calls_, memory_, *context, *bytes, *response,
      [this](const v1::DetokenizeRequest& wire) -> Result<v1::DetokenizeResponse> {
        const Result<Engine*> engine = this->engine();
        if (!engine) return engine.error();
        if (const Status s = check_token_ids(wire.token_ids(), (*engine)->model().vocab_size, "token_ids");
            !s)
          return s.error();
        const bool skip_special = wire.has_skip_special_tokens() ? wire.skip_special_tokens() : true;
        const auto text =
            (*engine)->detokenize({wire.token_ids().begin(), wire.token_ids().end()}, skip_special);
        if (!text) return text.error();
        v1::DetokenizeResponse out;
        out.set_text(*text);
        return out;
      });
}

grpc::ServerUnaryReactor* GenerationServer::GetModel(Context* context, const Bytes* bytes, Bytes* response) {
  return answer<v1::GetModelRequest>(*context, *bytes, *response,
                                     [&](const v1::GetModelRequest&) -> Result<v1::GetModelResponse> {
                                       const Result<Engine*> engine = this->engine();
                                       if (!engine) return engine.error();
                                       return to_wire((*engine)->model(), (*engine)->config());
                                     });
}

grpc::ServerUnaryReactor* GenerationServer::GetLoad(Context* context, const Bytes* bytes, Bytes* response) {
  return answer<v1::GetLoadRequest>(*context, *bytes, *response,
                                    [&](const v1::GetLoadRequest&) -> Result<v1::GetLoadResponse> {
                                      const Result<Engine*> engine = this->engine();
                                      if (!engine) return engine.error();
                                      v1::GetLoadResponse load = to_wire((*engine)->stats());
                                      add_to_wire(tenants_->stats(), memory_.stats(), texts_.stats(), load);
                                      return load;
                                    });
}

grpc::ServerUnaryReactor* GenerationServer::Abort(Context* context, const Bytes* bytes, Bytes* response) {
  return answer<v1::AbortRequest>(*context, *bytes, *response,
                                  [&](const v1::AbortRequest& wire) -> Result<v1::AbortResponse> {
                                    if (wire.request_ids_size() > kMaxAbortNames)
                                      return too_many_names(wire.request_ids_size());
                                    v1::AbortResponse out;
                                    std::unordered_set<std::string_view> named;
                                    for (const std::string& name : wire.request_ids())
                                      if (named.insert(name).second && registry_.abort(name))
                                        out.add_aborted_request_ids(name);
                                    return out;
                                  });
}

grpc::ServerUnaryReactor* GenerationServer::DumpKv(Context* context, const Bytes* bytes, Bytes* response) {
  v1::DumpKvRequest wire;
  std::string name;
  const auto refuse = [&](const Error& error, std::span<const QuotaViolation> violations = {}) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(refusal(*context, error, name, violations));
    return reactor;
  };
  if (!options_.allow_debug) return refuse(debugging_is_off());
  const Result<Engine*> engine = ready_engine();
  if (!engine) return refuse(engine.error());
  const SamplingLimits& limits = (*engine)->config().sampling_limits;
  if (const Status parsed = parse_counted(*bytes, look_at_dump_kv, limits, wire, name); !parsed)
    return refuse(named_as_in_generate(parsed.error()));
  Result<Request> request = request_of(wire.request(), (*engine)->model());
  if (!request) return refuse(request.error());
  TenantLimiter::Admission admission = admit(*request, *context, **engine);
  if (admission.refusal) return refuse(admission.refusal->error, admission.refusal->violations);
  return DumpCall::start(
      parts_of(**engine, *context, *bytes, *std::move(request), std::move(admission.lease)), *response);
}

}  // namespace quire::server
