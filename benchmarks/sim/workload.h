// Who asks for what, and when: drawn from a seed, or replayed from a trace.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "benchmarks/sim/sim.h"
#include "benchmarks/traces/trace.h"
#include "src/base/random.h"
#include "src/engine/engine_core.h"

namespace quire {

class Workload {
 public:
  virtual ~Workload() = default;
  // The next request if it has arrived by now_us; num_live: requests in the engine.
  virtual std::optional<CoreRequest> next(int64_t now_us, int64_t num_live) = 0;
  virtual std::optional<int64_t> next_arrival_us()
      const = 0;  // nothing: no more will come (or only once others have ended)
  virtual bool exhausted() const = 0;
};

// A cache, for requests that just fit into it.
struct CacheRoom {
  int64_t blocks = 0;
  int32_t block_tokens = 16, max_chunk_tokens = 0, max_context_tokens = 0;
};

// Shares of the requests of a random load.
struct LoadMix {
  double samples = 0.12, best_of = 0.05, beams = 0.02;
  double policy = 0.1;  // under a KV policy; of these:
  double scores = 0.5;  // go by scores, the rest are windows
  double policy_samples =
      0.3;           // of one sample become several: each cuts the prompt that they share for itself
  double fills = 0;  // have a bound of all of `room`, or of a few blocks less
  CacheRoom room;
};
// Requests of several sequences, many of them under policies that go by scores.
inline constexpr LoadMix kGroupLoad{
    .samples = 0.45, .best_of = 0.15, .beams = 0.08, .policy = 0.4, .scores = 0.8, .policy_samples = 0.6};

// Crowds of up to twice max_sequences requests and lulls with few or none, redrawn every few hundred steps:
// shared prefixes, samples, beams and twins of them, deadlines, tenants, priorities.
std::unique_ptr<Workload> make_random_workload(uint64_t seed, int32_t max_sequences, int32_t vocab_size,
                                               bool deadlines, const LoadMix& mix);
std::unique_ptr<Workload> make_trace_workload(Trace trace, double speed, int32_t vocab_size);

}  // namespace quire
