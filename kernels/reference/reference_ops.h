// The ops as plain loops with sums in float64: the truth that tests compare the other back ends with.
// Activations f32.
#pragma once

#include "kernels/kernels.h"

namespace quire::reference {

// Element i of a float tensor of any dtype.
double load(const void* data, DType dtype, int64_t i);
void store(void* data, DType dtype, int64_t i, double value);  // rounds to nearest even

void attention(const AttentionParams& p);

}  // namespace quire::reference
