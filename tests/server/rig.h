// A server over a FakeEngine on a free loopback port, and a client of it.
#pragma once

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/listener.h"
#include "server/service.h"
#include "src/base/log.h"
#include "tests/server/fake_engine.h"

namespace quire::server {

struct Rig {
  explicit Rig(const FakeEngineOptions& engine_options = {}, const ServiceOptions& service_options = {},
               ListenOptions listen = ListenOptions{.port = 0})
      : engine(engine_options), service(service_options) {
    configure_log(LogFormat::kKeyValue, LogLevel::kError);
    if (Status started = service.start(); !started) throw std::runtime_error(started.error().message);
    if (Status room = service.watch_host_memory(0); !room) throw std::runtime_error(room.error().message);
    service.set_engine(&engine);
    auto opened = Listener::open(listen, service);
    if (!opened) throw std::runtime_error(opened.error().message);
    listener = std::move(opened).value();
    listener->set_serving(kServiceName, true);
    stub = v1::GenerationService::NewStub(channel());
  }

  // A connection of its own, so that a client's flow control and ping limits are its own too. It is made before the first call:
  // many at once were seen to fail in the client's connect(), and a call that does not wait fails with it.
  std::shared_ptr<grpc::Channel> channel(grpc::ChannelArguments arguments = {}) const {
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto made = grpc::CreateCustomChannel(listener->address(), grpc::InsecureChannelCredentials(), arguments);
    made->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10));
    return made;
  }

  FakeEngine engine;
  GenerationServer service;
  std::unique_ptr<Listener> listener;  // ends first: calls end before the service and the engine
  std::unique_ptr<v1::GenerationService::Stub> stub;
};

inline v1::GenerateRequest text_request(const std::string& text, int32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

struct StreamResult {
  std::vector<v1::GenerateResponse> messages;
  grpc::Status status;

  std::string text(int32_t index = 0) const {
    std::string all;
    for (const auto& m : messages)
      if (m.index() == index) all += m.text();
    return all;
  }
};

inline StreamResult run_stream(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                               grpc::ClientContext& context) {
  StreamResult result;
  const auto reader = stub.Generate(&context, request);
  for (v1::GenerateResponse message; reader->Read(&message);) result.messages.push_back(message);
  result.status = reader->Finish();
  return result;
}

inline StreamResult run_stream(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return run_stream(stub, request, context);
}

// "SERVING", "NOT_SERVING", or the code of a call that failed or took over 10 s.
inline std::string health_of(const Rig& rig, const std::string& service) {
  using namespace ::grpc::health::v1;
  const auto stub = Health::NewStub(rig.channel());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  return status.ok() ? HealthCheckResponse::ServingStatus_Name(response.status())
                     : std::to_string(status.error_code());
}

// The detail of type T in a status, if it has one.
template <class T>
std::optional<T> error_detail(const grpc::Status& status) {
  google::rpc::Status parsed;
  if (!parsed.ParseFromString(status.error_details())) return std::nullopt;
  T out;
  for (const auto& any : parsed.details())
    if (any.UnpackTo(&out)) return out;
  return std::nullopt;
}

inline std::string violated_field(const grpc::Status& status) {
  const auto bad = error_detail<google::rpc::BadRequest>(status);
  return bad && bad->field_violations_size() > 0 ? bad->field_violations(0).field() : "";
}

}  // namespace quire::server
