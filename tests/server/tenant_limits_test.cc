// What a client sees of what it may take, over real loopback connections and with a clock of the test's.
#include <fmt/format.h>

#include <atomic>
#include <thread>

#include "server/tenant_limits.h"
#include "tests/server/rig.h"

namespace quire::server {
namespace {

constexpr int64_t kSecondUs = 1'000'000;
constexpr int32_t kForever = 1'000'000;  // tokens: longer than any test waits

class SharedClock final : public Clock {
 public:
  int64_t now_us() const override { return now_us_; }
  void advance_us(int64_t delta) { now_us_ += delta; }

 private:
  std::atomic<int64_t> now_us_ = 0;
};

v1::GenerateRequest request_of(const std::string& tenant, int32_t max_tokens) {
  v1::GenerateRequest request =
      text_request("hello", max_tokens);  // 5 bytes: 2 tokens at the door, 3 in the engine
  request.set_tenant(tenant);
  return request;
}

// A stream that has begun.
struct Stream {
  Stream(Rig& rig, const v1::GenerateRequest& request) : reader(rig.stub->Generate(&context, request)) {
    v1::GenerateResponse message;
    EXPECT_TRUE(reader->Read(&message));
  }
  grpc::StatusCode cancel() {
    context.TryCancel();
    for (v1::GenerateResponse message; reader->Read(&message);) {
    }
    return reader->Finish().error_code();
  }
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
};

int64_t retry_ms_of(const grpc::Status& status) {
  const auto retry = error_detail<google::rpc::RetryInfo>(status);
  return retry ? retry->retry_delay().seconds() * 1000 + retry->retry_delay().nanos() / 1'000'000 : -1;
}

google::rpc::QuotaFailure::Violation violation_of(const grpc::Status& status) {
  const auto quota = error_detail<google::rpc::QuotaFailure>(status);
  return quota && quota->violations_size() == 1 ? quota->violations(0)
                                                : google::rpc::QuotaFailure::Violation();
}

v1::GetLoadResponse load_of(Rig& rig) {
  grpc::ClientContext context;
  v1::GetLoadResponse load;
  EXPECT_TRUE(rig.stub->GetLoad(&context, {}, &load).ok());
  return load;
}

TEST(TenantLimits, RefuseTheRequestPastThoseAtOnceWithTenantValueAndLimit) {
  Rig rig({}, {.tenants = {.max_parallel_requests = 2}});
  Stream first(rig, request_of("a", kForever)), second(rig, request_of("a", kForever));
  const grpc::Status refused = run_stream(*rig.stub, request_of("a", 1)).status;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.error_message(),
            "tenant:a: 2 requests run; at most 2 may (max_tenant_parallel_requests)");
  EXPECT_GE(retry_ms_of(refused), 50);
  EXPECT_EQ(violation_of(refused).subject(), "tenant:a");
  EXPECT_EQ(violation_of(refused).quota_id(), "max_tenant_parallel_requests");
  EXPECT_EQ(violation_of(refused).quota_value(), 2);
  EXPECT_TRUE(run_stream(*rig.stub, request_of("b", 1)).status.ok()) << "another tenant";
  EXPECT_EQ(load_of(rig).refused_tenant_parallel_total(), 1);
  EXPECT_EQ(rig.engine.stats().requests_submitted_total, 3) << "the engine knows nothing of it";
  first.cancel();
  EXPECT_TRUE(rig.engine.eventually([&] { return run_stream(*rig.stub, request_of("a", 1)).status.ok(); }));
  second.cancel();
}

// Its client may come again the moment it has read the status.
TEST(TenantLimits, FreeThePlaceBeforeTheStatusIsOut) {
  Rig rig({}, {.tenants = {.max_parallel_requests = 1}});
  for (int i = 0; i < 100; ++i) {
    const grpc::Status status = run_stream(*rig.stub, request_of("a", 1)).status;
    ASSERT_TRUE(status.ok()) << i << ": " << status.error_message();
  }
}

TEST(TenantLimits, AreAskedBeforeATextWaitsToBeRead) {
  Rig rig({}, {.texts = {.threads = 1}, .tenants = {.max_parallel_requests = 1}});
  rig.engine.hold_texts(true);
  std::thread waiting([&] { run_stream(*rig.stub, request_of("a", 1)); });
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_reading() == 1; }));
  const grpc::Status refused = run_stream(*rig.stub, request_of("a", 1)).status;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(rig.service.num_queued_texts(), 0u);
  EXPECT_EQ(rig.service.num_calls(), 1u);
  rig.engine.hold_texts(false);
  waiting.join();
}

TEST(TenantLimits, FreeThePlaceOfATextWhoseClientIsGoneBeforeItIsRead) {
  Rig rig({}, {.texts = {.threads = 1}, .tenants = {.max_parallel_requests = 2}});
  rig.engine.hold_texts(true);
  std::thread reading([&] { run_stream(*rig.stub, request_of("a", 1)); });
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_reading() == 1; }));
  grpc::ClientContext context;
  const auto waiting = rig.stub->Generate(&context, request_of("a", 1));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_queued_texts() == 1; }));
  context.TryCancel();
  waiting->Finish();
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 1; }));
  EXPECT_EQ(rig.engine.num_reading(), 1) << "nothing is read meanwhile";
  v1::GenerateRequest ids = request_of("a", 1);
  ids.mutable_token_ids()->add_ids(1);
  EXPECT_TRUE(run_stream(*rig.stub, ids).status.ok());
  rig.engine.hold_texts(false);
  reading.join();
}

TEST(TenantLimits, TellWhenTheNextRequestOfTheMinuteMayCome) {
  SharedClock clock;
  Rig rig({}, {.tenants = {.max_requests_per_minute = 2}, .clock = &clock});
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(run_stream(*rig.stub, request_of("a", 1)).status.ok());
  const grpc::Status refused = run_stream(*rig.stub, request_of("a", 1)).status;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(retry_ms_of(refused), 30'000);
  EXPECT_EQ(violation_of(refused).quota_id(), "max_tenant_requests_per_minute");
  clock.advance_us(30 * kSecondUs - 1);
  EXPECT_EQ(retry_ms_of(run_stream(*rig.stub, request_of("a", 1)).status), 1);
  clock.advance_us(1);
  EXPECT_TRUE(run_stream(*rig.stub, request_of("a", 1)).status.ok());
  EXPECT_EQ(load_of(rig).refused_tenant_requests_total(), 2);
}

TEST(TenantLimits, ChargeTheTokensThatARequestUsed) {
  SharedClock clock;
  Rig rig({}, {.tenants = {.max_tokens_per_minute = 600}, .clock = &clock});
  EXPECT_TRUE(run_stream(*rig.stub, request_of("a", 97))
                  .status.ok());  // with 3 of the prompt, of which 2 were foreseen
  const grpc::Status refused = run_stream(*rig.stub, request_of("a", 499)).status;
  EXPECT_EQ(refused.error_message(),
            "tenant:a: the request may use 501 tokens; of 600 a minute 500 are left "
            "(max_tenant_tokens_per_minute)");
  EXPECT_EQ(retry_ms_of(refused), 100);
  EXPECT_TRUE(run_stream(*rig.stub, request_of("a", 498)).status.ok());
  EXPECT_EQ(load_of(rig).refused_tenant_tokens_total(), 1);
}

TEST(TenantLimits, GiveBackWhatACancelledRequestDidNotUse) {
  SharedClock clock;
  Rig rig({.step_us = 20'000}, {.tenants = {.max_tokens_per_minute = 100'000}, .clock = &clock});
  Stream stream(rig, request_of("a", 90'000));
  v1::GenerateRequest large = request_of("a", 80'000);
  large.set_deadline_ms(1000);
  EXPECT_EQ(run_stream(*rig.stub, large).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(stream.cancel(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
  EXPECT_TRUE(rig.engine.eventually([&] {
    grpc::ClientContext context;
    const auto reader = rig.stub->Generate(&context, request_of("a", 80'000));
    v1::GenerateResponse message;
    const bool served = reader->Read(&message);
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    reader->Finish();
    return served;
  }));
}

TEST(TenantLimits, ChargeWhatACancelledRequestDidUse) {
  SharedClock clock;
  Rig rig({}, {.tenants = {.max_tokens_per_minute = 100'000}, .clock = &clock});
  Stream stream(rig, request_of("a", 90'000));
  v1::GenerateResponse message;
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(stream.reader->Read(&message));
  EXPECT_EQ(stream.cancel(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.engine.num_running() == 0; }));
  ASSERT_TRUE(rig.engine.eventually([&] { return rig.service.num_calls() == 0; }));
  v1::GenerateRequest large = request_of("a", 99'900);
  large.set_deadline_ms(1000);
  EXPECT_EQ(violation_of(run_stream(*rig.stub, large).status).quota_id(), "max_tenant_tokens_per_minute");
}

TEST(TenantLimits, ChargeNoTokensToARequestThatWasRefused) {
  SharedClock clock;
  Rig rig({.max_requests = 0}, {.tenants = {.max_tokens_per_minute = 1000}, .clock = &clock});
  for (int i = 0; i < 3; ++i) {
    const grpc::Status refused = run_stream(*rig.stub, request_of("a", 900)).status;
    EXPECT_NE(refused.error_message().find("max_queued_requests"), std::string::npos)
        << refused.error_message();
  }
  v1::GenerateRequest ids = request_of("a", 900);
  ids.mutable_token_ids()->add_ids(1);
  EXPECT_NE(run_stream(*rig.stub, ids).status.error_message().find("max_queued_requests"), std::string::npos);
}

TEST(TenantLimits, CountByAddressWhereNoTenantIsNamed) {
  Rig rig({}, {.tenants = {.max_parallel_requests = 1}});
  Stream running(rig, request_of("", kForever));
  const auto other = v1::GenerationService::NewStub(rig.channel());
  const grpc::Status refused = run_stream(*other, request_of("", 1)).status;
  EXPECT_EQ(violation_of(refused).subject(), "clientip:127.0.0.1") << refused.error_message();
  EXPECT_TRUE(run_stream(*other, request_of("a", 1)).status.ok());
  running.cancel();
}

TEST(TenantLimits, CountDumpsToo) {
  SharedClock clock;
  Rig rig({}, {.tenants = {.max_parallel_requests = 1, .max_tokens_per_minute = 600}, .clock = &clock});
  const auto dump = [&](int32_t max_tokens) {
    v1::DumpKvRequest request;
    *request.mutable_request() = request_of("a", max_tokens);
    grpc::ClientContext context;
    v1::DumpKvResponse out;
    return rig.stub->DumpKv(&context, request, &out);
  };
  EXPECT_TRUE(dump(97).ok());
  EXPECT_TRUE(dump(97).ok()) << "the first one's place is free";
  EXPECT_EQ(violation_of(dump(399)).quota_id(), "max_tenant_tokens_per_minute")
      << "of 400 left it may use 401";
  Stream running(rig, request_of("a", 300));
  EXPECT_EQ(violation_of(dump(1)).quota_id(), "max_tenant_parallel_requests");
  running.cancel();
}

TEST(TenantLimits, AreOffByDefault) {
  Rig rig({.step_us = 20'000});
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 256; ++i) streams.push_back(std::make_unique<Stream>(rig, request_of("a", kForever)));
  EXPECT_EQ(rig.engine.num_running(), 256);
  EXPECT_EQ(load_of(rig).tenants_tracked(), 0);
  for (const auto& stream : streams) stream->context.TryCancel();
  for (const auto& stream : streams) stream->cancel();
}

}  // namespace
}  // namespace quire::server
