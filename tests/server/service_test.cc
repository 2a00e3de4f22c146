// The other calls, health, limits and addresses, over real loopback connections.
#include <grpcpp/generic/generic_stub.h>

#include <fstream>

#include "server/wire_codec.h"
#include "tests/server/rig.h"

namespace quire::server {
namespace {

template <class Request, class Response>
using Method = grpc::Status (v1::GenerationService::Stub::*)(grpc::ClientContext*, const Request&, Response*);

template <class Request, class Response>
grpc::Status call(Rig& rig, Method<Request, Response> method, const Request& request, Response& response) {
  grpc::ClientContext context;
  return ((*rig.stub).*method)(&context, request, &response);
}

// A unary call with bytes that no generated client would send.
grpc::Status call_with_bytes(Rig& rig, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(rig.channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  const auto call = stub.PrepareUnaryCall(&context, "/quire.v1.GenerationService/" + method, request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool fine = false;
  queue.Next(&tag, &fine);
  return status;
}

TEST(Service, TokenizesAndDetokenizes) {
  Rig rig;
  v1::TokenizeRequest text;
  text.set_text("ab");
  v1::TokenizeResponse ids;
  ASSERT_TRUE((call<v1::TokenizeRequest, v1::TokenizeResponse>(rig, &v1::GenerationService::Stub::Tokenize,
                                                               text, ids))
                  .ok());
  EXPECT_EQ(ids.token_ids_size(), 2);
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse out;
  ASSERT_TRUE((call<v1::DetokenizeRequest, v1::DetokenizeResponse>(
                   rig, &v1::GenerationService::Stub::Detokenize, back, out))
                  .ok());
  EXPECT_EQ(out.text(), "ab");
}

TEST(Service, DetokenizeTellsTheIdOutOfRange) {
  Rig rig;
  v1::DetokenizeRequest request;
  request.add_token_ids(-1);
  v1::DetokenizeResponse out;
  const auto status = call<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      rig, &v1::GenerationService::Stub::Detokenize, request, out);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(violated_field(status), "token_ids");
}

TEST(Service, DescribesModelAndLoad) {
  Rig rig;
  v1::GetModelResponse model;
  ASSERT_TRUE((call<v1::GetModelRequest, v1::GetModelResponse>(rig, &v1::GenerationService::Stub::GetModel,
                                                               {}, model))
                  .ok());
  EXPECT_EQ(model.name(), "fake");
  EXPECT_EQ(model.kv_cache_dtype(), "f32");
  EXPECT_FALSE(model.has_bos_token_id()) << "the fake model has none";
  v1::GetLoadResponse load;
  ASSERT_TRUE(
      (call<v1::GetLoadRequest, v1::GetLoadResponse>(rig, &v1::GenerationService::Stub::GetLoad, {}, load))
          .ok());
  EXPECT_EQ(load.kv_usage(), 0.25);
}

TEST(Service, DumpKvReportsThePositionsOfEachContinuation) {
  Rig rig;
  v1::DumpKvRequest request;
  *request.mutable_request() = text_request("hello", 4);
  request.mutable_request()->mutable_sampling()->set_n(2);
  v1::DumpKvResponse out;
  ASSERT_TRUE(
      (call<v1::DumpKvRequest, v1::DumpKvResponse>(rig, &v1::GenerationService::Stub::DumpKv, request, out))
          .ok());
  ASSERT_EQ(out.outputs_size(), 2);
  EXPECT_EQ(out.outputs(1).token_ids_size(), 4);
  EXPECT_EQ(out.outputs(1).kv_dump().layers(1).heads(0).positions_size(), 2);
}

TEST(Service, DumpKvIsRefusedWhereDebuggingIsOff) {
  Rig rig({}, {.allow_debug = false});
  v1::DumpKvRequest request;
  *request.mutable_request() = text_request("hello", 4);
  v1::DumpKvResponse out;
  const auto status =
      call<v1::DumpKvRequest, v1::DumpKvResponse>(rig, &v1::GenerationService::Stub::DumpKv, request, out);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(run_stream(*rig.stub,
                       [] {
                         v1::GenerateRequest dumping = text_request("hello", 4);
                         dumping.set_dump_kv(true);
                         return dumping;
                       }())
                .status.error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 0);
}

TEST(Service, DumpKvOfACancelledCallEndsItsRequest) {
  Rig rig;
  v1::DumpKvRequest request;
  *request.mutable_request() = text_request("hello", 1'000'000);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::DumpKvResponse out;
  EXPECT_EQ(rig.stub->DumpKv(&context, request, &out).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
}

TEST(Service, NamesTheTextThatIsNotUtf8) {
  Rig rig;
  // GenerateRequest{messages {messages {role: "\xff"}}}: fields 4, 1, 1.
  const auto status = call_with_bytes(rig, "Generate", "\x22\x05\x0a\x03\x0a\x01\xff");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(violated_field(status), "messages.messages.role");
  EXPECT_EQ(status.error_message(), "messages.messages.role is not UTF-8 at byte 0 of 1");
  EXPECT_EQ(violated_field(call_with_bytes(rig, "Tokenize",
                                           "\x0a\x03"
                                           "ab\xc3")),
            "text");
  EXPECT_EQ(health_of(rig, kServiceName), "SERVING") << "the server goes on";
}

TEST(Service, RefusesBytesThatAreNoMessage) {
  Rig rig;
  for (const char* method : {"Generate", "Tokenize", "Detokenize", "Abort", "DumpKv"}) {
    const auto status = call_with_bytes(rig, method, "\x0a\x7f");  // says 127 bytes follow; none do
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << method << ": " << status.error_message();
    EXPECT_NE(status.error_message().find("well-formed"), std::string::npos) << method;
  }
}

TEST(Service, RefusesAMessageOverTheLimit) {
  Rig rig;
  const auto status = run_stream(*rig.stub, text_request(std::string((4 << 20) + 1, 'x'), 1)).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(run_stream(*rig.stub, text_request(std::string((4 << 20) - 100, 'x'), 1)).status.ok());
}

// What unpacks to more than the limit must not be unpacked to find that out.
TEST(Service, TakesNoCompressedMessage) {
  Rig rig;
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    const grpc::Status status =
        run_stream(*rig.stub, text_request(std::string(8 << 20, 'x'), 1), context).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
  }
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 0);
  EXPECT_TRUE(run_stream(*rig.stub, text_request("hello", 1)).status.ok()) << "the server goes on";
}

// gRPC closes the connection that sent too much; others do not notice.
TEST(Service, RefusesMetadataOverTheLimit) {
  Rig rig;
  const auto other = v1::GenerationService::NewStub(rig.channel());
  grpc::ClientContext large, small;
  large.AddMetadata("x-large", std::string(32 << 10, 'x'));
  EXPECT_FALSE(run_stream(*rig.stub, text_request("hello", 1), large).status.ok());
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 0);
  small.AddMetadata("x-small", std::string(8 << 10, 'x'));
  const grpc::Status status = run_stream(*other, text_request("hello", 1), small).status;
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(Health, TellsLifeAndReadinessApart) {
  Rig rig;
  EXPECT_EQ(health_of(rig, ""), "SERVING");
  EXPECT_EQ(health_of(rig, kServiceName), "SERVING");
  rig.listener->set_serving(kServiceName, false);
  EXPECT_EQ(health_of(rig, ""), "SERVING") << "a draining process lives";
  EXPECT_EQ(health_of(rig, kServiceName), "NOT_SERVING");
  EXPECT_EQ(health_of(rig, "no.such.Service"), std::to_string(grpc::StatusCode::NOT_FOUND));
}

std::string why_not_opened(const ListenOptions& options) {
  GenerationServer service({});
  const auto opened = Listener::open(options, service);
  return opened ? "" : opened.error().message;
}

TEST(Listener, NamesABusyPort) {
  Rig rig;
  const std::string port = rig.listener->address().substr(rig.listener->address().rfind(':') + 1);
  EXPECT_EQ(why_not_opened({.port = std::stoi(port)}),
            "cannot listen on 127.0.0.1:" + port + ": Address already in use");
}

TEST(Listener, RefusesAPublicAddressWithoutTlsOrAProxy) {
  EXPECT_NE(why_not_opened({.host = "0.0.0.0", .port = 0}).find("--behind-proxy"), std::string::npos);
  EXPECT_NE(why_not_opened({.host = "::", .port = 0}).find("--tls-cert"), std::string::npos);
  EXPECT_EQ(why_not_opened({.host = "0.0.0.0", .port = 0, .behind_proxy = true}), "");
}

TEST(Listener, KnowsLoopback) {
  for (const char* host : {"127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/run/quire.sock"})
    EXPECT_TRUE(is_loopback(host)) << host;
  for (const char* host : {"0.0.0.0", "::", "10.0.0.1", "127.evil.example", "example.org", ""})
    EXPECT_FALSE(is_loopback(host)) << host;
}

TEST(Listener, NamesTheTlsFileAtFault) {
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = "/nonexistent.pem"}),
            "--tls-cert and --tls-key go together; only one is set");
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = "/nonexistent.pem", .tls_key = "/nonexistent.key"}),
            "--tls-cert /nonexistent.pem: No such file or directory");
  const std::string path = testing::TempDir() + "/quire_not_pem";
  std::ofstream(path) << "hello";
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = path, .tls_key = path}),
            "--tls-cert " + path + ": not a PEM file");
}

}  // namespace
}  // namespace quire::server
