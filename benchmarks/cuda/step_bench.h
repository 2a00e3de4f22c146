// The ops of a step beside attention, timed through the seam of kernels/kernels.h and checked in float64.
// Each part adds its lines to the report; `tiny` are small shapes for the host shim.
#pragma once

#include <span>

#include "benchmarks/cuda/rig.h"

namespace quire::bench {

// The products of a Llama-3.1-8B step.
struct ProductShape {
  const char* name;
  int64_t n, k;
  int64_t elements() const { return n * k; }
};
std::span<const ProductShape> layer_products(bool tiny);
const ProductShape& head_product(bool tiny);
inline constexpr int kModelLayers = 32;

void bench_matmul_ceiling(Rig& rig, Report& report,
                          bool tiny);                    // the largest product: sets the rig's ceiling
void bench_matmul(Rig& rig, Report& report, bool tiny);  // all products of a Llama-3.1-8B step, by rows
// A layer but for attention, by rows; the lines of these names, or all.
void bench_layer(Rig& rig, Report& report, bool tiny, const std::vector<std::string>& only);
// The products of one row with their weights in `placements` places.
void bench_placement(Rig& rig, Report& report, bool tiny, int placements);
void bench_rows(Rig& rig, Report& report, bool tiny);      // norm, rope + KV write, SiLU, block copies
void bench_sampling(Rig& rig, Report& report, bool tiny);  // 256 rows of 128k logits

// Random bf16 numbers in host memory, uniform in [-scale, scale).
std::vector<uint16_t> random_host(int64_t count, uint64_t seed, float scale);
std::vector<double> as_doubles(const std::vector<uint16_t>& bf16);

}  // namespace quire::bench
