// What a hit in the prefix cache's host tier is worth: time to the first token of a long prompt that is
// computed, that lies in host memory (another of its size has pushed it off the device), and that is still on
// the device. Prints one JSON line: medians in ms, and how many times sooner the host's hit answers.
//   host_tier_bench [--model models/demo] [--device auto] [--prompt-tokens 4000] [--rounds 5]
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "quire/engine.h"
#include "src/base/check.h"
#include "src/base/random.h"

namespace quire {
namespace {

class LastEvent final : public TokenSink {
 public:
  void on_event(const TokenEvent& event) override {
    if (!event.last) return;
    const std::lock_guard lock(mutex_);
    last_ = event;
    done_ = true;
    changed_.notify_all();
  }
  TokenEvent wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    return last_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  TokenEvent last_;
  bool done_ = false;
};

std::unique_ptr<Engine> open(const EngineConfig& config) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(config);
  check(engine.has_value(), engine ? "" : engine.error().message);
  return std::move(*engine);
}

double first_token_ms(Engine& engine, const std::vector<int32_t>& prompt) {
  Request request;
  request.prompt = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 1;
  auto sink = std::make_shared<LastEvent>();
  const Result<RequestId> id = engine.submit(std::move(request), sink);
  check(id.has_value(), id ? "" : id.error().message);
  const double ms = sink->wait().timings.first_token_ms;
  // What it leaves is on the host before the next begins.
  while (engine.stats().blocks_held > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return ms;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void measure(Engine& engine, int32_t tokens, int32_t rounds) {
  Random random(1);
  const auto vocab = static_cast<uint64_t>(engine.model().vocab_size);
  const auto prompt_of = [&] {
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < tokens; ++i) prompt.push_back(static_cast<int32_t>(random.below(vocab)));
    return prompt;
  };
  std::vector<double> computed, from_host, from_device;
  first_token_ms(engine, prompt_of());  // warm
  for (int32_t round = 0; round < rounds; ++round) {
    const std::vector<int32_t> prompt = prompt_of();
    computed.push_back(first_token_ms(engine, prompt));
    first_token_ms(engine, prompt_of());
    from_host.push_back(first_token_ms(engine, prompt));
    from_device.push_back(first_token_ms(engine, prompt));
  }
  const EngineStats stats = engine.stats();
  fmt::print(R"({{"device":"{}","prompt_tokens":{},"rounds":{},"computed_ms":{:.2f},"host_ms":{:.2f},)"
             R"("device_ms":{:.2f},"sooner":{:.1f},"host_hit_tokens":{},"host_blocks_written":{}}})"
             "\n",
             engine.model().device, tokens, rounds, median(computed), median(from_host), median(from_device),
             median(computed) / median(from_host), stats.host_hit_tokens_total,
             stats.host_blocks_written_total);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::EngineConfig config;
  config.model_dir = "models/demo";
  int32_t tokens = 4000, rounds = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--model") config.model_dir = argv[i + 1];
    if (name == "--device") config.device = argv[i + 1];
    if (name == "--prompt-tokens") tokens = std::atoi(argv[i + 1]);
    if (name == "--rounds") rounds = std::atoi(argv[i + 1]);
  }
  config.max_context_tokens = tokens + 16;
  const int64_t token_bytes = quire::open(config)->model().kv_bytes_per_token;
  config.kv_cache_bytes = (tokens + tokens / 4) * token_bytes;  // one prompt, and no second beside it
  config.host_kv_bytes = 4 * tokens * token_bytes;
  quire::measure(*quire::open(config), tokens, rounds);
}
