// What may move a 16-bit model's tokens, and what may not. Method: the engine's core, driven by hand, so that the
// same requests at the same steps give the same plans; the stored cases alone, together, in chunks and preempted.
// 1. The same plans give the same bits, preemption and recomputing included: a step that reads what another still
//    writes would not. Tokens chosen on the device, two steps under way, graphs.
// 2. How far margins between the two likeliest tokens, and log probabilities, lie from the stored ones (float64) when
//    every sequence is forced along the stored tokens, so that one flip changes nothing after it; printed for each
//    way to run.
// On the host shim by default, a few tokens of a small model, else all cases of the 16-bit models; QUIRE_TEST_DEVICE=cuda or cpu, QUIRE_NOISE_MODEL and
// QUIRE_NOISE_RUNS (arrival patterns and repeats, 20) choose more.
#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <random>

#include <fmt/format.h>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

std::string device_name() {
  return env_or("QUIRE_TEST_DEVICE", "cuda-host");
}
bool on_shim() {
  return device_name() == "cuda-host";
}
std::vector<std::string> model_names() {
  if (const std::string named = env_or("QUIRE_NOISE_MODEL", ""); !named.empty()) return {named};
  if (on_shim()) return {"stories260K-hd128-bf16"};
  return {"recall-9M", "babyllama-tok105-hd64-bf16", "stories260K-hd128-bf16"};
}
int num_runs() {
  return std::stoi(env_or("QUIRE_NOISE_RUNS", on_shim() ? "2" : "20"));
}

// In the mean, 0.046 everywhere: a fault in a few rows or positions shows here first.
constexpr double kMeanNoise = 0.1;

enum class Preempted { kNo, kRecomputed, kSwapped };

// A way to run the cases.
struct Way {
  const char* name;
  int copies = 1;
  bool one_by_one = false, prefix_cache = false, staggered = false;
  int32_t chunk = 0;  // 0: as the step has room
  Preempted preempted = Preempted::kNo;
};

// Writes down what each step was to do.
class PlanLog final : public Executor {
 public:
  explicit PlanLog(Executor& inner) : inner_(inner) {}
  void submit(std::shared_ptr<const BatchPlan> plan) override {
    std::string& line = lines_.emplace_back();
    for (const BlockCopy& c : plan->copies)
      line += fmt::format("copy {}>{} ", value(c.source), value(c.target));
    for (const PlannedSequence& s : plan->sequences) {
      line +=
          fmt::format("{}:{}+{}@{}[", value(s.sequence), s.first_position, s.tokens.size(), s.samples.size());
      for (const BlockId b : s.block_table) line += fmt::format("{} ", value(b));
      line += "] ";
    }
    inner_.submit(std::move(plan));
  }
  StepResult wait() override { return inner_.wait(); }
  bool ready() override { return inner_.ready(); }
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  Executor& inner_;
  std::vector<std::string> lines_;
};

// One sequence's output, token by token.
struct Output {
  size_t case_index = 0;
  std::vector<int32_t> ids;
  std::vector<uint32_t> logprob_bits;
  std::vector<double> logprobs, margins;  // of the forced token; over its likeliest rival
  std::vector<std::vector<std::pair<int32_t, float>>> tops;
};

class DeviceNoise : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    model_dir_ = shared_data() + "/models/" + GetParam();
    const std::string goldens = shared_data() + "/goldens/" + GetParam() + ".json";
    if (!std::filesystem::exists(goldens))
      GTEST_SKIP() << "no goldens: " << goldens << " is not there (set QUIRE_SHARED)";
    cases_ = read_cases(goldens);
    if (!on_shim()) return;
    cases_.resize(2);
    for (Case& c : cases_) c.greedy.resize(std::min<size_t>(c.greedy.size(), 24));
  }

  EngineConfig config_of(const Way& way) const {
    EngineConfig c;
    c.model_dir = model_dir_;
    c.device = device_name();
    c.dtype = c.kv_cache_dtype = "bf16";
    c.max_sequences = 32;
    c.max_step_tokens = 256;
    c.kv_cache_bytes = 64 << 20;
    c.check_invariants = true;
    c.prefix_cache = way.prefix_cache;
    c.max_prefill_chunk_tokens = way.chunk;
    c.max_queued_kv_factor = 1000;
    if (way.preempted != Preempted::kNo) make_scarce(c, way);
    return c;
  }
  // Room for the longest case and a few blocks.
  void make_scarce(EngineConfig& c, const Way& way) const {
    const ModelSpec spec = read_model_config(model_dir_).value();
    size_t longest = 0;
    for (const Case& k : cases_) longest = std::max(longest, k.prompt.size() + k.greedy.size());
    c.block_tokens = 8;
    c.max_context_tokens = static_cast<int32_t>(longest) + 1;
    c.kv_cache_bytes = (static_cast<int64_t>(longest) / c.block_tokens + 2) * c.block_tokens *
                       spec.kv_bytes_per_token(DType::kBF16);
    if (way.preempted != Preempted::kSwapped) return;
    c.swap_space_bytes = 4 * c.kv_cache_bytes;
    c.preemption_mode = "swap";
  }

  void open(const Way& way) {
    core_.reset();  // before the executor
    log_.reset();
    parts_.reset();
    Result<EngineParts> parts = open_parts(config_of(way));
    ASSERT_TRUE(parts.has_value()) << parts.error().message;
    if (way.preempted != Preempted::kNo) parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
    parts_ = std::make_unique<EngineParts>(std::move(*parts));
  }

  // Every request at a step that the seed decides; each run on an engine of its own.
  std::vector<Output> run(const Way& way, bool forced, uint64_t seed) {
    open(way);
    clock_ = ManualClock();
    log_ = std::make_unique<PlanLog>(*parts_->executor);
    core_ = std::move(EngineCore::create(parts_->core, *log_, clock_, parts_->mover.get()).value());
    outputs_.clear();
    std::mt19937_64 random(seed);
    for (int copy = 0; copy < way.copies; ++copy)
      for (size_t i = 0; i < cases_.size(); ++i) {
        submit(i, forced);
        if (way.one_by_one) finish();
        for (uint64_t steps = way.staggered ? random() % 4 : 0; steps > 0; --steps) step();
      }
    finish();
    preemptions_ += core_->scheduler().counters().preemptions;
    return outputs_;
  }

  void submit(size_t index, bool forced) {
    const Case& c = cases_[index];
    SamplingParams sampling = greedy(static_cast<int32_t>(c.greedy.size()));
    if (forced) {
      sampling.forced_token_ids = c.greedy;
      sampling.logprobs = 20;
    }
    CoreRequest request;
    request.request = outputs_.size();
    request.prompt = c.prompt;
    request.sampling = std::make_shared<const SamplingParams>(std::move(sampling));
    outputs_.push_back({.case_index = index});
    ASSERT_TRUE(core_->queue_budget().take(static_cast<int64_t>(c.prompt.size()), 0).has_value());
    core_->submit(std::move(request));
  }
  void finish() {
    while (!core_->idle()) step();
  }
  void step() {
    clock_.advance_us(1000);
    if (!core_->step()) core_->wait_for_copy();
    const Outcome outcome = core_->take_outcome();
    for (const TokenOutput& t : outcome.tokens) {
      Output& o = outputs_[static_cast<size_t>(t.request)];
      o.ids.push_back(t.token);
      o.logprob_bits.push_back(std::bit_cast<uint32_t>(t.logprob));
      double rival = -1e30;
      for (const auto& [id, logprob] : t.top)
        if (id != t.token) rival = std::max<double>(rival, logprob);
      o.margins.push_back(t.logprob - rival);
      o.logprobs.push_back(t.logprob);
      o.tops.push_back(t.top);
    }
  }

  static void expect_equal(const Output& got, const Output& wanted, const std::string& what) {
    for (size_t t = 0; t < wanted.ids.size(); ++t)
      ASSERT_EQ(std::pair(got.ids[t], std::bit_cast<float>(got.logprob_bits[t])),
                std::pair(wanted.ids[t], std::bit_cast<float>(wanted.logprob_bits[t])))
          << what << ", token " << t;
  }

  std::string model_dir_;
  std::vector<Case> cases_;
  std::unique_ptr<EngineParts> parts_;
  // A millisecond a step, so that what is evicted first does not depend on the machine's speed.
  ManualClock clock_;
  std::unique_ptr<PlanLog> log_;
  std::unique_ptr<EngineCore> core_;
  std::vector<Output> outputs_;
  int64_t preemptions_ = 0;
};

constexpr Way kPreempted{
    .name = "twice, preempted", .copies = 2, .prefix_cache = true, .preempted = Preempted::kRecomputed};

TEST_P(DeviceNoise, TheSamePlansGiveTheSameBits) {
  Way without_cache = kPreempted, staggered = kPreempted;
  without_cache.prefix_cache = false;
  staggered.staggered = true;
  std::vector<Way> ways = {kPreempted, without_cache, staggered, {.name = "together", .staggered = true}};
  if (on_shim()) ways.resize(1);
  for (const Way& way : ways) {
    const std::vector<Output> first = run(way, false, 1);
    const std::vector<std::string> plans = log_->lines();
    for (int i = 1; i < num_runs(); ++i) {
      const std::vector<Output> again = run(way, false, 1);
      ASSERT_EQ(log_->lines(), plans) << way.name << ", repeat " << i;
      for (size_t k = 0; k < first.size(); ++k)
        expect_equal(again[k], first[k], fmt::format("{}, repeat {}, request {}", way.name, i, k));
    }
  }
  EXPECT_GT(preemptions_, 0);
}

// How far something lay from what is stored, over one way to run.
struct Noise {
  double most = 0, sum = 0;
  int64_t count = 0;
  std::string where;

  void add(double stored, double got, const std::string& at) {
    const double moved = std::abs(got - stored);
    ++count, sum += moved;
    if (moved > most) most = moved, where = at;
  }
  double mean() const { return sum / static_cast<double>(std::max<int64_t>(count, 1)); }
  std::string text() const {
    return fmt::format("{:.4f} at most ({}), {:.4f} in the mean", most, where, mean());
  }
};
struct NoiseOfAWay {
  Noise margins, logprobs;
  int64_t turned = 0;
  double widest_turned = 0;  // the largest stored margin that was turned

  void add(const Case& stored, const Output& got, int run) {
    for (size_t t = 0; t < got.margins.size(); ++t) {
      const std::string at =
          fmt::format("case {} token {} margin {:.3f} run {}", got.case_index, t, stored.margins[t], run);
      margins.add(stored.margins[t], got.margins[t], at);
      logprobs.add(stored.logprobs[t], got.logprobs[t], at);
      if (got.margins[t] < 0) ++turned, widest_turned = std::max(widest_turned, stored.margins[t]);
      const auto top = stored.top.find(t);
      if (top == stored.top.end()) continue;
      for (const auto& [id, logprob] : top->second)
        for (const auto& [got_id, got_logprob] : got.tops[t])
          if (got_id == id) logprobs.add(logprob, got_logprob, fmt::format("{} id {}", at, id));
    }
  }
};

TEST_P(DeviceNoise, ForcedTokensStayNearTheStoredNumbers) {
  Way late = kPreempted, without_cache = kPreempted, swapped = kPreempted;
  late.name = "twice, preempted, at any step", late.staggered = true;
  without_cache.name = "twice, preempted, no prefix cache", without_cache.prefix_cache = false,
  without_cache.staggered = true;
  swapped.name = "twice, swapped, at any step", swapped.staggered = true,
  swapped.preempted = Preempted::kSwapped;
  std::vector<Way> ways = {{.name = "alone", .one_by_one = true},
                           without_cache,
                           {.name = "alone, in chunks of 3", .one_by_one = true, .chunk = 3},
                           {.name = "alone, in chunks of 40", .one_by_one = true, .chunk = 40},
                           {.name = "together, at any step", .staggered = true},
                           {.name = "together, in chunks of 7", .staggered = true, .chunk = 7},
                           kPreempted,
                           late,
                           swapped};
  if (on_shim()) ways.resize(2);
  for (const Way& way : ways) {
    NoiseOfAWay noise;
    const int runs = way.staggered ? num_runs() : 1;
    for (int r = 0; r < runs; ++r)
      for (const Output& o : run(way, true, static_cast<uint64_t>(r))) {
        ASSERT_EQ(o.ids, cases_[o.case_index].greedy);
        noise.add(cases_[o.case_index], o, r);
      }
    std::cout << fmt::format(
        "{:36} {:2} runs: margins move by {}; {} of {} turn, the widest at {:.4f}; log probabilities by {}\n",
        way.name, runs, noise.margins.text(), noise.turned, noise.margins.count, noise.widest_turned,
        noise.logprobs.text());
    for (const Noise& n : {noise.margins, noise.logprobs}) {
      EXPECT_LT(n.most, kMostBf16Noise) << way.name;
      EXPECT_LT(n.mean(), kMeanNoise) << way.name;
    }
  }
  EXPECT_GT(preemptions_, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceNoise, ::testing::ValuesIn(model_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace quire::golden
