// Sampling on a device: which sequences can be sampled there, what of them lies in its memory, and a step's kernels for it.
//
// A sequence whose parameters change its logits (penalties, n-grams, bias, allowed ids, bad words, min_tokens) has a slot there: its tokens so
// far, to which each step adds the one that it runs, and its lists. So a token sampled in one step counts in the next one, which is
// queued before the host has seen it. The host sampler has what remains: typical_p, beams, prompt logprobs, lists longer than a
// slot, and sequences that found no slot free. It follows the others' tokens, for steps that it must do as a whole. Executor thread.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"
#include "quire/result.h"
#include "src/device/stream_device.h"
#include "src/execute/host_step.h"
#include "src/execute/step_result.h"
#include "src/sample/sampler.h"

namespace quire {

struct DeviceSamplingSizes {
  int32_t max_samples = 0;
  int32_t vocab = 0;
  int32_t max_context_tokens = 0;
};

// A step's arrays, on the host.
struct SamplingArrays {
  std::span<const SampleSettings> settings;  // [samples]
  std::span<const LogitEdit> edits;
  std::span<const LogprobReport> reports;
  std::span<const int64_t> history_at;  // [rows], or none where no row belongs to a slot
};

// The same on the device, filled up to `counts`.
struct PlacedSampling {
  const SampleSettings* settings = nullptr;
  const LogitEdit* edits = nullptr;
  const LogprobReport* reports = nullptr;
  int32_t num_samples = 0, num_edits = 0, num_reports = 0;
};

// Whose token comes back, and what with it.
struct DeviceSample {
  SequenceId sequence{};
  int32_t report = -1;  // its likeliest tokens are that report's
  int32_t num_top = 0;
  bool followed = false;  // by the host sampler
};

class DeviceSampling {
 public:
  DeviceSampling(StreamDevice& device, Kernels& kernels, const DeviceSamplingSizes& sizes);
  // Device memory that allocate() takes.
  static int64_t device_bytes(const DeviceSamplingSizes& sizes, int64_t sample_space_bytes);
  Status allocate();

  // Before the joins of a step that will be queued in this turn; what was queued in it before has ended.
  void begin_turn(int turn);
  void join(const PlannedJoin& join);
  void leave(SequenceId sequence);

  // Where each row that runs is kept: history_at of arrays().
  void note_rows(const BatchPlan& plan, const StepArrays& rows);
  // False: the host samples the step. Else the step's samples are in arrays() and `samples`.
  bool collect(const BatchPlan& plan, const HostStep& step, std::vector<DeviceSample>& samples);
  SamplingArrays arrays() const { return {settings_, edits_, reports_, history_at_}; }

  // Where the token sampled last for a sequence is: an index among the device's tokens of the step before; -1: with the host sampler.
  int32_t last_index(SequenceId sequence) const;
  void sampled_on_host(SequenceId sequence);

  // Fills in what the ids of a step are taken from, and the histories that they go to.
  void give(TakeSampledParams& ids) const;
  void run(const PlacedSampling& step, const float* logits, int turn);

  // What came back in a turn that has ended.
  SampledToken result(const std::vector<DeviceSample>& samples, size_t i, int turn) const;
  // Appends the step's tokens to the host sampler's histories, once.
  void follow(std::vector<DeviceSample>& samples, int turn, Sampler& sampler) const;

 private:
  struct Sequence {
    std::shared_ptr<const SamplingParams> sampling;
    uint64_t seed = 0;
    int32_t num_prompt_tokens = 0;
    int32_t last_index = -1;
    bool on_device = false;
    bool always_edited = false;
    int32_t slot = -1;
    LogitEdit edit;  // what is the same in every step
  };
  struct Turn {
    DeviceBuffer back;     // pinned: what Back points to
    DeviceBuffer staging;  // pinned: histories and lists on their way to a slot
    int64_t staged_bytes = 0;
  };

  // What the kernels write for the host, in its own memory: a copy of it would be one kernel more at a step's end.
  struct Back {
    int32_t* tokens;   // [max_samples]
    float* logprobs;   // [max_samples]
    TopLogprobs* top;  // [max_samples]
  };
  Back back_of(int turn) const;

  const Sequence& sequence(SequenceId id) const;
  bool takes(const PlannedSample& sample) const;
  void add(const PlannedSample& sample, int32_t logits_row, std::vector<DeviceSample>& samples);
  bool place_lists(const PlannedJoin& join, Sequence& s);
  void upload(int64_t at, std::span<const int32_t> ints);

  StreamDevice& device_;
  Kernels& kernels_;
  DeviceSamplingSizes sizes_;
  int64_t history_ints_ = 0, slot_ints_ = 0;
  int32_t edited_rows_ = 0;
  std::vector<int32_t> free_slots_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  DeviceBuffer space_, sampled_, edited_, slots_;
  Turn turns_[2];
  int turn_ = 0;
  std::vector<SampleSettings> settings_;
  std::vector<LogitEdit> edits_;
  std::vector<LogprobReport> reports_;
  std::vector<int64_t> history_at_;
  std::vector<int32_t> lists_;  // of a join
};

}  // namespace quire
