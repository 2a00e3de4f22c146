// quire-offline: `quire bench offline` as a program of its own, for machines where the server (gRPC, Rust) is
// not built.
#include <CLI/CLI.hpp>

#include <cstdio>

#include "benchmarks/offline/offline.h"

namespace {

void add_engine_flags(CLI::App& app, quire::EngineConfig& c) {
  app.add_option("--model", c.model_dir, "model directory; a config.json is enough with --weights random")
      ->required();
  app.add_option("--weights", c.weights, "checkpoint | random | random:SEED")->capture_default_str();
  app.add_option("--device", c.device, "auto | cpu | cuda | cuda-host")->capture_default_str();
  app.add_option("--dtype", c.dtype, "activations: auto | f32 | bf16 | f16")->capture_default_str();
  app.add_option("--kv-cache-dtype", c.kv_cache_dtype, "auto | f32 | bf16 | f16")->capture_default_str();
  app.add_option("--threads", c.threads, "CPU threads; 0 = all cores")->capture_default_str();
  app.add_option("--block-tokens", c.block_tokens, "tokens of a block: 8 | 16 | 32 | 64")
      ->capture_default_str();
  app.add_option("--max-step-tokens", c.max_step_tokens, "tokens of one step")->capture_default_str();
  app.add_option("--max-context-tokens", c.max_context_tokens, "0 = prompt + new tokens")
      ->capture_default_str();
  app.add_option("--kv-cache-bytes", c.kv_cache_bytes, "0 = room for the batch")->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  quire::OfflineOptions options;
  std::string output = "text";
  CLI::App app{"Measures the engine without a wire: a batch of random prompts, greedy, no stops."};
  add_engine_flags(app, options.engine);
  app.add_option("--batch", options.batch, "requests at once")->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens, "of each request")->capture_default_str();
  app.add_option("--new-tokens", options.new_tokens, "of each request")->capture_default_str();
  app.add_option("--rounds", options.rounds, "timed rounds, after one that warms up")->capture_default_str();
  app.add_option("--seed", options.seed, "of the prompts")->capture_default_str();
  app.add_option("--output", output, "text | json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const quire::Result<quire::OfflineReport> report = quire::run_offline(options);
  if (!report) {
    std::fprintf(stderr, "quire-offline: %s\n", report.error().message.c_str());
    return 1;
  }
  std::printf("%s\n", (output == "json" ? to_json(*report) : to_text(*report)).c_str());
  return 0;
}
