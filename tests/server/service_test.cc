// The other calls, health and limits, over real loopback connections.
#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>

#include <future>
#include <thread>

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

v1::DumpKvRequest dump_request(const std::string& name, int32_t max_tokens) {
  v1::DumpKvRequest request;
  *request.mutable_request() = text_request("hello", max_tokens);
  request.mutable_request()->set_request_id(name);
  return request;
}

std::future<grpc::Status> dump_later(Rig& rig, const v1::DumpKvRequest& request) {
  return std::async(std::launch::async, [&rig, request] {
    grpc::ClientContext context;
    v1::DumpKvResponse out;
    return rig.stub->DumpKv(&context, request, &out);
  });
}

TEST(Service, DumpKvEndsByNameWithAbortAndKeepsItsNameMeanwhile) {
  Rig rig;
  auto running = dump_later(rig, dump_request("dump", 1'000'000));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 1; }));
  EXPECT_EQ(dump_later(rig, dump_request("dump", 1)).get().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  v1::AbortRequest abort;
  abort.add_request_ids("dump");
  v1::AbortResponse aborted;
  ASSERT_TRUE(
      (call<v1::AbortRequest, v1::AbortResponse>(rig, &v1::GenerationService::Stub::Abort, abort, aborted))
          .ok());
  EXPECT_EQ(aborted.aborted_request_ids_size(), 1);
  EXPECT_EQ(running.get().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(dump_later(rig, dump_request("dump", 1)).get().ok()) << "the name is free again";
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
}

// A message of 4 MiB has room for two million names, looked up on the thread that answers health checks.
TEST(Service, AbortTakesABoundedNumberOfNames) {
  Rig rig;
  v1::AbortRequest abort;
  for (int i = 0; i < 1024; ++i) abort.add_request_ids(fmt::format("{}", i));
  v1::AbortResponse aborted;
  const auto status = [&] {
    return call<v1::AbortRequest, v1::AbortResponse>(rig, &v1::GenerationService::Stub::Abort, abort,
                                                     aborted);
  };
  EXPECT_TRUE(status().ok());
  auto running = dump_later(rig, dump_request("dump", 1'000'000));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 1; }));
  abort.add_request_ids("dump");
  const grpc::Status refused = status();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(), "request_ids has 1025 names; at most 1024");
  EXPECT_EQ(violated_field(refused), "request_ids");
  EXPECT_EQ(rig.engine.num_running(), 1) << "all or none";
  abort.mutable_request_ids()->DeleteSubrange(0, 1);
  EXPECT_TRUE(status().ok());
  EXPECT_EQ(aborted.aborted_request_ids_size(), 1);
  EXPECT_EQ(running.get().error_code(), grpc::StatusCode::CANCELLED);
}

// A client that builds both calls from one request reads one kind of path.
TEST(Service, DumpKvNamesFieldsAsGenerateDoes) {
  Rig rig;
  // DumpKvRequest{request {request_id: "\xff"}}, and {request {messages {messages {role: "\xff"}}}}.
  const auto name = call_with_bytes(rig, "DumpKv", "\x0a\x03\x0a\x01\xff");
  EXPECT_EQ(name.error_message(), "request_id is not UTF-8 at byte 0 of 1");
  EXPECT_EQ(violated_field(name), "request_id");
  EXPECT_EQ(violated_field(call_with_bytes(rig, "DumpKv", "\x0a\x07\x22\x05\x0a\x03\x0a\x01\xff")),
            "messages.messages.role");
  v1::DumpKvRequest request = dump_request("dump", 1);
  request.mutable_request()->mutable_token_ids()->add_ids(-1);
  EXPECT_EQ(violated_field(dump_later(rig, request).get()), "token_ids");
}

TEST(Service, DumpKvThatADrainCancelsIsToldSoWithADelay) {
  Rig rig;
  auto running = dump_later(rig, dump_request("dump", 1'000'000));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 1; }));
  rig.service.set_draining();
  rig.engine.drain(0);
  const grpc::Status status = running.get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(status)) << status.error_message();
}

TEST(Service, DumpKvCountsTheWaitForAThreadAgainstTheDeadline) {
  Rig rig({}, {.texts = {.threads = 1}});
  rig.engine.hold_texts(true);
  auto first = dump_later(rig, dump_request("first", 1));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_reading() == 1; }));
  v1::DumpKvRequest late = dump_request("late", 1);
  late.mutable_request()->set_deadline_ms(20);
  auto waiting = dump_later(rig, late);
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  rig.engine.hold_texts(false);
  EXPECT_EQ(waiting.get().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(first.get().ok());
}

TEST(Service, NamesTheTextThatIsNotUtf8) {
  Rig rig;
  testing::internal::CaptureStderr();
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
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "")
      << "the log is at errors only, and this is the client's";
}

TEST(Service, ARefusalsLineHasTheCallersTraceparent) {
  Rig rig;
  const std::string traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  v1::GenerateRequest wrong = text_request("hello", 1);
  wrong.set_deadline_ms(-1);
  v1::DumpKvRequest wrong_dump;
  *wrong_dump.mutable_request() = wrong;
  testing::internal::CaptureStderr();
  configure_log(LogFormat::kKeyValue, LogLevel::kInfo);
  {
    grpc::ClientContext context;
    context.AddMetadata("traceparent", traceparent);
    EXPECT_EQ(run_stream(*rig.stub, wrong, context).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  {
    grpc::ClientContext context;
    context.AddMetadata("traceparent", traceparent);
    v1::DumpKvResponse out;
    EXPECT_EQ(rig.stub->DumpKv(&context, wrong_dump, &out).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  configure_log(LogFormat::kKeyValue, LogLevel::kError);
  const std::string log = testing::internal::GetCapturedStderr();
  size_t lines = 0;
  for (size_t at = 0; (at = log.find("traceparent=" + traceparent, at)) != std::string::npos; ++at) ++lines;
  EXPECT_EQ(lines, 2u) << log;
}

// The message that says so is short; the name came in one of up to 4 MiB.
TEST(Service, ANameThatIsTooLongIsCutInTheLog) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", 1);
  request.set_request_id(std::string(100'000, 'x'));
  testing::internal::CaptureStderr();
  configure_log(LogFormat::kKeyValue, LogLevel::kInfo);
  EXPECT_EQ(violated_field(run_stream(*rig.stub, request).status), "request_id");
  configure_log(LogFormat::kKeyValue, LogLevel::kError);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("name=xxxx"), std::string::npos) << log.substr(0, 200);
  EXPECT_LT(log.size(), 1000u);
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

TEST(WireCodec, BytesThatGrpcDoesNotGiveAreAnErrorAndNoEmptyMessage) {
  v1::GenerateRequest request;
  const Status parsed = parse(grpc::ByteBuffer(), request);  // holds nothing, not even no bytes
  ASSERT_FALSE(parsed.has_value());
  EXPECT_EQ(parsed.error().code, Code::kInternal);
  EXPECT_NE(parsed.error().message.find("the message's bytes cannot be read"), std::string::npos);
  const grpc::Slice no_bytes;
  EXPECT_TRUE(parse(grpc::ByteBuffer(&no_bytes, 1), request));
}

}  // namespace
}  // namespace quire::server
