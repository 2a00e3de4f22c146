// quire bench sim: scheduler, cache and queue in a deterministic simulation. Exit code 1 on any violation; 2 on what kept it from running,
// a bad value or a file that cannot be read or written.
#include <fmt/format.h>

#include "benchmarks/sim/sim.h"
#include "server/commands/command.h"
#include "server/flags.h"

namespace quire::server {
namespace {

struct Choices {
  std::string faults = "auto", output = "text";
};

void add_flags(Flags& flags, SimOptions& sim, Choices& choices) {
  flags.add("seed", sim.seed, "what everything is drawn from; a failing seed replays exactly");
  flags.add("steps", sim.steps,
            "engine steps under load, 0 = no limit (without any limit: 100000); what is left is then "
            "drained, in drain_steps more");
  flags.add("seconds", sim.seconds, "of real time, 0 = no limit");
  flags.add("sequences", sim.sequences, "sequences running at once");
  flags.add_choice(
      "faults", choices.faults, {"on", "off", "auto"},
      "auto: on, but not with a trace; cancels at every stage, deadlines, slow readers, stops, "
      "failed steps, failed, slow and hanging copies, corrupt blocks on disk, failed allocations, "
      "clock jumps");
  flags.add("audit-every", sim.audit_every, "steps between full audits of cache and lists");
  flags.add("script", sim.script, "play this script of events instead: what a failing seed was shrunk to");
  flags.add("script-out", sim.script_out,
            "file for the script of a failing seed (default: quire-sim-SEED.jsonl)");
  flags.add("trace", sim.trace, "replay this file instead of a random load");
  flags.add_choice("trace-format", sim.trace_format, {"azure", "mooncake", "servegen"}, "of --trace");
  flags.add("speed", sim.speed, "of the trace's arrivals, 2 = twice as fast");
  flags.add("max-requests", sim.max_requests, "of the trace, 0 = all");
  flags.add("kv-bytes", sim.kv_bytes,
            "bytes of the cache, 0 = drawn, or with a trace what the card has left");
  flags.add("host-kv-bytes", sim.host_kv_bytes, "bytes of host memory below it, with a trace; 0 = none");
  flags.add("disk-kv-bytes", sim.disk_kv_bytes, "bytes of disk below that, with a trace; 0 = none");
  flags.add("model-shape", sim.model_shape, "a config.json (default: the shape of Llama 3.1 8B)");
  flags.add(
      "card", sim.card,
      "h100, h200, or a JSON file with all of read_bytes_per_s, flops_per_s, overhead_us, memory_bytes");
  flags.add_choice("prefix-rule", sim.prefix_rule, {"token", "block", "auto"},
                   "hits exact to the token, or whole blocks only; auto: drawn, with a trace token");
  flags.add_choice(
      "eviction", sim.eviction, {"lru", "pgdsf", "oracle", "auto"},
      "order in which cached blocks go; oracle: Belady's, with a trace; auto: drawn, with a trace lru");
  flags.add_choice(
      "fronts", sim.both_ends, {"never", "spare", "always", "auto"},
      "who computes the front of a prefix whose tail comes from a tier below: nobody, whoever has "
      "time to spare, everybody; auto: drawn, with a trace spare");
  flags.add("look-ahead", sim.look_ahead,
            "waiting requests of a tenant among which the one with most of its prompt cached is next, 0 = "
            "first come, -1 = drawn, with a trace 256");
  flags.add("slo-ttft-ms", sim.slo_ttft_ms,
            "a request counts as goodput with its first token within this, ms");
  flags.add("slo-tpot-ms", sim.slo_tpot_ms, "and each later one within this on average, ms");
  flags.add("plot", sim.plot,
            "SVG file for how it went: requests, blocks and hits over simulated time, and latencies");
  flags.add_choice("output", choices.output, {"text", "json"}, "form of the report: a table, or JSON");
}

}  // namespace

int run_bench_sim(const Arguments& arguments) {
  SimOptions sim;
  Choices choices;
  Flags flags("quire bench sim",
              "Simulate scheduler, cache and queue with a fake executor, a moved clock and injected faults, "
              "from one seed.");
  add_flags(flags, sim, choices);
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  sim.faults = choices.faults == "on" || (choices.faults == "auto" && sim.trace.empty());
  const Result<SimReport> report = run_sim(sim);
  if (!report) return fail(report.error(), kExitUsage);
  fmt::print("{}", choices.output == "json" ? to_json(*report) + "\n" : to_table(*report));
  return report->violations.empty() ? 0 : kExitFailed;
}

}  // namespace quire::server
