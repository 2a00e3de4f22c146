// The likeliest tokens of a row and the log-sum-exp of it, without sorting the row: two reads. The first leaves each thread's highest
// logit, of which the n-th highest bounds the row's n likeliest from below; the second sums, and collects what reaches the bound, some
// n + 10. Rows with too many equal logits for that are cut digit by digit (sampling_settle.h).
#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_candidates.h"
#include "kernels/cuda/sampling_settle.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kScratchFloats = kSampleWarps + kQuads * kSampleWarps + kSampleThreads;
constexpr int kReportBytes = kScratchFloats * 4 + std::max(kSettleBytes, kMaxCandidates * 8);

// Natural log of a logit's probability; an infinite one has all of it.
__device__ inline float logprob_of(float x, float highest, float sum) {
  if (!(x > kMasked)) return kMasked;
  return sum > 0.0f ? x - highest - log2_approx(sum) * kLn2 : 0.0f;
}

struct Reach {
  float sum;  // of exp(x - highest)
  int count;  // of the logits at or above the bound; those past kMaxCandidates are not collected
};
__device__ inline Reach collect(const Row& row, float bound, Shared<uint64_t> found, Shared<int32_t> count,
                                Shared<float> scratch) {
  if (threadIdx.x == 0) count[0] = 0;
  sync_threads();
  float sum = 0;
  for (int i = 0; i < row.parts; ++i)
    row.part(i).for_each([&](int32_t id, float x) {
      sum += exp_below(x - row.sums.highest);
      if (x < bound) return;
      const int at = atomic_add(count, 1);
      if (at < kMaxCandidates) found[at] = CandidateDraw::packed(x, id);
    });
  sum = block_sum(sum, scratch);
  return {sum, static_cast<int>(count[0])};
}

// The n likeliest, in any order; returns how many there are.
__device__ inline int collect_cut(const Row& row, int n, Shared<uint64_t> found, Shared<int32_t> count,
                                  Shared<float> scratch) {
  const Cut cut = Settle(row, found.as<char>(), scratch).likeliest(n);
  sync_threads();  // the histogram lay where they come to
  if (threadIdx.x == 0) count[0] = 0;
  sync_threads();
  for (int i = 0; i < row.parts; ++i)
    row.part(i).for_each([&](int32_t id, float x) {
      if (!cut.keeps(x, id)) return;
      const int at = atomic_add(count, 1);
      if (at < kMaxCandidates) found[at] = CandidateDraw::packed(x, id);
    });
  sync_threads();
  return min(static_cast<int>(count[0]), kMaxCandidates);
}

// grid (reports)
__global__ void __launch_bounds__(kSampleThreads, 2) report_rows(ReportLogprobsParams p, int parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int at = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const LogprobReport report = load(p.reports + at);
  if (report.sample < 0) return;  // all of the block
  const Shared<float> scratch = dynamic_shared<float>(), maxima = scratch + (kScratchFloats - kSampleThreads);
  const Shared<uint64_t> found = (scratch + kScratchFloats).as<uint64_t>();
  const Shared<float> bound = scratch + kSampleWarps;
  const Shared<int32_t> count = (scratch + kSampleWarps + 1).as<int32_t>();
  Row row{.logits = p.logits + int64_t{report.logits_row} * p.vocab,
          .vocab = p.vocab,
          .parts = parts,
          .settings = {},
          .sums = {},
          .least = kMasked};

  float mine = kMasked;
  for (int i = 0; i < parts; ++i) row.part(i).for_each([&](int, float x) { mine = fmaxf(mine, x); });
  maxima[thread] = mine;
  row.sums.highest = block_highest(mine, scratch);
  if (thread < kWarp) {
    const float b = bound_of(maxima, max(report.num_top, 1));
    if (thread == 0) bound[0] = b;
  }
  sync_threads();
  const float least = bound[0];
  const Reach reach = collect(row, least, found, count, scratch);
  const float sum = reach.sum;

  if (thread == 0) {
    const float x = load(row.logits + max(load(p.tokens + report.sample), 0));
    store(p.logprobs + report.sample, logprob_of(x, row.sums.highest, sum));
  }
  if (report.num_top == 0) return;  // all of the block
  const int reached =
      reach.count <= kMaxCandidates ? reach.count : collect_cut(row, report.num_top, found, count, scratch);
  const int padded = power_of_two_from(reached);
  for (int i = reached + thread; i < padded; i += kSampleThreads) found[i] = ~uint64_t{0};
  sort_shared(found, padded);
  for (int i = thread; i < report.num_top; i += kSampleThreads) {
    const uint64_t c = i < reached ? static_cast<uint64_t>(found[i]) : ~uint64_t{0};
    const float x = value_of(~static_cast<uint32_t>(c >> 32));
    TopLogprobs* top = p.top + at;
    store(top->ids + i, i < reached ? static_cast<int32_t>(c & 0xffffffffu) : -1);
    store(top->logprobs + i, i < reached ? logprob_of(x, row.sums.highest, sum) : kMasked);
  }
}

}  // namespace

void report_logprobs(const Target& target, const ReportLogprobsParams& p) {
  if (p.num_reports == 0) return;
  check_given("report_logprobs, logits", p.logits);
  check_given("report_logprobs, reports", p.reports);
  check_given("report_logprobs, tokens", p.tokens);
  check_given("report_logprobs, logprobs", p.logprobs);
  check_given("report_logprobs, top", p.top);
  launch<report_rows>({.grid = static_cast<unsigned>(p.num_reports),
                       .block = kSampleThreads,
                       .shared_bytes = kReportBytes,
                       .stream = target.stream,
                       .dependent = true,
                       .carveout = carveout_of(p.num_reports)},
                      p, parts_of(p.vocab));
}

}  // namespace quire::QUIRE_SIDE
