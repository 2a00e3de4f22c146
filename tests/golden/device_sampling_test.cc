// Sampling on a CUDA device beside the CPU back end: the same tokens and logprobs for every parameter, and no step whose logits had to come to
// the host, but for what the device leaves there. Float32, where both read the same logits to some 1e-5. On the host shim by default;
// QUIRE_TEST_DEVICE=cuda runs it on a card.
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

struct Ask {
  std::string name;
  SamplingParams sampling;
  std::vector<int32_t> prompt;
  std::string error = {};  // that it ends with
};

std::vector<int32_t> prompt_of(int32_t length, int32_t seed) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(3 + (i * i * 7 + i * 13 + seed * 101) % 90);
  return ids;
}

template <class F>
Ask ask(std::string name, F set, int32_t length = 9) {
  SamplingParams p = greedy(14);
  p.logprobs = 0;
  set(p);
  return {std::move(name), std::move(p), prompt_of(length, static_cast<int32_t>(name.size()))};
}

Ask fails(Ask ask, std::string error) {
  ask.error = std::move(error);
  return ask;
}

// Greedy, so that rounding decides nothing; drawn ones beside them at seeds whose draws lie far from a border.
std::vector<Ask> device_asks() {
  using P = SamplingParams;
  return {
      ask("plain", [](P&) {}),
      ask("top logprobs", [](P& p) { p.logprobs = 20; }),
      ask("repetition", [](P& p) { p.repetition_penalty = 1.8; }),
      ask("presence and frequency",
          [](P& p) { p.presence_penalty = 1.5, p.frequency_penalty = 0.5, p.logprobs = 3; }),
      ask(
          "n-grams", [](P& p) { p.no_repeat_ngram = 2; }, 40),
      ask("bias", [](P& p) { p.logit_bias = {{17, 50.0}, {40, -3.5}}, p.logprobs = 2; }),
      ask("allowed ids", [](P& p) { p.allowed_token_ids = {5, 9, 33, 71}; }),
      ask("bad words", [](P& p) { p.allowed_token_ids = {5, 9, 33}, p.bad_words = {{9}, {5, 5}, {33, 33}}; }),
      ask("min tokens", [](P& p) { p.ignore_eos = false, p.logit_bias = {{2, 80.0}}, p.min_tokens = 6; }),
      ask("forced", [](P& p) { p.forced_token_ids = {11, 12, 13, 14}, p.repetition_penalty = 1.3; }),
      ask("drawn", [](P& p) { p.temperature = 0.7, p.top_k = 20, p.seed = 5, p.frequency_penalty = 1.0; }),
      ask(
          "four samples", [](P& p) { p.n = 4, p.temperature = 1, p.seed = 9, p.presence_penalty = 0.7; }, 21),
      fails(ask("masks leave nothing", [](P& p) { p.allowed_token_ids = {9}, p.bad_words = {{9}}; }),
            "nothing is left to choose for output token 1: together these exclude every id: "
            "allowed_token_ids (1 id), bad_words (1)"),
      fails(ask("masks leave nothing after a while",
                [](P& p) { p.allowed_token_ids = {100, 101, 102}, p.no_repeat_ngram = 1, p.logprobs = 1; }),
            "nothing is left to choose for output token 4: together these exclude every id: "
            "allowed_token_ids (3 ids), no_repeat_ngram 1"),
  };
}

std::vector<Ask> host_asks() {
  using P = SamplingParams;
  return {
      ask("typical", [](P& p) { p.temperature = 1, p.typical_p = 0.5, p.seed = 3; }),
      ask("prompt logprobs", [](P& p) { p.prompt_logprobs = 2; }),
      ask("beams", [](P& p) { p.beam_width = 3, p.n = 1; }),
  };
}

class SamplingOnDevice : public ::testing::Test {
 protected:
  struct Answers {
    std::vector<std::shared_ptr<Collector>> sinks;
    EngineStats stats;
  };

  // All together, so that samples of different kinds share steps; `rounds` times, so that slots and turns are used again.
  Answers run(const std::string& device, const std::vector<Ask>& asks, int rounds = 1) {
    EngineConfig config;
    config.model_dir = root_dir() + "/tests/golden/families/qwen3";
    config.device = device;
    config.dtype = "f32";
    config.max_sequences = 32;
    config.max_step_tokens = 64;
    config.kv_cache_bytes = 8 << 20;
    config.check_invariants = true;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config);
    EXPECT_TRUE(engine.has_value()) << engine.error().message;
    Answers out;
    if (!engine) return out;
    for (int round = 0; round < rounds; ++round) {
      out.sinks.clear();
      for (const Ask& a : asks) out.sinks.push_back(submit(**engine, a.prompt, a.sampling));
      for (size_t i = 0; i < asks.size(); ++i) out.sinks[i]->wait(asks[i].error);
    }
    out.stats = (*engine)->stats();
    return out;
  }

  static void expect_same_logprobs(const std::vector<TokenLogprob>& got,
                                   const std::vector<TokenLogprob>& wanted) {
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i].logprob, wanted[i].logprob, 1e-3) << "token " << i;
      ASSERT_EQ(got[i].top.size(), wanted[i].top.size()) << "token " << i;
      for (size_t k = 0; k < got[i].top.size(); ++k)
        EXPECT_NEAR(got[i].top[k].second, wanted[i].top[k].second, 1e-3) << "token " << i << " rank " << k;
    }
  }

  static void expect_same(const std::vector<Ask>& asks, const Answers& got, const Answers& wanted) {
    ASSERT_EQ(got.sinks.size(), wanted.sinks.size());
    for (size_t i = 0; i < asks.size(); ++i) {
      SCOPED_TRACE(asks[i].name);
      for (int32_t n = 0; n < asks[i].sampling.n; ++n) {
        EXPECT_EQ(got.sinks[i]->ids(n), wanted.sinks[i]->ids(n)) << "sample " << n;
        expect_same_logprobs(got.sinks[i]->logprobs(n), wanted.sinks[i]->logprobs(n));
        EXPECT_EQ(got.sinks[i]->finish(n), wanted.sinks[i]->finish(n)) << "sample " << n;
      }
    }
  }

  const std::string device_ = env_or("QUIRE_TEST_DEVICE", "cuda-host");
};

TEST_F(SamplingOnDevice, IsTheCpusWithoutLogitsOnTheHost) {
  const std::vector<Ask> asks = device_asks();
  const Answers device = run(device_, asks, 2);
  expect_same(asks, device, run("cpu", asks));
  EXPECT_EQ(device.stats.host_sampled_steps_total, 0);
}

TEST_F(SamplingOnDevice, GoesOnWhereTheHostHasSampledAStep) {
  std::vector<Ask> asks = device_asks();
  for (Ask& a : host_asks()) {
    a.sampling.max_tokens = 5;  // so that the device has the steps after
    asks.push_back(std::move(a));
  }
  const Answers device = run(device_, asks);
  expect_same(asks, device, run("cpu", asks));
  EXPECT_GT(device.stats.host_sampled_steps_total, 0);
  EXPECT_LT(device.stats.host_sampled_steps_total, device.stats.steps_total);
}

}  // namespace
}  // namespace quire::golden
