// One engine from start to drained: a workload, faults, and the checks that need the whole request (tokens,
// ends).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "benchmarks/sim/setup.h"
#include "benchmarks/sim/workload.h"
#include "src/base/clock.h"

namespace quire {

// Chances per step.
struct FaultRates {
  double cancel = 0, pause = 0, stop = 0, step_error = 0, clock_jump = 0;
};
inline constexpr FaultRates kNoFaults{};
inline constexpr FaultRates kAllFaults{
    .cancel = 0.02, .pause = 0.02, .stop = 0.01, .step_error = 0.001, .clock_jump = 0.001};

struct Samples {
  std::vector<float> ttft_ms, tpot_ms;
  double waste_sum = 0;
  int64_t waste_count = 0, output_tokens = 0, prompt_tokens = 0, cached_tokens = 0;
  int64_t running_sum = 0;  // over steps
};

class Episode {
 public:
  Episode(const SimSetup& setup, std::unique_ptr<Workload> workload, const FaultRates& rates, uint64_t seed);

  // One step of the engine, with what arrives and fails before it. False: nothing will ever happen again.
  bool step();
  void drain();  // no more arrivals or faults; every request ends
  bool broken() const { return !violations_.empty(); }
  void add_to(SimReport& report, Samples& samples) const;

 private:
  struct Live {
    std::vector<TokenId>
        prompt;  // kept for greedy requests of one sequence, whose tokens are known beforehand
    std::vector<TokenId> tokens;
    int32_t num_sequences = 0, num_ends = 0, num_tokens = 0;
    int64_t arrival_us = 0, first_us = -1, last_us = -1;
    bool paused = false, stopped = false, checked = false;
  };
  void arrive();
  void submit(CoreRequest request);
  void inject();
  RequestId any_live();
  void take_outcome();
  Live* find(RequestId id) { return id < live_.size() ? live_[id].get() : nullptr; }
  void take_token(const TokenOutput& token);
  void end_request(const RequestEnd& end);
  void violate(std::string what);
  bool advance_to_next_event();

  ManualClock clock_;
  FakeExecutor executor_;
  std::unique_ptr<EngineCore> core_;
  std::unique_ptr<Workload> workload_;
  FaultRates rates_;
  Random random_;
  std::vector<std::unique_ptr<Live>> live_;  // by id
  int64_t num_live_ = 0;
  Outcome outcome_;
  std::vector<RequestId> ids_;  // of live_, for drawing
  RequestId next_id_ = 1;
  int64_t submitted_ = 0, refused_ = 0, faults_ = 0, leaked_ = 0;
  Samples samples_;
  std::vector<std::string> violations_;
};

}  // namespace quire
