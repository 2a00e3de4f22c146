// Texts are read by threads of their own. The engine's tokenizer is held, so that the pool's only thread stays busy for as long as a
// test wants: whatever must not wait for texts has to answer meanwhile.
#include <unistd.h>

#include <fstream>
#include <future>
#include <memory>

#include "server/work_pool.h"
#include "tests/server/rig.h"

namespace quire::server {
namespace {

const ServiceOptions kOneThread{.texts = {.threads = 1}};

struct Tokenized {
  grpc::Status status;
  int num_ids = 0;
};

Tokenized tokenize(const Rig& rig, const std::string& text) {
  const auto stub = v1::GenerationService::NewStub(rig.channel());
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  grpc::Status status = stub->Tokenize(&context, request, &response);
  return {std::move(status), response.token_ids_size()};
}

std::future<Tokenized> tokenize_later(const Rig& rig, const std::string& text) {
  return std::async(std::launch::async, [&rig, text] { return tokenize(rig, text); });
}

std::future<StreamResult> generate_later(const Rig& rig, const v1::GenerateRequest& request) {
  return std::async(std::launch::async, [&rig, request] {
    const auto stub = v1::GenerationService::NewStub(rig.channel());
    return run_stream(*stub, request);
  });
}

v1::GetLoadResponse load_of(const Rig& rig) {
  grpc::ClientContext context;
  v1::GetLoadResponse load;
  EXPECT_TRUE(rig.stub->GetLoad(&context, {}, &load).ok());
  return load;
}

// One text on the only thread, and nothing behind it.
std::future<Tokenized> occupy(Rig& rig) {
  rig.engine.hold_texts(true);
  std::future<Tokenized> first = tokenize_later(rig, "first");
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.engine.num_reading() == 1; }));
  return first;
}

// As many as gRPC has threads for calls, and more.
TEST(Texts, HoldUpNeitherHealthNorLoadNorStreams) {
  Rig rig({}, kOneThread);
  std::vector<std::future<Tokenized>> texts;
  texts.push_back(occupy(rig));
  for (int i = 0; i < 24; ++i) texts.push_back(tokenize_later(rig, "more"));
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 24; }));

  EXPECT_EQ(health_of(rig, kServiceName), "SERVING");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::GetLoadResponse load;
  EXPECT_TRUE(rig.stub->GetLoad(&context, {}, &load).ok());
  v1::GenerateRequest ids;
  ids.mutable_token_ids()->add_ids(7);
  ids.mutable_sampling()->set_max_tokens(50);
  grpc::ClientContext streaming;
  streaming.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  EXPECT_EQ(run_stream(*rig.stub, ids, streaming).messages.size(), 50u);
  EXPECT_EQ(rig.engine.num_reading(), 1) << "the pool has one thread";

  rig.engine.hold_texts(false);
  for (auto& text : texts) {
    const Tokenized done = text.get();
    EXPECT_TRUE(done.status.ok()) << done.status.error_message();
    EXPECT_GT(done.num_ids, 0);
  }
}

TEST(Texts, AreRefusedWithADelayWhenTheQueueIsFull) {
  Rig rig({}, {.texts = {.threads = 1, .max_queued = 1}});
  auto first = occupy(rig), second = tokenize_later(rig, "second");
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 1; }));
  v1::GenerateRequest request = text_request("third", 1);
  request.set_request_id("third");
  for (const grpc::Status& status : {tokenize(rig, "third").status, run_stream(*rig.stub, request).status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(status.error_message(), "1 texts wait to be read; at most 1 may (max_queued_texts)");
    EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(status));
  }
  rig.engine.hold_texts(false);
  EXPECT_TRUE(first.get().status.ok());
  EXPECT_TRUE(second.get().status.ok());
  EXPECT_TRUE(run_stream(*rig.stub, request).status.ok()) << "the name is free again";
}

// To a router a server that is behind with texts alone would look idle.
TEST(Texts, ThatWaitOrAreRefusedAreToldByGetLoad) {
  Rig rig({}, {.texts = {.threads = 1, .max_queued = 2, .max_queued_bytes = 1000}});
  auto first = occupy(rig), second = tokenize_later(rig, "second");
  EXPECT_EQ(load_of(rig).refused_texts_total(), 0);
  ASSERT_TRUE(rig.engine.eventually([&] { return load_of(rig).texts_waiting() == 1; }));
  EXPECT_FALSE(run_stream(*rig.stub, text_request(std::string(1000, 'x'), 1)).status.ok());
  auto third = generate_later(rig, text_request("third", 1));
  ASSERT_TRUE(rig.engine.eventually([&] { return load_of(rig).texts_waiting() == 2; }));
  EXPECT_FALSE(run_stream(*rig.stub, text_request("fourth", 1)).status.ok());
  EXPECT_EQ(load_of(rig).refused_texts_total(), 2) << "one for its length, one for their number";
  EXPECT_EQ(load_of(rig).requests_waiting(), 0);
  EXPECT_EQ(load_of(rig).requests_submitted_total(), 0);
  rig.engine.hold_texts(false);
  EXPECT_TRUE(first.get().status.ok());
  EXPECT_TRUE(second.get().status.ok());
  EXPECT_TRUE(third.get().status.ok());
  EXPECT_EQ(load_of(rig).texts_waiting(), 0);
}

TEST(Texts, AreBoundedInBytesToo) {
  Rig rig({}, {.texts = {.threads = 1, .max_queued_bytes = 1000}});
  auto first = occupy(rig), second = tokenize_later(rig, std::string(900, 'x'));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 1; }));
  const grpc::Status status = tokenize(rig, std::string(200, 'x')).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("max_queued_text_bytes"), std::string::npos)
      << status.error_message();
  rig.engine.hold_texts(false);
  EXPECT_EQ(second.get().num_ids, 900);
  EXPECT_EQ(tokenize(rig, std::string(2000, 'x')).num_ids, 2000) << "one may always wait alone";
}

TEST(Texts, ARequestThatWaitsToBeReadIsAbortedByName) {
  Rig rig({}, kOneThread);
  auto first = occupy(rig);
  v1::GenerateRequest request = text_request("hello", 5);
  request.set_request_id("waits");
  auto waiting = generate_later(rig, request);
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 1; }));
  grpc::ClientContext context;
  v1::AbortRequest abort;
  abort.add_request_ids("waits");
  v1::AbortResponse aborted;
  ASSERT_TRUE(rig.stub->Abort(&context, abort, &aborted).ok());
  EXPECT_EQ(aborted.aborted_request_ids_size(), 1);
  EXPECT_EQ(waiting.get().status.error_code(), grpc::StatusCode::CANCELLED)
      << "while the thread is still busy";
  rig.engine.hold_texts(false);
  EXPECT_TRUE(first.get().status.ok());
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 0; }));
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 0);
}

TEST(Texts, ARequestThatWaitsToBeReadEndsWithItsClient) {
  Rig rig({}, kOneThread);
  auto first = occupy(rig);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  EXPECT_EQ(run_stream(*rig.stub, text_request("hello", 5), context).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  rig.engine.hold_texts(false);
  EXPECT_TRUE(first.get().status.ok());
  EXPECT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 0; }));
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 0);
}

TEST(Texts, TheWaitCountsAgainstTheDeadline) {
  Rig rig({}, kOneThread);
  auto first = occupy(rig);
  v1::GenerateRequest shorter = text_request("hello", 5), longer = text_request("hello", 5);
  shorter.set_deadline_ms(20);
  longer.set_deadline_ms(1'000'000);
  auto late = generate_later(rig, shorter), in_time = generate_later(rig, longer);
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 2; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  rig.engine.hold_texts(false);
  const grpc::Status status = late.get().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_NE(status.error_message().find("the deadline of 20 ms (deadline_ms, or the call's timeout) passed"),
            std::string::npos)
      << status.error_message();
  EXPECT_TRUE(in_time.get().status.ok());
  EXPECT_LE(rig.engine.last_request().deadline_ms.value_or(0), 1'000'000 - 50);
  EXPECT_TRUE(first.get().status.ok());
}

// Two long works cannot take both threads: a short one still finds one.
TEST(WorkPool, KeepsAThreadForShortTexts) {
  WorkPool pool({.threads = 2});
  ASSERT_TRUE(pool.start());
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<int> long_begun = 0;
  for (int i = 0; i < 2; ++i)
    ASSERT_TRUE(pool.submit(4 << 20, [&, released] {
      ++long_begun;
      released.wait();
    }));
  std::promise<void> ran;
  ASSERT_TRUE(pool.submit(10, [&] { ran.set_value(); }));
  EXPECT_EQ(ran.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  while (long_begun == 0) std::this_thread::yield();
  EXPECT_EQ(pool.num_queued(), 1u) << "the second long one waits for the first";
  release.set_value();
}

TEST(WorkPool, RunsWhatWaitsBeforeItEnds) {
  std::atomic<int> ran = 0;
  {
    WorkPool pool({.threads = 1});
    ASSERT_TRUE(pool.start());
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(pool.submit(1, [&] { ++ran; }));
  }
  EXPECT_EQ(ran, 100);
}

// In small pieces, with one that stays behind them: an allocator that only gives back its end keeps them all.
constexpr int kPieces = 400'000, kPieceBytes = 400;
std::unique_ptr<char[]> read_large_text() {
  std::vector<std::unique_ptr<char[]>> pieces;
  for (int i = 0; i < kPieces; ++i) {
    pieces.push_back(std::make_unique_for_overwrite<char[]>(kPieceBytes));
    pieces.back()[0] = 1;
  }
  return std::make_unique<char[]>(kPieceBytes);
}

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(WorkPool, MemoryReturnsAfterALargeText) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own allocator keeps what is freed";
#endif
  WorkPool pool({.threads = 1});
  ASSERT_TRUE(pool.start());
  const int64_t before = resident_bytes();
  std::promise<std::unique_ptr<char[]>> stays;
  ASSERT_TRUE(pool.submit(1 << 20, [&] { stays.set_value(read_large_text()); }));
  const auto kept = stays.get_future().get();
  std::promise<void> after;  // the pool's only thread has trimmed before
  ASSERT_TRUE(pool.submit(1, [&] { after.set_value(); }));
  after.get_future().get();
  EXPECT_LT(resident_bytes() - before, int64_t{kPieces} * kPieceBytes / 4);
}

}  // namespace
}  // namespace quire::server
