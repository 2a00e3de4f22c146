// Host time to find the shared prefixes of a decode step (src/execute/prefix_groups), as the executor thread spends it: 256 sequences
// that share their first blocks and have 16 of their own, at every step as many replaced as are asked for.
//   prefix_groups_bench [--sequences N] [--shared-blocks N] [--replaced N] [--steps N]
// Prints microseconds a step: median, p99; and of the first step, where all come at once.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/bench_flags.h"
#include "src/base/check.h"
#include "src/execute/prefix_groups.h"

namespace quire {
namespace {

constexpr int32_t kBlockTokens = 16, kOwnBlocks = 16;

struct Options {
  int32_t sequences = 256, shared_blocks = 2048, replaced = 0, steps = 2000;
};

Options parse(int argc, char** argv) {
  Options o;
  read_bench_flags(argc, argv,
                   "Host time to find the shared prefixes of a decode step: microseconds, median and p99.",
                   {{"--sequences", &o.sequences, 1, "in the step"},
                    {"--shared-blocks", &o.shared_blocks, 0, "that all begin with"},
                    {"--replaced", &o.replaced, 0, "sequences a step"},
                    {"--steps", &o.steps, 1, "timed"}});
  return o;
}

class Batch {
 public:
  explicit Batch(const Options& o) : options_(o) {
    for (int32_t i = 0; i < o.sequences; ++i) plan_.sequences.push_back(next());
  }
  const BatchPlan& plan() const { return plan_; }
  void advance(int32_t step) {
    for (PlannedSequence& s : plan_.sequences)
      s.num_unchanged_blocks = static_cast<int32_t>(s.block_table.size());
    for (int32_t i = 0; i < options_.replaced; ++i)
      plan_.sequences[static_cast<size_t>((step * 7 + i * 31) % options_.sequences)] = next();
  }

 private:
  PlannedSequence next() {
    PlannedSequence s{.sequence = SequenceId{next_id_++}, .tokens = {kSampledLastStep}};
    for (int32_t b = 0; b < options_.shared_blocks; ++b) s.block_table.push_back(BlockId{b});
    for (int32_t b = 0; b < kOwnBlocks; ++b) s.block_table.push_back(BlockId{next_block_++});
    s.first_position = s.list_length_before = (options_.shared_blocks + kOwnBlocks - 1) * kBlockTokens + 3;
    return s;
  }

  Options options_;
  BatchPlan plan_;
  uint64_t next_id_ = 1;
  int32_t next_block_ = 1 << 20;
};

double us_of(PrefixGroups& groups, const BatchPlan& plan) {
  const auto start = std::chrono::steady_clock::now();
  groups.follow(plan);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void run(const Options& o) {
  PrefixGroups groups({.block_tokens = kBlockTokens, .token_bytes = 4096});
  Batch batch(o);
  const double first = us_of(groups, batch.plan());
  std::vector<double> us;
  for (int32_t step = 0; step < o.steps; ++step) {
    batch.advance(step);
    us.push_back(us_of(groups, batch.plan()));
  }
  std::sort(us.begin(), us.end());
  fmt::print(
      "{} sequences on {} shared blocks, {} replaced a step: median {:.2f} us, p99 {:.2f} us, first {:.1f} "
      "us, nodes {}\n",
      o.sequences, o.shared_blocks, o.replaced, us[us.size() / 2], us[us.size() * 99 / 100], first,
      groups.counts().num_nodes);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::run(quire::parse(argc, argv));
  return 0;
}
