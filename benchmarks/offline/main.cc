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
  app.add_option("--default-kv-policy", c.default_kv_policy,
                 "KV policy of all requests, as name:key=value,...")
      ->capture_default_str();
  app.add_option("--block-tokens", c.block_tokens, "tokens of a block: 8 | 16 | 32 | 64")
      ->capture_default_str();
  app.add_option("--max-step-tokens", c.max_step_tokens, "tokens of one step")->capture_default_str();
  app.add_option("--max-context-tokens", c.max_context_tokens, "0 = prompt + new tokens")
      ->capture_default_str();
  app.add_option("--kv-cache-bytes", c.kv_cache_bytes, "0 = room for the batch")->capture_default_str();
}

// Several reports as JSON are one array.
void print(const std::vector<quire::OfflineReport>& reports, bool json, bool array) {
  if (json && array) std::printf("[");
  for (size_t i = 0; i < reports.size(); ++i)
    std::printf("%s%s\n", json && i > 0 ? "," : "",
                (json ? to_json(reports[i]) : to_text(reports[i])).c_str());
  if (json && array) std::printf("]\n");
}

int fail(const quire::Error& error) {
  std::fprintf(stderr, "quire-offline: %s\n", error.message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  quire::OfflineOptions options;
  std::string output = "text", requests, workloads;
  CLI::App app{"Measures the engine without a wire: a batch of random prompts, greedy, no stops."};
  add_engine_flags(app, options.engine);
  app.add_option("--batch", options.batch, "requests at once")->capture_default_str();
  app.add_option("--n", options.n, "sequences of each request")->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens, "of each request")->capture_default_str();
  app.add_option("--new-tokens", options.new_tokens, "of each request")->capture_default_str();
  app.add_option(
         "--cascade-min-saved-bytes", options.engine.cascade_min_saved_bytes,
         "read shared blocks once for all where that saves the time of so many bytes from memory a layer; "
         "0 = wherever sequences share enough, -1 = never")
      ->capture_default_str();
  app.add_option("--max-graph-tokens", options.engine.max_graph_tokens,
                 "capture steps in which prompts run as graphs up to so many tokens; 0 = decode steps alone")
      ->capture_default_str();
  app.add_option("--gemm-tuning-ms", options.engine.gemm_tuning_ms,
                 "time cuBLASLt's ways for the model's products for so long at the start; 0 = its own choice")
      ->capture_default_str();
  app.add_flag("--time-device-idle", options.engine.time_device_idle,
               "time how long the card stands idle between steps; costs it some 2.4 us a step");
  app.add_option("--shared-prefix-tokens", options.shared_prefix_tokens,
                 "tokens that all prompts begin with, cached before the timed rounds")
      ->capture_default_str();
  app.add_option("--requests", requests, "CSV of prompt_tokens,output_tokens: a round's requests");
  app.add_option("--workloads", workloads,
                 "JSON array of workloads on one engine: name, batch, n, prompt_tokens, new_tokens, "
                 "shared_prefix_tokens, rounds, requests; the flags are their defaults");
  app.add_option("--rounds", options.rounds, "timed rounds, after one that warms up")->capture_default_str();
  app.add_option("--seed", options.seed, "of the prompts")->capture_default_str();
  app.add_option("--output", output, "text | json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (!requests.empty()) {
    quire::Result<std::vector<quire::RequestLengths>> list = quire::read_request_list(requests);
    if (!list) return fail(list.error());
    options.requests = std::move(*list);
  }
  std::vector<quire::OfflineOptions> list{options};
  if (!workloads.empty()) {
    quire::Result<std::vector<quire::OfflineOptions>> read = quire::read_workloads(workloads, options);
    if (!read) return fail(read.error());
    list = std::move(*read);
  }
  const quire::Result<std::vector<quire::OfflineReport>> reports = quire::run_offline_all(list);
  if (!reports) return fail(reports.error());
  print(*reports, output == "json", !workloads.empty());
  return 0;
}
