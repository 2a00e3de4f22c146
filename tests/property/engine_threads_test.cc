// The threaded engine under many clients at once: submit, abort, pause, stats, drain from several threads.
// Meant to run under TSan too.
#include <atomic>
#include <chrono>
#include <thread>

#include "tests/property/engine_threads_rig.h"

namespace quire {
namespace {

// The device does not end the first step: what it runs and what waits behind it is told all the same.
TEST_F(EngineThreads, StatsAreOfNowWhileAStepIsUnderWay) {
  start();
  device_->hold(true);
  Random random(1);
  std::vector<std::shared_ptr<Counting>> sinks;
  const auto submit = [&] {
    Request r = request(random, 4);
    r.prompt = std::vector<int32_t>(8, 1);  // a whole block: the second step takes another
    sinks.push_back(std::make_shared<Counting>());
    ASSERT_TRUE(engine_->submit(std::move(r), sinks.back()).has_value());
  };
  submit();
  // The second step is planned, and the engine waits for the first.
  EXPECT_TRUE(eventually([](const EngineStats& s) {
    return s.sequences_running == 1 && s.requests_waiting == 0 && s.blocks_held == 2;
  })) << "planned, and not yet told";
  for (int i = 0; i < 3; ++i) submit();
  EXPECT_EQ(engine_->stats().requests_waiting, 3);
  EXPECT_GT(engine_->stats().last_step_age_ms, 0);
  device_->hold(false);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->wait());
  EXPECT_TRUE(eventually([](const EngineStats& s) {
    return s.sequences_running == 0 && s.requests_waiting == 0 && s.blocks_held == 0 &&
           s.last_step_age_ms == 0;
  }));
}

// What ends a request while a step is under way is told when that step has ended, not with the one behind it.
TEST_F(EngineThreads, EndsAreToldBeforeTheNextStepIsWaitedFor) {
  start();
  Random random(8);
  device_->hold(true);
  auto runs = std::make_shared<Counting>(), late = std::make_shared<Counting>(),
       aborted = std::make_shared<Counting>();
  ASSERT_TRUE(engine_->submit(request(random, 500), runs).has_value());
  ASSERT_TRUE(eventually([](const EngineStats& s) { return s.sequences_running == 1; }));
  Request soon = request(random, 4);
  soon.deadline_ms = 1;
  ASSERT_TRUE(engine_->submit(std::move(soon), late).has_value());
  const Result<RequestId> id = engine_->submit(request(random, 4), aborted);
  ASSERT_TRUE(id.has_value());
  engine_->abort(*id);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  device_->let_one_pass();
  EXPECT_TRUE(late->wait(5000));
  EXPECT_TRUE(aborted->wait(5000));
  EXPECT_EQ(late->finish(), FinishReason::kDeadline);
  EXPECT_EQ(aborted->finish(), FinishReason::kCancelled);
  EXPECT_EQ(engine_->stats().requests_cancelled_total, 1);
  device_->hold(false);
  EXPECT_TRUE(runs->wait());
  expect_idle();
}

TEST_F(EngineThreads, ManyClientsEachGetEveryEndOnce) {
  start();
  std::vector<std::thread> clients;
  for (uint64_t c = 0; c < 4; ++c)
    clients.emplace_back([&, c] {
      Random random(c + 1);
      for (int i = 0; i < 50; ++i) {
        auto sink = std::make_shared<Counting>();
        Request r = request(random, static_cast<int32_t>(random.between(1, 60)));
        const int32_t n = r.sampling.n = static_cast<int32_t>(random.between(1, 3));
        const Result<RequestId> id = engine_->submit(std::move(r), sink);
        ASSERT_TRUE(id.has_value()) << id.error().message;
        if (random.chance(0.2)) engine_->set_paused(*id, true);
        if (random.chance(0.3)) engine_->abort(*id);
        engine_->set_paused(*id, false);
        (void)engine_->stats();
        ASSERT_TRUE(sink->wait());
        sink->expect_one_end_each(n);
      }
    });
  for (std::thread& t : clients) t.join();
  expect_idle();
  for (const std::string& v : executor_->violations()) ADD_FAILURE() << v;
}

// A batch that is refused leaves nothing behind, and its sinks hear nothing.
TEST_F(EngineThreads, OneRefusedOfABatchRefusesAllOfIt) {
  start();
  Random random(8);
  const auto sink = std::make_shared<Counting>();
  std::vector<Submission> batch;
  for (int i = 0; i < 4; ++i) batch.push_back({request(random, 1000), sink});
  batch[2].request.kv_policy = "magic";
  const auto ids = engine_->submit_together(std::move(batch));
  ASSERT_FALSE(ids.has_value());
  EXPECT_EQ(ids.error().field, "kv_policy");
  EXPECT_EQ(engine_->stats().requests_submitted_total, 4);
  EXPECT_EQ(engine_->stats().requests_refused_total, 4);
  expect_idle();
  EXPECT_FALSE(sink->wait(0));
  EXPECT_EQ(engine_->stats().requests_cancelled_total, 0);
}

// What others ask for meanwhile is done meanwhile: a request runs, another is aborted.
TEST_F(EngineThreads, ALongTextOfABatchHoldsUpNobodyElse) {
  auto front = std::make_unique<SlowFront>();
  SlowFront& text = *front;
  start(1024, 200, 0, std::move(front));
  const auto batched = std::make_shared<Counting>();
  std::thread batch([&] {
    Request r;
    r.prompt = std::string("a long text");
    r.sampling.max_tokens = 1;
    std::vector<Submission> one(1);
    one[0] = {std::move(r), batched};
    const auto ids = engine_->submit_together(std::move(one));
    EXPECT_TRUE(ids.has_value());
  });
  text.wait_until_it_reads();
  Random random(9);
  const auto ends = std::make_shared<Counting>(), aborted = std::make_shared<Counting>();
  EXPECT_TRUE(engine_->submit(request(random, 3), ends).has_value());
  EXPECT_TRUE(ends->wait(10'000));
  const Result<RequestId> id = engine_->submit(request(random, 1000), aborted);
  EXPECT_TRUE(id.has_value());
  engine_->set_paused(*id, true);
  engine_->abort(*id);
  EXPECT_TRUE(aborted->wait(10'000));
  text.let_go();
  batch.join();
  EXPECT_TRUE(batched->wait());
  expect_idle();
}

TEST_F(EngineThreads, AFullQueueRefusesWithADelayAndServesOn) {
  start(4);
  Random random(3);
  std::vector<std::shared_ptr<Counting>> sinks;
  int32_t refused = 0;
  for (int i = 0; i < 200; ++i) {
    auto sink = std::make_shared<Counting>();
    const Result<RequestId> id = engine_->submit(request(random, 300), sink);
    if (id) {
      sinks.push_back(sink);
    } else {
      ++refused;
      EXPECT_EQ(id.error().code, Code::kResourceExhausted);
      EXPECT_TRUE(id.error().retry_delay_ms.has_value());
    }
  }
  EXPECT_GT(refused, 0);
  for (const auto& s : sinks) ASSERT_TRUE(s->wait());
  expect_idle();
}

TEST_F(EngineThreads, DrainRefusesNewRequestsAndCancelsWhatIsLeft) {
  start();
  Random random(5);
  auto endless = std::make_shared<Counting>();
  const Result<RequestId> id = engine_->submit(request(random, 1000), endless);
  ASSERT_TRUE(id.has_value());
  engine_->set_paused(*id, true);
  engine_->drain(20);
  EXPECT_TRUE(endless->wait(0));
  EXPECT_EQ(endless->finish(), FinishReason::kCancelled);
  const Result<RequestId> late = engine_->submit(request(random, 1), endless);
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, Code::kUnavailable);
  expect_idle();
}

TEST_F(EngineThreads, ADeadlineEndsAPausedRequestThoughNothingRuns) {
  start();
  Random random(6);
  auto sink = std::make_shared<Counting>();
  Request r = request(random, 1500);
  r.deadline_ms = 50;
  const Result<RequestId> id = engine_->submit(std::move(r), sink);
  ASSERT_TRUE(id.has_value());
  engine_->set_paused(*id, true);
  ASSERT_TRUE(sink->wait(5000));
  EXPECT_TRUE(sink->finish() == FinishReason::kDeadline || sink->finish() == FinishReason::kLength);
}

// Submitting threads are anywhere in submit() when the drain takes its count of who is to be cancelled.
TEST_F(EngineThreads, ADrainWithoutTimeEndsWhatIsBeingSubmitted) {
  int64_t num_taken = 0;
  for (int round = 0; round < 100; ++round) {
    start();
    std::vector<std::thread> clients;
    std::vector<std::shared_ptr<Counting>> sinks(4);
    std::atomic<int> num_ready = 0;
    for (int c = 0; c < 4; ++c)
      clients.emplace_back([&, c] {
        Random random(c);
        ++num_ready;
        for (;;) {
          auto sink = std::make_shared<Counting>();
          Request r = request(random, 1000);
          if (!engine_->submit(std::move(r), sink)) break;
          sinks[c] = sink;
        }
      });
    while (num_ready < 4) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
    engine_->drain(0);
    for (std::thread& t : clients) t.join();
    num_taken += engine_->stats().requests_submitted_total - engine_->stats().requests_refused_total;
    for (const auto& sink : sinks)
      if (sink != nullptr) {
        ASSERT_TRUE(sink->wait(0));
      }
    engine_.reset();
  }
  EXPECT_GT(num_taken, 100) << "nearly none was being submitted";
}

TEST_F(EngineThreads, ClosingTheEngineEndsEveryRequest) {
  start();
  Random random(7);
  std::vector<std::shared_ptr<Counting>> sinks;
  for (int i = 0; i < 30; ++i) {
    sinks.push_back(std::make_shared<Counting>());
    Request r = request(random, 500);
    r.sampling.n = 2;
    ASSERT_TRUE(engine_->submit(std::move(r), sinks.back()).has_value());
  }
  engine_.reset();
  for (const auto& s : sinks) {
    ASSERT_TRUE(s->wait(0));
    s->expect_one_end_each(2);
  }
}

TEST_F(EngineThreads, TextIsRefusedByNameWithoutATokenizer) {
  start();
  Request r;
  r.prompt = std::string("hello");
  auto sink = std::make_shared<Counting>();
  EXPECT_EQ(engine_->submit(r, sink).error().message, "ids only");
  EXPECT_EQ(engine_->tokenize("x", true, true).error().code, Code::kFailedPrecondition);
  r.prompt = std::vector<int32_t>{1};
  r.sampling.stop = {"x"};
  EXPECT_EQ(engine_->submit(r, sink).error().field, "sampling.stop");
  r.sampling.stop.clear();
  r.kv_policy = "magic";
  EXPECT_EQ(engine_->submit(r, sink).error().field, "kv_policy");
  EXPECT_EQ(engine_->stats().requests_refused_total, 3);
}

// What is written behind the last request holds blocks for a while, and nobody waits for them: no step is late.
TEST_F(EngineThreads, AnEngineThatOnlyWritesToItsDiskIsNotWedged) {
  HoldsWrites* disk = nullptr;
  start(1024, 200, 64, make_ids_only_front("ids only"), [&disk](std::unique_ptr<BlockMover> inner) {
    auto mover = std::make_unique<HoldsWrites>(std::move(inner));
    disk = mover.get();
    return mover;
  });
  Request r;
  r.prompt = std::vector<int32_t>(40, 1);
  r.sampling.max_tokens = 2;
  const auto sink = std::make_shared<Counting>();
  ASSERT_TRUE(engine_->submit(std::move(r), sink).has_value());
  ASSERT_TRUE(sink->wait());
  EXPECT_TRUE(eventually([](const EngineStats& s) {
    return s.sequences_running == 0 && s.blocks_held > 0 && s.last_step_age_ms == 0;
  })) << "a step of "
      << engine_->stats().last_step_age_ms << " ms with nothing to run";
  disk->let_go();
  expect_idle();
}

// The blocks that the lost read may still write stay held; else everything goes on, and the engine ends.
TEST_F(EngineThreads, ADiskThatNeverReturnsFromAReadHoldsNeitherARequestNorTheEnd) {
  start(1024, 64, 400);
  const auto ask = [&](int32_t first) {
    Request r;
    std::vector<int32_t> prompt(160);
    for (int32_t i = 0; i < 160; ++i) prompt[i] = (first + i) % 500;
    r.prompt = std::move(prompt);
    r.sampling.max_tokens = 2;
    r.sampling.temperature = 0;
    const auto sink = std::make_shared<Counting>();
    EXPECT_TRUE(engine_->submit(std::move(r), sink).has_value());
    EXPECT_TRUE(sink->wait(20000));
    EXPECT_EQ(sink->finish(), FinishReason::kLength);
  };
  for (const int32_t first : {0, 100, 200, 300, 400}) ask(first);
  for (int32_t i = 0; i < 100 && engine_->stats().tier_waits_given_up_total == 0; ++i) ask(100 * (i % 5));
  EXPECT_EQ(engine_->stats().tier_waits_given_up_total, 1);
  EXPECT_EQ(engine_->stats().disk.hit_tokens_total, 0);
  EXPECT_GT(engine_->stats().blocks_held, 0);
  EXPECT_TRUE(executor_->violations().empty());
  executor_ = nullptr;
  engine_.reset();
}

}  // namespace
}  // namespace quire
