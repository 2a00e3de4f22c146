#include "src/schedule/preemption_cost.h"

namespace quire {

double swap_cost_us(const PreemptionCosts& costs, int64_t bytes) {
  return 2 * (costs.transfer_us + 1e6 * static_cast<double>(bytes) / costs.link_bytes_per_s);
}

double recompute_cost_us(const PreemptionCosts& costs, int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  const double flops = n * costs.flops_per_token + n * n / 2 * costs.flops_per_token_pair;
  return costs.step_us + 1e6 * flops / costs.flops_per_s;
}

}  // namespace quire
