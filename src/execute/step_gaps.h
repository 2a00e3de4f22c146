// How long the device stands idle between two steps: timed events at each step's begin and end. They cost it some 2.4 us a step
// themselves, so that what they say is an upper bound. Only where config.time_device_idle asks. Executor thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "src/device/stream_device.h"

namespace quire {

class StepGaps {
 public:
  // Afterwards begin() and end() record.
  void enable(StreamDevice& device) {
    for (Step& step : steps_) step = {device.make_event(), device.make_event()};
  }
  // Around all that a step queues; the number of the step, to be given to idle_us().
  int64_t begin() {
    if (enabled()) at(next_).begin->record();
    return next_;
  }
  void end() {
    if (enabled()) at(next_++).end->record();
  }
  // Microseconds from the end of the step before to the begin of this one, which has run; none before the first, and not measured.
  std::optional<double> idle_us(int64_t step) const {
    if (!enabled() || step == 0) return std::nullopt;
    return at(step).begin->ms_since(*at(step - 1).end) * 1e3;
  }

 private:
  struct Step {
    std::unique_ptr<StreamEvent> begin, end;
  };
  // When a step is finished the next may be queued, and no more: the events of four are more than enough.
  static constexpr int64_t kSteps = 4;
  bool enabled() const { return steps_[0].begin != nullptr; }
  Step& at(int64_t step) { return steps_[step % kSteps]; }
  const Step& at(int64_t step) const { return steps_[step % kSteps]; }

  Step steps_[kSteps];
  int64_t next_ = 0;
};

}  // namespace quire
