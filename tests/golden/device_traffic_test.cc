// Method: random traffic on one device with every invariant of the engine checked at every step: prompts of stored
// cases, whole or cut, greedy and sampled, one to three samples, cancelled, paused, in a
// cache too small for all of them; once where what gives way is computed again, once where it is swapped. Greedy requests of whole prompts must give the stored tokens, up to the first step
// that rounding may turn; nothing fails, and at the end nothing is held. QUIRE_TEST_DEVICE: cuda or cuda-host.
// QUIRE_TRAFFIC_S: how long, 2 s if not given. The seed is printed; QUIRE_TRAFFIC_SEED sets it. Requests are short on
// the shim and where QUIRE_TRAFFIC_SHORT is 1, for tools that slow kernels down.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "src/base/random.h"
#include "src/engine/threaded_engine.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

constexpr double kMargin = 1e-3;  // of f32, as in device_test.cc
constexpr size_t kMostLive = 48;

struct Live {
  std::shared_ptr<Collector> sink;
  RequestId id{};
  const Case* whole = nullptr;  // whose stored tokens it must give
  int32_t samples = 1;
  bool cancelled = false;
};

class Traffic {
 public:
  Traffic(Engine& engine, std::vector<Case> cases, uint64_t seed)
      : engine_(engine), cases_(std::move(cases)), random_(seed) {}

  void run_for(std::chrono::seconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end && !testing::Test::HasFatalFailure()) act();
    while (!live_.empty()) finish(0);
  }
  int64_t finished() const { return finished_; }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_.below(n)); }

  void act() {
    const size_t kind = below(10);
    if (live_.size() >= kMostLive || (kind < 2 && !live_.empty())) return finish(below(live_.size()));
    if (kind == 2 && !live_.empty()) return cancel(live_[below(live_.size())]);
    if (kind == 3 && !live_.empty()) return nap(live_[below(live_.size())]);
    start();
  }

  void start() {
    const Case& c = cases_[below(cases_.size())];
    Live l{.sink = std::make_shared<Collector>(),
           .whole = below(2) == 0 ? &c : nullptr,
           .samples = 1 + static_cast<int32_t>(below(3))};
    std::vector<int32_t> prompt = c.prompt;
    if (l.whole == nullptr) prompt.resize(1 + below(prompt.size()));
    Request request;
    request.prompt = std::move(prompt);
    request.sampling = greedy(l.whole != nullptr ? static_cast<int32_t>(c.greedy.size())
                                                 : 1 + static_cast<int32_t>(below(c.greedy.size())));
    request.sampling.n = l.samples;
    if (l.whole == nullptr)
      vary(request.sampling);
    else
      vary_without_a_trace(request.sampling);
    const Result<RequestId> id = engine_.submit(std::move(request), l.sink);
    if (!id) return;  // the queue is full
    l.id = *id;
    live_.push_back(std::move(l));
  }
  // Whatever a request may ask of sampling; now and then what the host must sample, so that steps go to and fro.
  void vary(SamplingParams& p) {
    if (below(2) == 0) {
      p.temperature = 0.5 + 0.1 * static_cast<double>(below(10));
      p.top_k = static_cast<int32_t>(below(3) * 20);
      p.top_p = below(2) == 0 ? 1.0 : 0.9;
      p.seed = below(1000);
    }
    if (below(4) == 0) p.repetition_penalty = 1.2, p.frequency_penalty = 0.3;
    if (below(6) == 0) p.no_repeat_ngram = 1 + static_cast<int32_t>(below(3));
    if (below(6) == 0) p.logprobs = static_cast<int32_t>(below(5));
    if (below(40) == 0) p.temperature = 1, p.typical_p = 0.9;
  }
  // What goes through the same kernels and changes no token.
  void vary_without_a_trace(SamplingParams& p) {
    if (below(3) == 0) p.logit_bias = {{static_cast<int32_t>(below(100)), 0.0}};
    if (below(3) == 0) p.logprobs = static_cast<int32_t>(below(5));
  }
  void cancel(Live& l) {
    l.cancelled = true;
    engine_.abort(l.id);
  }
  void nap(const Live& l) {
    engine_.set_paused(l.id, true);
    std::this_thread::sleep_for(std::chrono::microseconds(random_.below(500)));
    engine_.set_paused(l.id, false);
  }
  void finish(size_t index) {
    const Live l = live_[index];
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
    l.sink->wait();
    ++finished_;
    if (l.cancelled || l.whole == nullptr) return;
    for (int32_t i = 0; i < l.samples; ++i) {
      const std::vector<int32_t> ids = l.sink->ids(i);
      ASSERT_EQ(ids.size(), l.whole->greedy.size());
      for (size_t t = 0; t < ids.size() && l.whole->margins[t] >= kMargin; ++t)
        ASSERT_EQ(ids[t], l.whole->greedy[t]) << "sample " << i << " token " << t;
    }
  }

  Engine& engine_;
  std::vector<Case> cases_;
  Random random_;
  std::vector<Live> live_;
  int64_t finished_ = 0;
};

EngineConfig config_of(const std::string& device) {
  EngineConfig c;
  c.model_dir = shared_data() + "/models/stories260K";
  c.device = device;
  c.max_sequences = 24;
  c.max_step_tokens = 128;
  c.max_context_tokens = 256;
  c.kv_cache_bytes = 1 << 20;
  if (device == "cuda-host")  // its cases are short
    c.block_tokens = 8, c.max_context_tokens = 64, c.kv_cache_bytes = 240 << 10;
  c.max_queued_kv_factor = 1000;
  c.check_invariants = true;
  return c;
}

// Over-committed as far as it goes: sequences give way and are computed again.
std::unique_ptr<Engine> open_engine(const EngineConfig& config) {
  Result<EngineParts> parts = open_parts(config);
  if (!parts) {
    ADD_FAILURE() << parts.error().message;
    return nullptr;
  }
  parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
  return std::move(ThreadedEngine::start(std::move(*parts))).value();
}

std::vector<Case> cases_of(const std::string& device) {
  std::vector<Case> cases = read_cases(shared_data() + "/goldens/stories260K.json");
  if (device != "cuda-host" && env_or("QUIRE_TRAFFIC_SHORT", "0") != "1") return cases;
  for (Case& c : cases) c.greedy.resize(std::min<size_t>(c.greedy.size(), 12));
  std::erase_if(cases, [](const Case& c) { return c.prompt.size() > 16; });
  return cases;
}

EngineStats run_traffic(const EngineConfig& config) {
  const std::unique_ptr<Engine> engine = open_engine(config);
  if (engine == nullptr) return {};
  const uint64_t seed = std::stoull(env_or("QUIRE_TRAFFIC_SEED", "1"));
  Traffic traffic(*engine, cases_of(config.device), seed);
  traffic.run_for(std::chrono::seconds(std::stoll(env_or("QUIRE_TRAFFIC_S", "4"))));
  expect_nothing_held(*engine);
  const EngineStats s = engine->stats();
  std::cout << "seed " << seed << ": " << traffic.finished() << " requests ended, " << s.steps_total
            << " steps, " << s.preemptions_total << " preemptions, " << s.cached_tokens_total
            << " tokens from the cache, " << s.copies_on_write_total << " copies on write, "
            << s.swap_ins_total << " swapped in, " << s.host_sampled_steps_total
            << " steps sampled on the host, " << s.uploaded_bytes_total / std::max<int64_t>(s.steps_total, 1)
            << " bytes a step\n";
  EXPECT_GT(traffic.finished(), 0);
  EXPECT_EQ(s.requests_failed_total, 0);
  EXPECT_EQ(s.swap_blocks_held, 0);
  if (traffic.finished() < 500) return s;  // too few to count on all of these
  EXPECT_GT(s.preemptions_total, 0);
  EXPECT_GT(s.cached_tokens_total, 0);
  EXPECT_GT(s.copies_on_write_total, 0);
  return s;
}

class DeviceTraffic : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string goldens = shared_data() + "/goldens/stories260K.json";
    if (!std::filesystem::exists(goldens))
      GTEST_SKIP() << "no goldens: " << goldens << " is not there (set QUIRE_SHARED)";
  }
};

TEST_F(DeviceTraffic, LeavesNothingHeldAndEveryTokenRight) {
  const EngineStats s = run_traffic(config_of(env_or("QUIRE_TEST_DEVICE", "cuda-host")));
  EXPECT_EQ(s.swap_outs_total, 0);
}

TEST_F(DeviceTraffic, WhereWhatGivesWayIsSwapped) {
  EngineConfig config = config_of(env_or("QUIRE_TEST_DEVICE", "cuda-host"));
  config.swap_space_bytes = 4 * config.kv_cache_bytes;
  config.preemption_mode = "swap";
  const EngineStats s = run_traffic(config);
  EXPECT_EQ(s.swap_failures_total, 0);
  if (s.preemptions_total > 10) {
    EXPECT_GT(s.swap_ins_total, 0);
  }
}

}  // namespace
}  // namespace quire::golden
