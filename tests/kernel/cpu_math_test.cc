// exp of the CPU kernels against float64, over its whole range: every 61st float below zero and above, the borders, and what is no number.
// For the levels with a fused multiply-add (avx2's lanes here; the wider ones do the same operations). Compiled as isa_avx2.cc is.
#include <gtest/gtest.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/cpu/element.h"
#include "src/device/cpu_features.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {
namespace {

void exp_of_sixteen(float* x) {
  Avx2Vec::store(x, exp<Avx2Vec>(Avx2Vec::load(x)));
}

}  // namespace
}  // namespace quire::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quire::cpu {
namespace {

// In units in the last place of the float nearest to the true value.
double error_of(float got, float x) {
  const double wanted = std::exp(static_cast<double>(x));
  const auto nearest = static_cast<float>(wanted);
  const double unit =
      std::nextafter(nearest, std::numeric_limits<float>::max()) - static_cast<double>(nearest);
  return std::abs(got - wanted) / unit;
}

TEST(CpuMath, ExpIsWithinOneAndAHalfUnitsInTheLastPlace) {
  if (machine_isa() < CpuIsa::kAvx2) GTEST_SKIP() << "no fused multiply-add on this machine";
  const uint32_t last_below = std::bit_cast<uint32_t>(kExpLowest),
                 last_above = std::bit_cast<uint32_t>(kExpHighest);
  double worst = 0;
  float worst_at = 0;
  const auto check_from = [&](uint32_t first, uint32_t last) {
    for (uint32_t at = first; at <= last; at += 61 * 16) {
      float x[16], y[16];
      for (uint32_t i = 0; i < 16; ++i) x[i] = y[i] = std::bit_cast<float>(std::min(at + 61 * i, last));
      exp_of_sixteen(y);
      for (int i = 0; i < 16; ++i)
        if (const double e = error_of(y[i], x[i]); !std::isnan(worst) && !(e <= worst))
          worst = e, worst_at = x[i];
    }
  };
  check_from(std::bit_cast<uint32_t>(-1e-30f), last_below);
  check_from(std::bit_cast<uint32_t>(1e-30f), last_above);
  RecordProperty("worst_units", std::to_string(worst));
  EXPECT_LE(worst, 1.5) << "at " << worst_at;
}

TEST(CpuMath, ExpOfWhatLiesBeyondItsRangeIsZeroOrInfinityAndOfNoNumberNone) {
  if (machine_isa() < CpuIsa::kAvx2) GTEST_SKIP() << "no fused multiply-add on this machine";
  const float infinity = std::numeric_limits<float>::infinity(),
              nan = std::numeric_limits<float>::quiet_NaN();
  float x[16] = {0, -0.0f, -87, -1e30f, -infinity, 89, 1e30f, infinity, nan, 1, -1, 0, 0, 0, 0, 0};
  exp_of_sixteen(x);
  EXPECT_EQ(x[0], 1);
  EXPECT_EQ(x[1], 1);
  for (const int below : {2, 3, 4}) EXPECT_EQ(x[below], 0) << below;
  for (const int above : {5, 6, 7}) EXPECT_EQ(x[above], infinity) << above;
  EXPECT_TRUE(std::isnan(x[8]));
}

}  // namespace
}  // namespace quire::cpu
