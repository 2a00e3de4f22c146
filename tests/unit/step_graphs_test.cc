// To what sizes steps are padded, and which of them are captured: a device that only counts stands in.
#include <gtest/gtest.h>

#include <new>

#include "src/execute/step_graphs.h"
#include "tests/unit/counting_device.h"

namespace quire {
namespace {

TEST(StepSizes, PadBounded) {
  for (int64_t n = 1; n <= 20000; ++n) {
    const int64_t tokens = token_bucket(n), sequences = sequence_bucket(n), rows = decode_bucket(n);
    ASSERT_GE(tokens, n);
    ASSERT_LT(tokens - n, n <= 256 ? 32 : (tokens + 4) / 5) << n;
    ASSERT_EQ(token_bucket(tokens), tokens);
    ASSERT_GE(sequences, n);
    ASSERT_TRUE(sequences == 8 || sequences < 4 * n) << n;
    ASSERT_GE(rows, n);
    ASSERT_EQ(decode_bucket(rows), rows);
    if (n > 32) {
      ASSERT_LE(5 * (rows - n), n <= 256 ? rows : 5 * 255) << n;
    }
  }
  EXPECT_EQ(token_bucket(257), 320);
  EXPECT_EQ(token_bucket(512), 512);
  EXPECT_EQ(token_bucket(513), 640);
}

class StepGraphsTest : public testing::Test {
 protected:
  void step(StepGraphs& graphs, int64_t rows) {
    graphs.run({.rows = rows}, turn_, [this] { ++worked_; });
    turn_ = 1 - turn_;
  }
  CountingDevice device_;
  int turn_ = 0, worked_ = 0;
};

TEST_F(StepGraphsTest, ShapesAreCapturedWhenTheyComeAgainOnceATurn) {
  StepGraphs graphs(device_, {});
  step(graphs, 4);
  EXPECT_EQ(device_.captures, 0);
  for (int i = 0; i < 6; ++i) step(graphs, 4);
  EXPECT_EQ(device_.captures, 2);
  EXPECT_EQ(device_.runs, 6);
  EXPECT_EQ(worked_, 3);  // as it is, and into two captures
  EXPECT_EQ(graphs.num_runs(), 6);
  step(graphs, 5);  // another shape
  EXPECT_EQ(device_.runs, 6);
}

TEST_F(StepGraphsTest, AStepWithoutHostMemoryLeavesNoCaptureOpen) {
  StepGraphs graphs(device_, {});
  step(graphs, 4);
  EXPECT_THROW(graphs.run({.rows = 4}, turn_, [] { throw std::bad_alloc(); }), std::bad_alloc);
  EXPECT_FALSE(device_.capturing) << "who catches it waits for the device";
  EXPECT_EQ(device_.runs, 0) << "half a step";
  step(graphs, 4);
  EXPECT_EQ(device_.runs, 1);
}

TEST_F(StepGraphsTest, MoreShapesThanThereMayBeRunUncapturedUntilOneIsLongUnused) {
  StepGraphs graphs(device_, {.num_shapes = 2});
  for (int i = 0; i < 4; ++i) step(graphs, 1), step(graphs, 1), step(graphs, 2), step(graphs, 2);
  EXPECT_EQ(device_.captures, 4);
  for (int i = 0; i < 6; ++i) step(graphs, 3);
  EXPECT_EQ(device_.captures, 4);
  for (int i = 0; i < 1000; ++i) step(graphs, 2);
  for (int i = 0; i < 6; ++i) step(graphs, 3);  // in the place of 1
  EXPECT_EQ(device_.captures, 6);
  for (int i = 0; i < 6; ++i) step(graphs, 1);
  EXPECT_EQ(device_.captures, 6);
}

TEST_F(StepGraphsTest, MemoryBoundsThem) {
  device_.graph_bytes = 40;
  StepGraphs graphs(device_, {.num_shapes = 100, .bytes = 100});
  for (int64_t rows = 1; rows < 6; ++rows)
    for (int i = 0; i < 6; ++i) step(graphs, rows);
  EXPECT_EQ(device_.captures, 3);  // the third passed the limit
  EXPECT_EQ(graphs.bytes(), 120);
}

}  // namespace
}  // namespace quire
