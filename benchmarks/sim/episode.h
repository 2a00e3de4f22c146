// One engine from start to drained: a workload, faults, and the checks that need the whole request (tokens,
// ends).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/sim/oracle.h"
#include "benchmarks/sim/script.h"
#include "benchmarks/sim/workload.h"
#include "src/base/clock.h"

namespace quire {

// Chances per step.
struct FaultRates {
  double cancel = 0, pause = 0, stop = 0, executor_error = 0, copy_error = 0, copy_delay = 0, no_room = 0,
         clock_jump = 0, transfer_error = 0, transfer_delay = 0, disk_corrupt = 0, disk_hang = 0,
         sequence_error = 0;
  bool operator==(const FaultRates&) const = default;
};
inline constexpr FaultRates kNoFaults{};
inline constexpr FaultRates kAllFaults{.cancel = 0.02,
                                       .pause = 0.02,
                                       .stop = 0.01,
                                       .executor_error = 0.001,
                                       .copy_error = 0.0005,
                                       .copy_delay = 0.002,
                                       .no_room = 0.002,
                                       .clock_jump = 0.001,
                                       .transfer_error = 0.001,
                                       .transfer_delay = 0.002,
                                       .disk_corrupt = 0.002,
                                       .disk_hang = 0.0005,
                                       .sequence_error = 0.001};
// Of an episode: a third has all kinds at these rates. The others have some kinds and not the rest, a few of them so often that two come
// together which at even rates hardly ever do (swarm testing: Groce et al. 2012).
FaultRates draw_faults(uint64_t seed);

struct Samples {
  std::vector<float> ttft_ms, tpot_ms;
  double waste_sum = 0;
  int64_t waste_count = 0, output_tokens = 0, prompt_tokens = 0, cached_tokens = 0;
  int64_t running_sum = 0;  // over steps
  int64_t finished = 0, within_slo = 0;
  double fairness_max_gap = 0, dearest_request = 0;
};

// Where a request is; in the order of SimFault's cancels.
enum class RequestStage : uint8_t {
  kWaiting,
  kParked,
  kPrefill,
  kDecode,
  kPreempted,
  kCopying,
  kPaused,
  kEnded
};
inline constexpr uint64_t kNumRequestStages = 8;

class Episode {
 public:
  // What happens is drawn from workload, rates and seed...
  Episode(const SimSetup& setup, std::unique_ptr<Workload> workload, const FaultRates& rates, uint64_t seed);
  // ... or stands in a script.
  explicit Episode(const SimScript& script);

  // One step of the engine, with what arrives and fails before it. False: nothing will ever happen again.
  bool step();
  void drain();  // no more arrivals or faults; every request ends
  bool broken() const { return !violations_.empty(); }
  const std::vector<std::string>& violations() const { return violations_; }
  int64_t num_ticks() const { return tick_; }
  int64_t num_steps() const { return core_->scheduler().counters().steps; }
  int64_t num_submitted() const { return submitted_; }
  double now_s() const { return static_cast<double>(clock_.now_us()) * 1e-6; }
  void fill_stats(EngineStats& stats) const { core_->fill_stats(stats); }
  void add_to(SimReport& report, Samples& samples) const;

  // Evicts what will be asked for last, for --eviction oracle. Requests must be those of the trace, in its
  // order.
  void foresee(std::shared_ptr<const NextUses> uses);
  // Keeps what happens as a script. It costs a copy of each prompt, so a run that fails is played again for
  // it.
  void record() { recording_ = true; }
  void set_slo(double ttft_ms, double tpot_ms) { slo_ttft_ms_ = ttft_ms, slo_tpot_ms_ = tpot_ms; }
  std::vector<SimEvent> take_events() { return std::move(events_); }

 private:
  struct Live {
    std::vector<TokenId>
        prompt;  // kept for greedy requests of one sequence, whose tokens are known beforehand
    std::vector<TokenId> tokens;
    int32_t num_sequences = 0, num_ends = 0, num_tokens = 0;
    int64_t arrival_us = 0, first_us = -1, last_us = -1;
    bool paused = false, checked = false, is_beam = false;
  };
  explicit Episode(const SimSetup& setup, uint64_t seed);
  void play_script();
  void arrive();
  void inject();
  void inject_on_live();
  void aim();
  bool comes(double rate);      // a fault, in this step
  void happen(SimEvent event);  // and is recorded
  void apply(const SimEvent& event);
  void submit(CoreRequest request);
  RequestId any_live();
  RequestId any_at(RequestStage stage);
  RequestStage stage_of(RequestId id) const;
  void fail_a_sequence(int64_t after, RequestId of);
  void count(SimFault fault) { ++faults_[static_cast<size_t>(fault)]; }
  void take_outcome();
  Live* find(RequestId id) { return id < live_.size() ? live_[id].get() : nullptr; }
  void take_token(const TokenOutput& token);
  void end_request(const RequestEnd& end);
  void take_latency(const Live& live);
  void expect_a_reason_to_fail(const SequenceEnd& end);
  void sample_state();
  void violate(std::string what);
  bool advance_to_next_event();

  ManualClock clock_;
  FakeExecutor executor_;
  FakeMover mover_;
  std::unique_ptr<EngineCore> core_;
  std::unique_ptr<Workload> workload_;  // none: the script tells
  const SimScript* script_ = nullptr;
  size_t next_event_ = 0;  // of the script
  FaultRates rates_;
  Random random_;
  // A burst: for a few steps faults are frequent, and half of those that concern one request concern this one.
  int32_t burst_steps_left_ = 0;
  RequestId aim_ = 0;
  bool one_came_ = false;  // in this step
  bool recording_ = false;
  std::vector<SimEvent> events_;
  int64_t tick_ = 0, ticks_still_ = 0;
  bool executor_error_ = false, no_room_ = false;  // armed
  bool found_no_room_ = false;                     // an allocation failed in this step
  FakeExecutor::CopyFault copy_fault_;
  FakeMover::Fault transfer_fault_;
  bool disk_corrupt_ = false;
  int64_t disk_hang_us_ = 0;
  int64_t sequences_to_error_ = -1;          // that are still to run before one fails alone; -1: none does
  RequestId request_to_error_ = 0;           // of which they are; 0: of any
  std::vector<std::unique_ptr<Live>> live_;  // by id
  int64_t num_live_ = 0;
  Outcome outcome_;
  std::vector<RequestId> ids_;  // of live_, for drawing
  RequestId next_id_ = 1;
  int64_t submitted_ = 0, refused_ = 0, leaked_ = 0;
  std::optional<int64_t> steps_loaded_;  // once it drains
  FaultCounts faults_{};
  Samples samples_;
  double slo_ttft_ms_ = 0, slo_tpot_ms_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace quire
