// What it costs to take a sequence's blocks away and give them back, by each means: pure functions of a few
// rates, a model and no measurement, so that the choice can be told beforehand and tested. DiskRate alone is
// measured: a disk's speed is not known beforehand.
#pragma once

#include <cstdint>

namespace quire {

enum class PreemptionMode : uint8_t { kAuto, kSwap, kRecompute };  // kAuto: the cheaper

struct PreemptionCosts {
  double link_bytes_per_s = 20e9;  // between device and host memory, one direction at a time
  double transfer_us = 20;         // of one transfer beside its bytes
  // Read, until it has been measured. An NVMe drive's: high rather than low, since what is never read is never
  // measured.
  double disk_bytes_per_s = 3e9;
  double flops_per_s = 3e14;  // that a prefill reaches
  double flops_per_token = 1.6e10;
  double flops_per_token_pair = 5.2e5;  // attention: of a token with one before it; 4 x layers x query width
  double step_us = 50;                  // of one prefill beside its FLOPs
  int32_t least_chunk_tokens = 512;     // fewer take a step as long, since it reads all weights
};

// Out and back: both directions, both transfers.
double swap_cost_us(const PreemptionCosts& costs, int64_t bytes);
// One way from the disk at the rate that was measured last.
class DiskRate {
 public:
  explicit DiskRate(const PreemptionCosts& costs)
      : assumed_us_per_byte_(1e6 / costs.disk_bytes_per_s),
        us_per_byte_(assumed_us_per_byte_),
        transfer_us_(costs.transfer_us) {}
  double read_us(int64_t bytes) const { return transfer_us_ + us_per_byte_ * static_cast<double>(bytes); }
  void read_took(int64_t bytes, int64_t us);
  // A hit was left for being too slow: the measurement loses weight, so that the disk is tried again.
  void passed_over();

 private:
  double assumed_us_per_byte_, us_per_byte_, transfer_us_;
};
// Prompt and output so far run again as one prompt of `tokens`.
double recompute_cost_us(const PreemptionCosts& costs, int64_t tokens);

}  // namespace quire
