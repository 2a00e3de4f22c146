// `quire bench sim`: the real scheduler, cache, queue and admission with a fake executor (step times from a
// roofline), a moved clock and injected faults, all from one seed. Invariants are checked while it runs; a
// failing seed replays exactly.
//
// Without a trace it draws its own load, in episodes of a few thousand steps; each episode draws a cache
// size, a block size and a chunk size too, so that some are roomy and some preempt all the time, and ends
// drained with nothing held. In a fifth of them the cache is small and most requests may need all of it, or a few
// blocks less. Two thirds of the episodes have some kinds of faults and not the others, a few of them often; and for a
// few steps now and then faults are frequent and half of them concern one request, so that they meet.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quire/result.h"

namespace quire {

struct SimOptions {
  uint64_t seed = 1;
  int64_t steps = 0;       // under load; 0 = no limit; without any limit (nor a trace) 100,000
  double seconds = 0;      // of real time; 0 = no limit
  int32_t sequences = 64;  // running at once
  bool faults = true;
  // Steps between audits of cache and lists from scratch. Sums, plans, held blocks and contents: every step.
  int32_t audit_every = 128;

  std::string script;      // play this file again instead
  std::string script_out;  // where a failing episode goes; "" = quire-sim-<seed>.jsonl

  std::string trace;         // a file of arrivals and lengths in trace_format; "" = a random load
  std::string trace_format;  // azure | mooncake | servegen
  double speed = 1;          // of the trace's arrivals
  int64_t max_requests = 0;  // of the trace; 0 = all

  int64_t host_kv_bytes = 0, disk_kv_bytes = 0;  // tiers below the device, of traces; 0 = none
  int64_t kv_bytes = 0;     // 0 = drawn (random load), or what an 80 GB card has left (trace)
  std::string model_shape;  // a config.json; "" = Llama-3.1-8B's shape
  // h100 | h200 | a JSON file {"read_bytes_per_s", "flops_per_s", "overhead_us", "memory_bytes"}, all of them
  std::string card = "h100";
  // auto: each episode of a random load draws one; with a trace token, lru and the engine's 256.
  std::string prefix_rule = "auto";  // token | block (whole-block hits only, as vLLM's) | auto
  std::string eviction = "auto";     // lru | pgdsf | oracle (Belady on leaves, traces only) | auto
  // Who computes the front of a prefix whose tail comes from a tier: never | spare (who has time to) | always | auto. With a
  // trace auto is spare; half of the episodes of a random load take always.
  std::string both_ends = "auto";
  int32_t look_ahead = -1;  // requests of a tenant looked at for cached prefixes; 0 = first come; -1 = auto

  std::string plot;  // an SVG file of how it went over time; "" = none

  double slo_ttft_ms = 1000, slo_tpot_ms = 50;  // a finished request within both counts as goodput
};

// What was done to the engine. A cancel is counted by where its request was.
enum class SimFault : uint8_t {
  kCancelWaiting,
  kCancelParked,  // waiting for another to compute its prefix
  kCancelPrefill,
  kCancelDecode,
  kCancelPreempted,
  kCancelCopying,  // its blocks are on their way to or from the host
  kCancelPaused,
  kCancelEnded,  // or unknown
  kDeadline,
  kSlowReader,
  kStop,
  kExecutorError,
  kCopyError,
  kCopyDelay,
  kNoRoom,
  kClockJump,
  kTransferError,  // of a copy between tiers
  kTransferDelay,
  kDiskCorrupt,    // a block that was read from the disk was not what had been written
  kDiskHang,       // a copy to or from it takes seconds
  kSequenceError,  // a step could not carry one of its sequences
};
inline constexpr size_t kNumSimFaults = 21;
using FaultCounts = std::array<int64_t, kNumSimFaults>;

struct SimPercentiles {
  double p50 = 0, p90 = 0, p99 = 0;
  int64_t count = 0,
          sampled = 0;  // values there were; of which they are, drawn evenly where there were very many
};

struct SimReport {
  std::optional<uint64_t> seed;  // of a script that was played: the one it came from, where it says so
  int64_t steps = 0, faults = 0;
  int64_t drain_steps = 0;       // of the steps: those after an episode's load, until nothing is left
  FaultCounts faults_by_kind{};  // their sum is faults
  std::vector<std::string> violations;
  double steps_per_s = 0;  // of real time
  double simulated_s = 0;
  double running_mean = 0;  // sequences in a step
  int64_t submitted = 0, finished = 0, refused = 0, cancelled = 0, failed = 0;
  double hit_rate = 0;                          // prompt tokens found cached / prompt tokens admitted
  double host_hit_rate = 0, disk_hit_rate = 0;  // of these, found in that tier; the rest on the device
  SimPercentiles ttft_ms,
      tpot_ms;  // of finished requests: first token - arrival; (last - first token) / (tokens - 1)
  double requests_per_s = 0, goodput_per_s = 0;  // finished, simulated; goodput: those within both limits
  double output_tokens_per_s = 0;                // simulated
  // Most that the virtual counters of two tenants of one rank differed by while both waited; and the dearest
  // request, in the same tokens.
  double fairness_max_gap = 0, dearest_request = 0;
  double waste_percent = 0;  // of held blocks' slots, mean over time
  int64_t preemptions = 0, copies_on_write = 0, evictions = 0, tail_drops = 0, heads_shortened = 0,
          tier_waits_given_up = 0, tier_fronts_computed = 0, swap_outs = 0, swap_ins = 0, host_hit_tokens = 0,
          disk_hit_tokens = 0, disk_corrupt_blocks = 0;
  int64_t blocks_leaked = 0;  // held with nothing left to do
  std::string script;         // the file that the failing episode was shrunk to
  int64_t script_events = 0;
};

// Errors: an option out of range, a file that does not parse (file and line). Violations are not errors but
// part of the report.
Result<SimReport> run_sim(const SimOptions& options);

std::string to_json(const SimReport& report);
std::string to_table(const SimReport& report);  // lines, for the eyes

}  // namespace quire
