// Generate over real loopback connections, against an engine that makes a token every 0.2 ms by rule: what a
// client sees, and what the engine is told when the client cancels, vanishes, falls behind or stops reading.
#include <arpa/inet.h>
#include <grpcpp/create_channel_posix.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "tests/server/rig.h"

namespace quire::server {
namespace {

constexpr int32_t kForever = 1'000'000;  // tokens: longer than any test waits

TEST(Generate, StreamsEveryTokenOfEveryContinuationInOrder) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", 5);
  request.mutable_sampling()->set_n(3);
  const StreamResult result = run_stream(*rig.stub, request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.messages.size(), 15u);
  for (int i = 0; i < 3; ++i) {
    std::string expected;
    for (int t = 0; t < 5; ++t) expected += std::to_string(i) + "." + std::to_string(t) + " ";
    EXPECT_EQ(result.text(i), expected);
  }
}

TEST(Generate, NamesTheRequestInItsFirstMessageOnly) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", 3);
  request.set_request_id("mine");
  const StreamResult result = run_stream(*rig.stub, request);
  ASSERT_EQ(result.messages.size(), 3u);
  EXPECT_EQ(result.messages[0].request_id(), "mine");
  EXPECT_EQ(result.messages[0].prompt_token_ids_size(), 3);
  EXPECT_EQ(result.messages[1].request_id(), "");
  EXPECT_FALSE(run_stream(*rig.stub, text_request("hello", 1)).messages[0].request_id().empty());
}

TEST(Generate, GivesUsageAndReasonInTheLastMessageOnly) {
  Rig rig;
  const StreamResult result = run_stream(*rig.stub, text_request("hello", 4));
  ASSERT_EQ(result.messages.size(), 4u);
  EXPECT_FALSE(result.messages[2].has_usage());
  EXPECT_EQ(result.messages[2].finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(result.messages[3].usage().completion_tokens(), 4);
  EXPECT_EQ(result.messages[3].usage().cached_tokens(), 2);
  EXPECT_EQ(result.messages[3].finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(Generate, TellsTheFieldAtFault) {
  Rig rig;
  EXPECT_EQ(violated_field(run_stream(*rig.stub, v1::GenerateRequest()).status), "prompt");
  v1::GenerateRequest request = text_request("hello", 4);
  request.mutable_sampling()->set_top_p(1.5);
  const StreamResult result = run_stream(*rig.stub, request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(violated_field(result.status), "sampling.top_p");
  EXPECT_NE(result.status.error_message().find("1.5"), std::string::npos) << result.status.error_message();
}

// A parser would say first that the text is not UTF-8.
TEST(Generate, ListsOverTheirLimitsAreRefusedUnread) {
  Rig rig;
  v1::GenerateRequest request;
  request.set_request_id("mine");
  request.set_text("\xff");
  for (int32_t id = 0; id < 1025; ++id) (*request.mutable_sampling()->mutable_logit_bias())[id] = 1;
  const StreamResult result = run_stream(*rig.stub, request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(result.status.error_message(), "logit_bias has 1025 entries; at most 1024 (max_logit_bias)");
  EXPECT_EQ(violated_field(result.status), "sampling.logit_bias");
  v1::DumpKvRequest dump;
  *dump.mutable_request() = request;
  v1::DumpKvResponse none;
  grpc::ClientContext context;
  const grpc::Status dumped = rig.stub->DumpKv(&context, dump, &none);
  EXPECT_EQ(dumped.error_message(), result.status.error_message());
  EXPECT_EQ(violated_field(dumped), "sampling.logit_bias");
}

TEST(Generate, TellsTheTokenIdOutOfRange) {
  Rig rig;
  v1::GenerateRequest request;
  for (const int32_t id : {1, 511, 512}) request.mutable_token_ids()->add_ids(id);
  const StreamResult result = run_stream(*rig.stub, request);
  EXPECT_EQ(result.status.error_message(),
            "token_ids has id 512 at position 2; ids of this model run from 0 to 511");
  EXPECT_EQ(violated_field(result.status), "token_ids");
}

TEST(Generate, TellsWhenToTryAgainWhileTheQueueIsFull) {
  Rig rig({.max_requests = 0});
  const StreamResult result = run_stream(*rig.stub, text_request("hello", 4));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto retry = error_detail<google::rpc::RetryInfo>(result.status);
  ASSERT_TRUE(retry);
  EXPECT_EQ(retry->retry_delay().seconds(), 1);
  EXPECT_EQ(retry->retry_delay().nanos(), 500'000'000);
}

TEST(Generate, IsRefusedWithADelayWhileTheModelLoads) {
  Rig rig;
  rig.service.set_engine(nullptr);
  const StreamResult result = run_stream(*rig.stub, text_request("hello", 4));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(result.status));
}

TEST(Generate, AbortsTheRequestOfAClientThatCancels) {
  Rig rig;
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, text_request("hello", kForever));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(rig.engine.num_running(), 1);
  context.TryCancel();
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(rig.engine.num_aborted(), 1);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
}

TEST(Generate, AbortsTheRequestOfALostConnection) {
  Rig rig;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(
      std::stoi(rig.listener->address().substr(rig.listener->address().rfind(':') + 1))));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const int ours = dup(fd);  // gRPC owns fd
  const auto stub = v1::GenerationService::NewStub(grpc::CreateInsecureChannelFromFd("lost", fd));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", kForever));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  shutdown(ours, SHUT_RDWR);
  close(ours);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
  while (reader->Read(&message)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(Generate, EndsAtTheRequestsDeadlineWithWhatItUsed) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", kForever);
  request.set_deadline_ms(50);
  const StreamResult result = run_stream(*rig.stub, request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_FALSE(result.messages.empty());
  EXPECT_EQ(result.messages.back().finish_reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_GT(result.messages.back().usage().completion_tokens(), 0);
}

TEST(Generate, TellsTheEngineTheCallsOwnDeadline) {
  Rig rig;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const StreamResult result = run_stream(*rig.stub, text_request("hello", kForever), context);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
  ASSERT_TRUE(rig.engine.last_request().deadline_ms);
  // gRPC sends whole ms: from now, rounded down, to the deadline, rounded up.
  EXPECT_LE(*rig.engine.last_request().deadline_ms, 200 + 1);
}

TEST(Generate, KeepsTheShorterOfTwoDeadlines) {
  Rig rig;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::GenerateRequest request = text_request("hello", 1);
  request.mutable_token_ids()->add_ids(
      1);  // a text would wait for a thread that reads it, and the wait counts
  request.set_deadline_ms(1234);
  EXPECT_TRUE(run_stream(*rig.stub, request, context).status.ok());
  EXPECT_EQ(rig.engine.last_request().deadline_ms, 1234);
}

TEST(Generate, SamplesAsTheModelSaysWhereTheRequestDoesNot) {
  FakeEngineOptions options;
  options.default_sampling.temperature = 0.6;
  options.default_sampling.top_k = 20;
  Rig rig(options);
  v1::GenerateRequest request = text_request("hello", 1);
  request.mutable_sampling()->set_temperature(0);
  EXPECT_TRUE(run_stream(*rig.stub, request).status.ok());
  EXPECT_EQ(rig.engine.last_request().sampling.temperature, 0) << "its own value wins";
  EXPECT_EQ(rig.engine.last_request().sampling.top_k, 20);
}

TEST(Generate, EndsByNameWithAbort) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", kForever);
  request.set_request_id("long");
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  grpc::ClientContext abort_context;
  v1::AbortRequest abort;
  abort.add_request_ids("long");
  abort.add_request_ids("unknown");
  v1::AbortResponse aborted;
  ASSERT_TRUE(rig.stub->Abort(&abort_context, abort, &aborted).ok());
  ASSERT_EQ(aborted.aborted_request_ids_size(), 1);
  EXPECT_EQ(aborted.aborted_request_ids(0), "long");
  v1::GenerateResponse last;
  while (reader->Read(&message)) last = message;
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_TRUE(last.has_usage());
}

TEST(Generate, RefusesTheNameOfARunningRequest) {
  Rig rig;
  v1::GenerateRequest request = text_request("hello", kForever);
  request.set_request_id("same");
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(run_stream(*rig.stub, request).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_TRUE(reader->Read(&message)) << "the refusal must not touch the running one";
  EXPECT_EQ(rig.service.num_calls(), 1u);
  context.TryCancel();
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  request.mutable_sampling()->set_max_tokens(1);
  EXPECT_TRUE(run_stream(*rig.stub, request).status.ok()) << "the name is free again";
}

// A client whose window stays at HTTP/2's 64 KiB: gRPC otherwise widens it to megabytes, which hides a slow
// reader.
std::unique_ptr<v1::GenerationService::Stub> narrow_stub(const Rig& rig) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return v1::GenerationService::NewStub(rig.channel(arguments));
}

TEST(Generate, PausesARequestWhoseClientFallsBehindAndLosesNothing) {
  const int32_t tokens = 400;
  Rig rig({.step_us = 100, .text_bytes = 8192});
  const auto stub = narrow_stub(rig);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", tokens));
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_pauses() > 0; }));
  const int64_t made = rig.engine.tokens_made(1);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LE(rig.engine.tokens_made(1), made + 1) << "a paused request made tokens";
  EXPECT_LT(made, tokens / 2) << "the backlog has no bound";
  int64_t bytes = 0;
  for (v1::GenerateResponse message; reader->Read(&message);)
    bytes += static_cast<int64_t>(message.text().size());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(bytes, int64_t{tokens} * 8192);
}

TEST(Generate, EndsACallWhoseClientReadsNothingForTooLong) {
  Rig rig({.step_us = 100, .text_bytes = 8192},
          {.stream = {.max_backlog_bytes = 64 << 10, .max_stall_ms = 300}});
  const auto stub = narrow_stub(rig);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", kForever));
  EXPECT_TRUE(
      rig.engine.eventually([&] { return rig.engine.num_aborted() == 1 && rig.engine.num_running() == 0; }));
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  for (v1::GenerateResponse message; reader->Read(&message);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// The engine has told its end long before: what the log says is what became of the call.
TEST(Generate, LogsACallThatWasCutOffBeforeItsLastMessageAsCancelled) {
  Rig rig({.step_us = 100, .text_bytes = 64 << 10},
          {.stream = {.max_backlog_bytes = 64 << 20, .max_stall_ms = 300}});
  testing::internal::CaptureStderr();
  configure_log(LogFormat::kKeyValue, LogLevel::kInfo);
  const auto stub = narrow_stub(rig);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 20));
  EXPECT_TRUE(rig.engine.eventually(
      [&] { return rig.engine.tokens_made(1) == 20 && rig.engine.num_running() == 0; }));
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  for (v1::GenerateResponse message; reader->Read(&message);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  configure_log(LogFormat::kKeyValue, LogLevel::kError);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("call_end"), std::string::npos) << log;
  EXPECT_NE(log.find("code=CANCELLED"), std::string::npos) << log;
  EXPECT_NE(log.find("(max_stall_ms)"), std::string::npos) << log;
  EXPECT_NE(log.find("finish=length"), std::string::npos) << log;
}

TEST(Generate, DoesNotEndASlowReaderThatStillReads) {
  Rig rig({.step_us = 100, .text_bytes = 8192},
          {.stream = {.max_backlog_bytes = 64 << 10, .max_stall_ms = 400}});
  const auto stub = narrow_stub(rig);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, text_request("hello", 60));
  for (v1::GenerateResponse message; reader->Read(&message);)
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
  EXPECT_TRUE(reader->Finish().ok());
}

// Their allocators keep what was freed; the address sanitizer tells at the end what was not.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMemoryStaysResident = true;
#else
constexpr bool kMemoryStaysResident = false;
#endif

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// All at once on one connection; the number that ended well with all their tokens.
int run_many(Rig& rig, int streams, int32_t tokens) {
  const auto channel = rig.channel();
  std::atomic<int> good = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < streams; ++i)
    clients.emplace_back([&] {
      const auto stub = v1::GenerationService::NewStub(channel);
      const StreamResult result = run_stream(*stub, text_request("hello", tokens));
      if (result.status.ok() && result.messages.size() == static_cast<size_t>(tokens)) ++good;
    });
  for (std::thread& client : clients) client.join();
  return good;
}

TEST(Generate, Serves256StreamsAtOnceAndGivesTheMemoryBack) {
  Rig rig({.step_us = 5000});
  EXPECT_EQ(run_many(rig, 256, 20), 256);
  const int64_t before = resident_bytes();
  for (int round = 0; round < 3; ++round) EXPECT_EQ(run_many(rig, 256, 20), 256);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  if (kMemoryStaysResident) return;
  EXPECT_LT(resident_bytes() - before, 24 << 20) << "three more rounds of 256 streams grew the process";
}

TEST(Generate, LeavesNoCallBehindWhenManyClientsVanishAtOnce) {
  Rig rig;
  const auto channel = rig.channel();
  std::vector<std::thread> clients;
  for (int i = 0; i < 64; ++i)
    clients.emplace_back([&, i] {
      const auto stub = v1::GenerationService::NewStub(channel);
      grpc::ClientContext context;
      const auto reader = stub->Generate(&context, text_request("hello", kForever));
      v1::GenerateResponse message;
      for (int reads = 0; reads < i % 4; ++reads) reader->Read(&message);
      context.TryCancel();
      while (reader->Read(&message)) {
      }
      reader->Finish();
    });
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(
      rig.engine.eventually([&] { return rig.engine.num_running() == 0 && rig.service.num_calls() == 0; }));
}

}  // namespace
}  // namespace quire::server
