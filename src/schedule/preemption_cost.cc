#include "src/schedule/preemption_cost.h"

#include <algorithm>

namespace quire {

double swap_cost_us(const PreemptionCosts& costs, int64_t bytes) {
  return 2 * (costs.transfer_us + 1e6 * static_cast<double>(bytes) / costs.link_bytes_per_s);
}

void DiskRate::read_took(int64_t bytes, int64_t us) {
  constexpr double kWeight = 0.3;
  if (bytes <= 0) return;
  const double measured = std::max(0.0, static_cast<double>(us) - transfer_us_) / static_cast<double>(bytes);
  us_per_byte_ += kWeight * (measured - us_per_byte_);
}

void DiskRate::passed_over() {
  constexpr double kForgets = 0.05;
  us_per_byte_ += kForgets * (assumed_us_per_byte_ - us_per_byte_);
}

double recompute_cost_us(const PreemptionCosts& costs, int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  const double flops = n * costs.flops_per_token + n * n / 2 * costs.flops_per_token_pair;
  return costs.step_us + 1e6 * flops / costs.flops_per_s;
}

}  // namespace quire
