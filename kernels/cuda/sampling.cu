// Sampling without sorting rows. Bounded by the one read of the logits from memory: vocab * 4 bytes a row.
//
//  1 scan:    a block of threads holds a part of a row in registers: its highest logit, the sums for the log-sum-exp
//             with and without temperature, and its candidates: all logits at or above the kPartRank-th highest of its
//             threads' highest (the top_k-th, if that is less). Every logit above the highest of the parts' bounds is
//             a candidate, and of the part it came from so many are.
//  2 choose:  a block a sample. Without filters the parts' sums say which part to read again. With filters it sorts the
//             candidates above the highest bound, a few hundred; where these do not settle the row (sampling_settle.h)
//             it reads the row some seven times.
// Every sum has one order, so a sample's token does not depend on what else is sampled.
#include "kernels/cuda/sampling.h"

#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/sampling_candidates.h"
#include "kernels/cuda/sampling_settle.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

// ---- 1 scan: grid (parts of samples), a sample's parts side by side ----
constexpr int kScanFloats = kSampleWarps + kSampleThreads + 2;

__device__ inline int rank_of(const SampleSettings& s, int vocab) {
  return has_top_k(s, vocab) ? min(s.top_k, kPartRank) : kPartRank;
}

// f(id) for the logits whose bits are set, in the order of ids (PartLogits::reaching).
template <class F>
__device__ inline void for_each_reaching(const PartView& part, const uint32_t (&halves)[2], F f) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
    for (uint32_t bits = halves[h]; bits != 0; bits &= bits - 1) {
      const int bit = count_bits((bits & (0u - bits)) - 1);
      f(part.id(h * 8 + bit / 4, bit % 4));
    }
}

__device__ inline int32_t lowest_id_of(const PartView& part, const PartLogits& logits, float highest,
                                       Shared<int32_t> scratch) {
  uint32_t there[2];
  logits.reaching(highest, there);
  int32_t lowest = kNoId;
  for_each_reaching(part, there, [&](int id) {
    if (id < part.part.end) lowest = min(lowest, static_cast<int32_t>(id));
  });
  return block_min(lowest, scratch);
}

__device__ inline void store_candidates(const PartView& part, const PartLogits& logits, float bound,
                                        SampleSpace* space, int first, Shared<int32_t> count) {
  uint32_t there[2];
  logits.reaching(bound, there);
  for_each_reaching(part, there, [&](int id) {
    const int at = atomic_add(count, 1);
    if (at >= kPartCandidates) return;
    store(space->ids + first + at, static_cast<int32_t>(id));
    store(space->values + first + at, part.logit(id));  // read again: few are
  });
}

__global__ void __launch_bounds__(kSampleThreads, 2) scan(SampleParams p, int parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = static_cast<int>(threadIdx.x), index = static_cast<int>(blockIdx.x) % parts,
            sample = static_cast<int>(blockIdx.x) / parts;
  SampleSpace* space = static_cast<SampleSpace*>(p.workspace) + sample;
  const SampleSettings s = load(p.settings + sample);
  const PartView part{row_of(p, s), part_of(index, parts, p.vocab), p.vocab % 4 == 0};
  const PartLogits logits(part);

  const Shared<float> scratch = dynamic_shared<float>(), maxima = scratch + kSampleWarps;
  const Shared<float> bound = maxima + kSampleThreads;
  const Shared<int32_t> count = (bound + 1).as<int32_t>();
  const float mine = logits.highest();
  maxima[thread] = mine;
  if (thread == 0) count[0] = 0;
  const float in_warp = warp_max(mine);
  if (thread % kWarp == 0) scratch[thread / kWarp] = in_warp;
  sync_threads();
  float highest = scratch[0];
#pragma unroll
  for (int w = 1; w < kSampleWarps; ++w) highest = fmaxf(highest, scratch[w]);

  const bool filtered = s.inverse_temperature > 0.0f && has_filters(s, p.vocab);
  if (filtered && thread < kWarp) {
    const float b = bound_of(maxima, rank_of(s, p.vocab));
    if (thread == 0) bound[0] = b;
  }
  float sum = logits.sum_of([&](float x) { return exp_below(x - highest); });
  sum = block_sum(sum, scratch);
  float tempered = sum;
  if (s.inverse_temperature != 1.0f && s.inverse_temperature > 0.0f && !has_top_k(s, p.vocab)) {
    tempered = logits.sum_of([&](float x) { return exp_below((x - highest) * s.inverse_temperature); });
    tempered = block_sum(tempered, scratch);
  }
  if (filtered) store_candidates(part, logits, bound[0], space, index * kPartCandidates, count);
  const int32_t id = lowest_id_of(part, logits, highest, scratch.as<int32_t>());
  if (thread == 0)
    store(space->parts + index,
          PartSums{highest, id, sum, tempered, filtered ? static_cast<float>(bound[0]) : 0.0f, count[0]});
}

// ---- 2 choose: grid (samples) ----
__device__ inline RowSums row_sums(const SampleSpace* space, int parts, float inverse_temperature) {
  RowSums r = {kMasked, kNoId, 0, 0};
  for (int i = 0; i < parts; ++i) {
    const PartSums part = load_part_sums(space, i);
    if (part.highest > r.highest || r.highest_id == kNoId)
      r.highest = part.highest, r.highest_id = part.highest_id;
  }
  for (int i = 0; i < parts; ++i) {
    const PartSums part = load_part_sums(space, i);
    const float below = part.highest == r.highest ? 0.0f : part.highest - r.highest;
    r.sum += part.sum * exp_below(below);
    r.tempered += part.tempered_sum * exp_below(below * inverse_temperature);
  }
  return r;
}

// Without filters: the part by the parts' sums, then within it.
__device__ inline int32_t draw_unfiltered(const SampleSpace* space, const Row& row, const IdOrder& ids) {
  float wanted = row.draw_number() * row.sums.tempered;
  int chosen = 0;
  for (int i = 0; i < row.parts; ++i) {
    const PartSums part = load_part_sums(space, i);
    const float mass =
        part.tempered_sum * exp_below((part.highest - row.sums.highest) * row.settings.inverse_temperature);
    if (mass <= 0.0f) continue;
    chosen = i;
    if (wanted < mass) break;
    wanted -= mass;
  }
  const int32_t id = ids.find_in(row.part(chosen), wanted, [&](int32_t, float x) { return row.weight(x); });
  return id >= 0 ? id : row.sums.highest_id;
}

// The candidates that are known to be all above the highest bound.
struct Found {
  int count;      // -1: a part had more than are stored
  float bound;    // nothing at or above it is missing
  bool complete;  // nothing but minus infinity is missing
  float mass;
};
__device__ inline Found gather_candidates(const SampleSpace* space, const Row& row, Shared<uint64_t> found,
                                          Shared<float> scratch) {
  Found f = {0, value_of(kMaskedKey + 1), false, 0};
  bool whole = true;
  const float lowest = f.bound;
  for (int i = 0; i < row.parts; ++i) {
    const PartSums part = load_part_sums(space, i);
    f.bound = fmaxf(f.bound, part.bound);
    whole = whole && part.candidates <= kPartCandidates;
  }
  f.complete = f.bound == lowest;
  const Shared<int32_t> count = scratch.as<int32_t>() + kSampleWarps;
  if (threadIdx.x == 0) count[0] = 0;
  sync_threads();
  for (int i = static_cast<int>(threadIdx.x); i < row.parts * kPartCandidates; i += kSampleThreads) {
    const int32_t there = load_shared_by_grid(&space->parts[i / kPartCandidates].candidates);
    const float x = load_shared_by_grid(space->values + i);
    const int32_t id = load_shared_by_grid(space->ids + i);
    if (i % kPartCandidates >= there || x < f.bound) continue;
    const int at = atomic_add(count, 1);
    if (at < kMaxCandidates) found[at] = CandidateDraw::packed(x, id);
  }
  sync_threads();
  f.count = whole && count[0] <= kMaxCandidates ? static_cast<int>(count[0]) : -1;
  return f;
}

// Do the candidates hold all that the filters can leave?
__device__ inline bool settles(const Row& row, const Found& f, Shared<uint64_t> found,
                               Shared<float> scratch) {
  const SampleSettings& s = row.settings;
  if (f.count < 0) return false;
  if (f.complete) return true;
  if (has_top_k(s, row.vocab)) return f.count >= s.top_k;
  if (s.min_p > 0.0f && row.least >= f.bound) return true;
  if (s.top_p >= 1.0f) return false;
  float mass = 0;
  for (int i = static_cast<int>(threadIdx.x); i < f.count; i += kSampleThreads)
    mass += row.weight(value_of(~static_cast<uint32_t>(static_cast<uint64_t>(found[i]) >> 32)));
  return block_sum(mass, scratch) >= s.top_p * row.sums.tempered;
}

// Whether the model's own row, before its edits, has nothing to choose from either.
__device__ inline int32_t why_nothing(const Row& row, const SampleParams& p, Shared<float> scratch) {
  if (row.settings.edited_row < 0) return kNoLogitInRow;  // all of the block
  Row own = row;
  own.logits = p.logits + int64_t{row.settings.logits_row} * p.vocab;
  float highest = kMasked;
  for (int i = 0; i < own.parts; ++i)
    own.part(i).for_each([&](int, float x) { highest = fmaxf(highest, x); });
  return block_highest(highest, scratch) == kMasked ? kNoLogitInRow : kRulesLeaveNoToken;
}

constexpr int kScratchFloats = kSampleWarps + kQuads * kSampleWarps;
constexpr int kChooseBytes = kScratchFloats * 4 + std::max(kSettleBytes, kMaxCandidates * 8);

__global__ void __launch_bounds__(kSampleThreads, 2) choose(SampleParams p, int parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int sample = static_cast<int>(blockIdx.x);
  const SampleSpace* space = static_cast<const SampleSpace*>(p.workspace) + sample;
  const Shared<float> scratch = dynamic_shared<float>();
  const Shared<char> memory = (scratch + kScratchFloats).as<char>();
  Row row{.logits = nullptr,
          .vocab = p.vocab,
          .parts = parts,
          .settings = load(p.settings + sample),
          .sums = {},
          .least = kMasked};
  const SampleSettings& s = row.settings;
  row.logits = row_of(p, s);
  row.sums = row_sums(space, parts, s.inverse_temperature);
  int32_t token = row.sums.highest_id;
  if (s.inverse_temperature > 0.0f && row.sums.sum > 0.0f) {
    if (s.min_p > 0.0f)  // p >= min_p * highest p  <=>  (x - highest) / temperature >= log(min_p)
      row.least = row.sums.highest + log2_approx(s.min_p) * kLn2 / s.inverse_temperature;
    if (!has_filters(s, p.vocab)) {
      token = draw_unfiltered(space, row, IdOrder(row, scratch));
    } else {
      const Shared<uint64_t> found = memory.as<uint64_t>();
      const Found f = gather_candidates(space, row, found, scratch);
      token = settles(row, f, found, scratch) ? CandidateDraw(row, found, f.count, scratch).draw()
                                              : Settle(row, memory, scratch).draw();
    }
  }
  if (row.sums.highest == kMasked) token = why_nothing(row, p, scratch);
  if (s.forced >= 0 && token != kNoLogitInRow) token = s.forced;
  if (threadIdx.x == 0) {
    const float x = load(row.logits + max(token, 0));
    store(p.tokens + sample, token);
    if (p.host_tokens != nullptr) store(p.host_tokens + sample, token);
    store(p.logprobs + sample, row.sums.sum > 0.0f ? x - row.sums.highest - log2_approx(row.sums.sum) * kLn2
                               : x > 0.0f          ? 0.0f
                                                   : kMasked);
  }
}

}  // namespace

int64_t sample_space_bytes() {
  return sizeof(SampleSpace);
}

void sample(const Target& target, const SampleParams& p) {
  if (p.num_samples == 0) return;
  const int parts = parts_of(p.vocab);
  check_at_least("sample, parts of a row that there is room for, less those of this vocabulary",
                 kMaxParts - parts, 0);
  const auto samples = static_cast<unsigned>(p.num_samples);
  const int carveout = p.num_samples == 1 ? carveout_of(1) : -1;  // many samples' loads want the room of L1
  launch<scan>({.grid = as_grid(int64_t{parts} * p.num_samples),
                .block = kSampleThreads,
                .shared_bytes = kScanFloats * 4,
                .stream = target.stream,
                .dependent = true,
                .carveout = carveout},
               p, parts);
  launch<choose>({.grid = samples,
                  .block = kSampleThreads,
                  .shared_bytes = kChooseBytes,
                  .stream = target.stream,
                  .dependent = true,
                  .carveout = carveout},
                 p, parts);
}

}  // namespace quire::QUIRE_SIDE
