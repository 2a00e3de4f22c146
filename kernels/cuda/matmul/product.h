// A matrix product as the back end's parts see it, whatever side they are compiled for.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/kernels.h"

namespace quire {

inline constexpr int64_t kWeightPad =
    64;  // a stored row is a multiple of this many elements; the rest are zeros
inline int64_t stored_row_elements(int64_t cols) {
  return (cols + kWeightPad - 1) / kWeightPad * kWeightPad;
}

// Rows of gate and up alternate in groups of so many where a weight is stored for gating: rows g and g + 8 of
// a 16-row tile are a pair.
inline constexpr int kGateGroup = 8;

// A weight in device memory: [rows][row_elements] of the activation type.
class StoredWeight final : public MatmulWeight {
 public:
  DeviceBuffer data;
  int64_t row_elements = 0;
};

// out[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]), and what the kernels for few rows do before and after it.
struct Product {
  const void* w = nullptr;      // [n][w_stride]
  int64_t w_stride = 0;         // elements, a multiple of kWeightPad
  const void* x = nullptr;      // [m][k]
  const float* bias = nullptr;  // [n] or null
  void* out = nullptr;          // [m][n], activation type or f32
  int32_t m = 0, n = 0, k = 0;
  bool out_f32 = false;

  const float* norm_weight = nullptr;  // [k] or null: x / rms(x) * norm_weight takes the place of x
  float norm_eps = 0;
  void* residual =
      nullptr;         // [m][n] activation type, or null: residual += the rounded product; out is not given
  bool gated = false;  // w alternates gate and up rows (kGateGroup): out[m][n / 2] = silu(gate) * up
};

// Products of one shape but for m, one for each weight that a step multiplies in turn; m: the most rows.
using ProductFamily = std::vector<Product>;

struct TuningResult {
  int shapes = 0;   // a family at a row count
  int timed = 0;    // before the time was spent
  int changed = 0;  // that are made another way than the library's first
  int64_t us = 0;
};

// A library that multiplies, opened at run time. The bias is not its business.
class GemmLibrary {
 public:
  virtual ~GemmLibrary() = default;
  // Times its ways to make these products of more than `least_rows` rows and keeps to the best. Before anything is captured; writes
  // over the products' outputs. The time is checked between runs.
  virtual TuningResult tune(std::span<const ProductFamily> families, int32_t least_rows,
                            int64_t budget_us) = 0;
  virtual bool takes(const Product& p) const = 0;
  virtual void run(const Product& p) = 0;  // on its device's stream; never synchronises
};

}  // namespace quire
