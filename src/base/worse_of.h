// How tests and benchmarks join errors of a comparison, so that NaN is seen.
#pragma once

#include <cmath>

namespace quire {

// The larger of two errors. NaN is worse than all: std::max(error, NaN) is error, and what was never written would count as right.
inline double worse_of(double a, double b) {
  return std::isnan(a) || b <= a ? a : b;
}

}  // namespace quire
