// `quire bench offline`: the engine without a wire. `batch` requests of random ids enter at once, greedy,
// with no stops, and every round is timed by the events that the engine delivers. Works from a config.json
// alone with random weights.
//
// A round has two parts. Prefill: from the first submission until every sequence has its first token. Decode:
// from there until the first sequence ends, so that every counted step ran the whole batch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/offline/request_list.h"
#include "quire/config.h"
#include "quire/result.h"

namespace quire {

inline constexpr int32_t kMaxOfflineRequests = 4096;
inline constexpr int32_t kMaxOfflineTokens = 1 << 24;

struct OfflineOptions {
  std::string name;             // "" or what a list of workloads calls it
  EngineConfig engine;          // 0 fields that bear on capacity are set so that the batch runs at once
  int32_t batch = 1;            // requests of a round
  int32_t n = 1;                // sequences of each
  int32_t prompt_tokens = 512;  // of each request, after the shared prefix
  int32_t new_tokens = 64;      // of each sequence; at least 2
  // Tokens that all prompts of all rounds begin with. Above 0 the prefix cache is on, and the round that
  // warms up fills it.
  int32_t shared_prefix_tokens = 0;
  std::vector<RequestLengths> requests;  // where not empty: the round's requests, in place of the batch above
  int32_t rounds = 3;                    // timed; one more before them warms up and is not reported
  // CPU back end: read bandwidth of the machine measured after each round, in threads as many as the engine's.
  bool probe_read = false;
  uint64_t seed = 0;  // of the prompts; beyond the shared prefix no two requests are alike
};

struct OfflineRound {
  double prefill_tokens_per_s = 0;  // prompt tokens of the batch over the prefill part
  double decode_tokens_per_s = 0;   // tokens delivered in the decode part over its length
  double ms_per_decode_step = 0;
  double prefill_ms = 0, decode_ms = 0;
  double total_ms = 0;             // from the first submission to the last request's end
  double output_tokens_per_s = 0;  // all tokens delivered, over total_ms
  double read_gb_s = 0;            // with probe_read: what the machine granted just after this round
  int32_t decode_steps = 0;  // 0 where no step ran the whole batch: a list of uneven requests may do that
};

struct OfflineReport {
  OfflineOptions options;  // as run: capacity resolved
  OfflineRound median;     // each figure's own median
  std::vector<OfflineRound> rounds;
  int64_t kv_bytes_peak = 0;  // blocks that the batch held at its largest
  int64_t weight_bytes = 0;   // read by one decode step: every matrix once, in the checkpoint's dtype
  int64_t kv_bytes_per_token = 0;
  double uploaded_bytes = 0;  // a step, to a device with memory of its own
  double shared_read_tokens =
      0;  // that a step's attention did not read again, since other sequences of it had; mean over all steps
  int64_t cached_tokens = 0;           // prompt tokens of the last round that came from the prefix cache
  double open_ms = 0;                  // Engine::open: weights, cache, threads
  double start_to_first_token_ms = 0;  // from before open() to the first token of the round that warms up
  double host_us_per_step = 0;         // plan and commit, the engine's median
  double device_idle_us = 0;           // between steps, likewise; 0 without engine.time_device_idle
  std::string model, architecture, device, dtype, kv_dtype;
};

// Errors: what Engine::open and Engine::submit refuse, an option out of range, a request that failed, or a
// batch (not a list) so uneven that no step ran it whole (raise new_tokens).
Result<OfflineReport> run_offline(const OfflineOptions& options);
// Several workloads on one engine, opened as the first one says, with room for the largest. A report each;
// open_ms and start_to_first_token_ms are the first one's.
Result<std::vector<OfflineReport>> run_offline_all(const std::vector<OfflineOptions>& workloads);

// Workloads from a JSON array of objects: name, batch, n, prompt_tokens, new_tokens, shared_prefix_tokens,
// rounds, requests (a CSV file, relative to this one). What an object leaves out is as in `base`.
Result<std::vector<OfflineOptions>> read_workloads(const std::string& path, const OfflineOptions& base);

// One JSON object; the keys are a contract: prefill_tokens_per_s, decode_tokens_per_s, ms_per_decode_step,
// kv_bytes_peak, device, rounds, and what was measured beside them.
std::string to_json(const OfflineReport& report);
// A few lines for a person.
std::string to_text(const OfflineReport& report);

}  // namespace quire
