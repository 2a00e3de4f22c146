// Sampling from rows of logits with the spread of a language model's: normal, standard deviation 2.5. Bound
// by one read of the logits.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "benchmarks/cuda/step_bench.h"
#include "src/base/random.h"
#include "src/base/worse_of.h"

namespace quire::bench {
namespace {

constexpr float kDeviation = 2.5f;
constexpr int kSets = 2, kCheckedRows = 3;

// Sums of twelve uniforms are close enough to normal, and cheap.
std::vector<float> normal_logits(int64_t count) {
  Random random(11);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits) {
    float sum = 0;
    for (int i = 0; i < 3; ++i) {
      const uint64_t bits = random.next();
      for (int k = 0; k < 4; ++k) sum += static_cast<float>((bits >> (16 * k)) & 0xffffu) / 65536.0f;
    }
    x = (sum - 6.0f) * kDeviation;
  }
  return logits;
}

class Sampling {
 public:
  Sampling(Rig& rig, Report& report, bool tiny)
      : rig_(rig),
        report_(report),
        samples_(tiny ? 3 : 256),
        vocab_(tiny ? 1000 : 128256),
        logits_(normal_logits(int64_t{samples_} * vocab_)) {
    for (int i = 0; i < kSets; ++i) there_.push_back(rig.upload(logits_, "logits"));
    workspace_ = rig.buffer(samples_ * rig.kernels().sample_space_bytes(), "workspace of sampling");
  }

  void run(const char* name, SampleSettings settings) {
    std::vector<SampleSettings> all(static_cast<size_t>(samples_), settings);
    for (int32_t i = 0; i < samples_; ++i)
      all[static_cast<size_t>(i)].logits_row = i, all[static_cast<size_t>(i)].position = i;
    const DeviceBuffer settings_there = rig_.upload(all, "settings");
    tokens_ = rig_.upload(std::vector<int32_t>(static_cast<size_t>(samples_), -1),
                          "tokens");  // of no row before this line's
    logprobs_ = rig_.upload(std::vector<float>(static_cast<size_t>(samples_), NAN), "logprobs");
    Line line{.part = "sampling", .name = fmt::format("{}x{} {}", samples_, vocab_, name)};
    line.time = rig_.time(kSets, [&](int i) {
      rig_.kernels().sample({.logits = there_[static_cast<size_t>(i)].as<float>(),
                             .settings = settings_there.as<SampleSettings>(),
                             .workspace = workspace_.data(),
                             .tokens = tokens_.as<int32_t>(),
                             .logprobs = logprobs_.as<float>(),
                             .num_samples = samples_,
                             .vocab = vocab_});
    });
    line.bytes = 4.0 * samples_ * vocab_;
    for (int row = 0; row < kCheckedRows; ++row)
      line.error = worse_of(line.error, row_error(row * (samples_ - 1) / kCheckedRows, settings));
    line.max_error = 1e-4;  // of a log-probability; float32 sums of 128k terms
    report_.add(line);
  }

 private:
  // 1 where the token is none that the filters leave; else the relative error of its log-probability.
  double row_error(int row, const SampleSettings& s) {
    const int32_t token = rig_.download(tokens_.as<int32_t>() + row, 1)[0];
    const float logprob = rig_.download(logprobs_.as<float>() + row, 1)[0];
    if (token < 0 || token >= vocab_) return 1;
    const float* logits = logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(vocab_);
    std::vector<int32_t> order(static_cast<size_t>(vocab_));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    if (!allowed(logits, order, token, s)) return 1;
    double sum = 0;
    for (int32_t i = 0; i < vocab_; ++i) sum += std::exp(double{logits[i]} - logits[order[0]]);
    const double wanted = double{logits[token]} - logits[order[0]] - std::log(sum);
    return std::abs((logprob - wanted) / wanted);
  }

  bool allowed(const float* logits, const std::vector<int32_t>& order, int32_t token,
               const SampleSettings& s) const {
    if (s.inverse_temperature == 0) return token == order[0];
    const size_t kept = s.top_k > 0 ? static_cast<size_t>(s.top_k) : order.size();
    double mass = 0, before = 0;
    const auto weight = [&](int32_t id) {
      return std::exp((double{logits[id]} - logits[order[0]]) * s.inverse_temperature);
    };
    for (size_t i = 0; i < kept; ++i) mass += weight(order[i]);
    for (size_t i = 0; i < kept; before += weight(order[i++]))
      if (order[i] == token) return before < s.top_p * mass * (1 + 1e-5);
    return false;
  }

  Rig& rig_;
  Report& report_;
  int32_t samples_, vocab_;
  std::vector<float> logits_;
  std::vector<DeviceBuffer> there_;
  DeviceBuffer workspace_, tokens_, logprobs_;
};

}  // namespace

void bench_sampling(Rig& rig, Report& report, bool tiny) {
  Sampling sampling(rig, report, tiny);
  sampling.run("greedy", {.inverse_temperature = 0});
  sampling.run("top-k 50 + top-p 0.9", {.top_k = 50, .top_p = 0.9f, .seed = 1});
  sampling.run("top-p 0.9", {.inverse_temperature = 1.25f, .top_p = 0.9f, .seed = 2});
  sampling.run("no filter", {.seed = 3});
}

}  // namespace quire::bench
