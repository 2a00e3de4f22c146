// quire bench offline: the engine without a wire, greedy, no stops; medians over rounds.
#include <fmt/format.h>

#include "benchmarks/offline/offline.h"
#include "server/commands/command.h"
#include "server/commands/common_flags.h"

namespace quire::server {

int run_bench_offline(const Arguments& arguments) {
  OfflineOptions options;
  LogOptions log;
  std::string output = "text", requests;
  Flags flags("quire bench offline",
              "Measure the engine without a wire: a batch of random prompts, greedy, no stops. With "
              "--weights random the "
              "model directory needs only a config.json.");
  flags.add("batch", options.batch, "Requests of a round, all at once");
  flags.add("n", options.n, "Sequences of each request");
  flags.add("prompt-tokens", options.prompt_tokens, "Tokens of each prompt");
  flags.add("new-tokens", options.new_tokens, "New tokens of each request, at least 2");
  flags.add("shared-prefix-tokens", options.shared_prefix_tokens,
            "Tokens that all prompts begin with; the prefix cache is on, and the warm-up round fills it");
  flags.add("requests", requests,
            "CSV file of prompt_tokens,output_tokens: the requests of a round, in place of --batch, "
            "--prompt-tokens and --new-tokens");
  flags.add("rounds", options.rounds, "Timed rounds, after one that warms up");
  flags.add("probe-read", options.probe_read,
            "CPU: measure the machine's read bandwidth after each round, and report what share of it the "
            "weights took");
  flags.add("seed", options.seed, "What the prompts are drawn from");
  flags.add_choice("output", output, {"text", "json"}, "Form of the report");
  bind_engine_flags(flags, options.engine);
  bind_log_flags(flags, log);
  flags.add_config();
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  apply(log);
  if (!requests.empty()) {
    Result<std::vector<RequestLengths>> list = read_request_list(requests);
    if (!list) return fail(list.error(), kExitUsage);
    options.requests = std::move(*list);
  }
  const Result<OfflineReport> report = run_offline(options);
  if (!report) return fail(report.error());
  fmt::print("{}\n", output == "json" ? to_json(*report) : to_text(*report));
  return 0;
}

}  // namespace quire::server
