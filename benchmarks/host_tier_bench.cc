// What a hit in the prefix cache's tiers is worth: time to the first token of a long prompt that is computed, that
// is still on the device, that lies in host memory (another of its size has pushed it off the device), and that
// lies on the disk: in the kernel's page cache still, and not. Prints one JSON line: medians in ms, and how many
// times sooner than computing each answers.
//   host_tier_bench [--model models/demo] [--device auto] [--prompt-tokens 4000] [--rounds 5] [--dir DIR]
// DIR: where the disk tier's files are made and removed; without it there is no figure for the disk.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/bench_flags.h"
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

std::vector<int32_t> random_prompt(Engine& engine, int32_t tokens, Random& random) {
  const auto vocab = static_cast<uint64_t>(engine.model().vocab_size);
  std::vector<int32_t> prompt(tokens);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random.below(vocab));
  return prompt;
}

struct Medians {
  double computed_ms = 0, below_ms = 0, device_ms = 0;  // below: from the one tier below the device
};

// `before_hit`: called when the prompt is below the device and another has taken its place there.
Medians measure(const EngineConfig& config, int32_t tokens, int32_t rounds,
                const std::function<void()>& before_hit) {
  const std::unique_ptr<Engine> engine = open(config);
  Random random(1);
  std::vector<double> computed, below, device;
  first_token_ms(*engine, random_prompt(*engine, tokens, random));  // warm
  for (int32_t round = 0; round < rounds; ++round) {
    const std::vector<int32_t> prompt = random_prompt(*engine, tokens, random);
    computed.push_back(first_token_ms(*engine, prompt));
    first_token_ms(*engine, random_prompt(*engine, tokens, random));
    before_hit();
    below.push_back(first_token_ms(*engine, prompt));
    device.push_back(first_token_ms(*engine, prompt));
  }
  const EngineStats stats = engine->stats();
  check(stats.host.hit_tokens_total + stats.disk.hit_tokens_total >= int64_t{rounds} * tokens / 2,
        "the prompts were found below the device");
  return {median(computed), median(below), median(device)};
}

// What was written goes to the device, and the kernel keeps nothing of it.
void drop_from_page_cache(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  check(fd >= 0 && fdatasync(fd) == 0, "the disk tier's file can be flushed");
  check(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "and dropped from the page cache");
  close(fd);
}

void print_all(EngineConfig config, int32_t tokens, int32_t rounds, const std::string& dir) {
  const int64_t bytes = 4 * tokens * open(config)->model().kv_bytes_per_token;
  config.kv_cache_bytes = (bytes + bytes / 4) / 4;  // one prompt, and no second beside it
  config.host_kv_bytes = bytes;
  const Medians host = measure(config, tokens, rounds, [] {});
  std::string line = fmt::format(
      R"({{"prompt_tokens":{},"rounds":{},"computed_ms":{:.2f},"device_ms":{:.2f},"host_ms":{:.2f},"host_sooner":{:.1f})",
      tokens, rounds, host.computed_ms, host.device_ms, host.below_ms, host.computed_ms / host.below_ms);
  config.host_kv_bytes = 0;
  config.disk_kv_bytes = bytes + (16 << 20);
  for (const bool cached : {true, false}) {
    if (dir.empty()) break;
    config.disk_kv_dir = dir + "/quire_disk_bench";
    std::filesystem::create_directory(config.disk_kv_dir);
    const Medians disk = measure(config, tokens, rounds, [&] {
      if (!cached) drop_from_page_cache(config.disk_kv_dir + "/quire-kv.blocks");
    });
    std::filesystem::remove_all(config.disk_kv_dir);
    line += fmt::format(R"(,"{0}_ms":{1:.2f},"{0}_sooner":{2:.1f})", cached ? "page_cache" : "disk",
                        disk.below_ms, disk.computed_ms / disk.below_ms);
  }
  fmt::print("{}}}\n", line);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::EngineConfig config;
  config.model_dir = "models/demo";
  int32_t tokens = 4000, rounds = 5;
  std::string dir;
  quire::read_bench_flags(
      argc, argv,
      "What a hit in the prefix cache's tiers is worth: time to the first token, computed and from each "
      "tier; "
      "one JSON line.",
      {{"--model", &config.model_dir, 0, "model directory"},
       {"--device", &config.device, 0, "auto, cpu or cuda"},
       {"--prompt-tokens", &tokens, 1, "of each prompt"},
       {"--rounds", &rounds, 1, "of which the medians are printed"},
       {"--dir", &dir, 0, "where the disk tier's files are made and removed; none: no figure for the disk"}});
  config.max_context_tokens = tokens + 16;
  quire::print_all(config, tokens, rounds, dir);
}
