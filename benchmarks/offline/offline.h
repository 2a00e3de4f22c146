// `quire bench offline`: the engine without a wire. `batch` requests of random ids enter at once, greedy,
// with no stops, and every round is timed by the events that the engine delivers. Works from a config.json
// alone with random weights.
//
// A round has two parts. Prefill: from the first submission until every request has its first token. Decode:
// from there until the first request ends, so that every counted step ran the whole batch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/config.h"
#include "quire/result.h"

namespace quire {

struct OfflineOptions {
  EngineConfig engine;          // 0 fields that bear on capacity are set so that the batch runs at once
  int32_t batch = 1;            // requests of a round
  int32_t prompt_tokens = 512;  // of each
  int32_t new_tokens = 64;      // of each; at least 2
  int32_t rounds = 3;           // timed; one more before them warms up and is not reported
  uint64_t seed = 0;            // of the prompts; no two requests share a prefix
};

struct OfflineRound {
  double prefill_tokens_per_s = 0;  // prompt tokens of the batch over the prefill part
  double decode_tokens_per_s = 0;   // tokens delivered in the decode part over its length
  double ms_per_decode_step = 0;
  double prefill_ms = 0, decode_ms = 0;
  int32_t decode_steps = 0;
};

struct OfflineReport {
  OfflineOptions options;  // as run: capacity resolved
  OfflineRound median;     // each figure's own median
  std::vector<OfflineRound> rounds;
  int64_t kv_bytes_peak = 0;  // blocks that the batch held at its largest
  int64_t weight_bytes = 0;   // read by one decode step: every matrix once, in the checkpoint's dtype
  std::string model, architecture, device, dtype, kv_dtype;
};

// Errors: what Engine::open and Engine::submit refuse, an option out of range, a request that failed, or a
// batch so uneven that no step ran it whole (raise new_tokens).
Result<OfflineReport> run_offline(const OfflineOptions& options);

// One JSON object; the keys are a contract: prefill_tokens_per_s, decode_tokens_per_s, ms_per_decode_step,
// kv_bytes_peak, device, rounds, and what was measured beside them.
std::string to_json(const OfflineReport& report);
// A few lines for a person.
std::string to_text(const OfflineReport& report);

}  // namespace quire
