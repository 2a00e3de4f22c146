// The idle time between steps, on events of a clock that is moved by hand.
#include <gtest/gtest.h>

#include "src/base/clock.h"
#include "src/execute/step_gaps.h"
#include "tests/unit/counting_device.h"

namespace quire {
namespace {

class StepGapsTest : public testing::Test {
 protected:
  StepGapsTest() { device_.event_clock = &clock_; }
  int64_t step_of(int64_t us) {
    const int64_t step = gaps_.begin();
    clock_.advance_us(us);
    gaps_.end();
    return step;
  }
  ManualClock clock_;
  CountingDevice device_;
  StepGaps gaps_;
};

TEST_F(StepGapsTest, AreFromEndToBeginWhileTheNextStepIsQueued) {
  gaps_.enable(device_);
  EXPECT_FALSE(gaps_.idle_us(step_of(100))) << "nothing stands before the first";
  for (int64_t gap = 1; gap <= 10; ++gap) {
    clock_.advance_us(gap);
    const int64_t step = step_of(100);
    clock_.advance_us(gap + 1);
    const int64_t queued = step_of(100);  // before this one is finished
    EXPECT_NEAR(gaps_.idle_us(step).value_or(-1), static_cast<double>(gap), 1e-6);
    EXPECT_NEAR(gaps_.idle_us(queued).value_or(-1), static_cast<double>(gap + 1), 1e-6);
  }
}

TEST_F(StepGapsTest, AreNotTimedUnasked) {
  step_of(100);
  EXPECT_FALSE(gaps_.idle_us(step_of(100)));
}

}  // namespace
}  // namespace quire
