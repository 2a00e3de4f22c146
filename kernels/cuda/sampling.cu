// Sampling without sorting. Bounded by the one read of the logits from memory (vocab * 4 bytes a row); the second read comes from L2,
// because samples go through in groups whose logits fit there.
//
//  1 scan:    kParts blocks of threads a row: sums for the log-sum-exp with and without temperature, the highest logit and its id, and
//             each thread's own highest logit: kParts * kThreads of them a row.
//  2 collect: the k-th highest of those thread maxima is a lower bound of the row's k-th highest logit, since k elements reach it. All
//             elements at or above the bound are candidates: little more than k of them in expectation.
//  3 choose:  one block of threads a row: ranks candidates by counting, applies top_k, top_p and min_p, draws. A row without filters
//             is drawn by its parts' sums instead. Where the candidates are too many, or too few for top_p, the row is settled
//             exactly by bisections over the order of float bits and over ids: some eighty more reads of one row (flat rows with top_p alone).
// Every sum has one order, so a sample's token does not depend on what else is sampled.
#include "kernels/cuda/sampling.h"

#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/portable.h"
#include "src/base/random.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256, kParts = 8, kMaxima = kThreads * kParts;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxCandidates = 1024;
constexpr int kDefaultBound = 512;  // rank of the bound where only top_p or min_p filters; the largest top_k that need not be settled
constexpr int kGroup = 64;           // samples a launch: 64 x 128k logits are 34 MB
constexpr uint32_t kLowestKey = 0;

struct PartSums {
  float highest = 0;       // of the part
  int32_t highest_id = 0;  // lowest id among equals
  float sum = 0;           // of exp(x - highest)
  float tempered_sum = 0;  // of exp((x - highest) * inverse temperature)
};

// The workspace of one sample.
struct SampleSpace {
  PartSums parts[kParts];
  float maxima[kMaxima];
  int32_t count;
  int32_t padding[3];
  int32_t ids[kMaxCandidates];
  float values[kMaxCandidates];
};

// Keys order as the floats do; NaN of either sign comes lowest, so it is never chosen before a number.
__device__ inline uint32_t key_of(float x) {
  const uint32_t u = f32_to_bits(x + 0.0f);  // minus zero equals zero
  if ((u & 0x7fffffffu) > kInfinityBits) return kLowestKey;
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
__device__ inline float value_of(uint32_t key) { return bits_to_f32((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key); }

__device__ inline bool filters(const SampleSettings& s, int vocab) {
  return (s.top_k > 0 && s.top_k < vocab) || s.top_p < 1.0f || s.min_p > 0.0f;
}

struct Best {
  float value;
  int32_t id;
};
__device__ inline Best better(Best a, Best b) {
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.id <= b.id ? a : b;
}
__device__ inline Best warp_best(Best x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = better(x, {shfl_xor(x.value, mask), shfl_xor(x.id, mask)});
  return x;
}

__device__ inline float block_sum(float x, Shared<float> partial) {
  x = warp_sum(x);
  sync_threads();
  if (threadIdx.x % kWarp == 0) partial[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  return sum;
}

// A part of a row: [begin, end) token ids, begin a multiple of 4.
struct Part {
  int begin, end;
};
__device__ inline Part part_of(int part, int vocab) {
  const int each = (vocab + kParts * 4 - 1) / (kParts * 4) * 4;
  return {min(part * each, vocab), min((part + 1) * each, vocab)};
}

// f(id, logit) for the ids of a part that this thread looks at: four neighbours at a time where rows are aligned.
template <bool kVector, class F>
__device__ inline void for_each_logit(const float* row, Part part, F f) {
  if constexpr (kVector) {
    constexpr int kStep = kThreads * 4, kAhead = 4;  // loads of a thread in flight: at one row nothing else hides their latency
    for (int i = part.begin + static_cast<int>(threadIdx.x) * 4; i < part.end; i += kAhead * kStep) {
      float4 v[kAhead] = {};
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a * kStep < part.end) v[a] = load(reinterpret_cast<const float4*>(row + i + a * kStep));
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int id = i + a * kStep;
        if (id < part.end) f(id, v[a].x), f(id + 1, v[a].y), f(id + 2, v[a].z), f(id + 3, v[a].w);
      }
    }
  } else {
    for (int i = part.begin + static_cast<int>(threadIdx.x); i < part.end; i += kThreads) f(i, load(row + i));
  }
}

// exp(x) of a non-positive x; e to minus infinity is 0.
__device__ inline float exp_approx(float x) { return exp2_approx(x * kLog2e); }

// ---- 1 scan: grid (kParts, samples) ------------------------------------------------------------------------------------------
template <bool kVector>
__global__ void __launch_bounds__(kThreads) scan(SampleParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int sample = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  SampleSpace* space = static_cast<SampleSpace*>(p.workspace) + sample;
  const SampleSettings s = load(p.settings + sample);
  const float* row = p.logits + int64_t{s.logits_row} * p.vocab;
  const Part part = part_of(static_cast<int>(blockIdx.x), p.vocab);

  const float lowest = value_of(0x007fffffu);  // minus infinity
  Best mine = {lowest, 0x7fffffff};
  for_each_logit<kVector>(row, part, [&](int id, float x) {
    if (key_of(x) > key_of(mine.value)) mine = {x, id};
  });
  store(space->maxima + blockIdx.x * kThreads + thread, mine.value);

  Shared<float> shared = dynamic_shared<float>();
  const Best in_warp = warp_best(mine);
  if (thread % kWarp == 0) {
    shared[kWarps + thread / kWarp] = in_warp.value;
    shared.as<int32_t>()[2 * kWarps + thread / kWarp] = in_warp.id;
  }
  sync_threads();
  Best best = {shared[kWarps], shared.as<int32_t>()[2 * kWarps]};
  for (int w = 1; w < kWarps; ++w) best = better(best, {shared[kWarps + w], shared.as<int32_t>()[2 * kWarps + w]});

  // The part comes from L1 and L2 now. Two passes cost less than an exponential at each new maximum.
  float sum = 0, tempered = 0;
  if (best.value > lowest)
    for_each_logit<kVector>(row, part, [&](int, float x) {
      const float below = key_of(x) == kLowestKey ? lowest : x - best.value;
      sum += exp_approx(below);
      tempered += exp_approx(below * s.inverse_temperature);
    });
  sum = block_sum(sum, shared);
  tempered = block_sum(tempered, shared);
  if (thread == 0) {
    store(space->parts + blockIdx.x, PartSums{best.value, best.id, sum, tempered});
    if (blockIdx.x == 0) store(&space->count, 0);
  }
}

// ---- 2 collect: grid (kParts, samples) -----------------------------------------------------------------------------------------
// Highest key that at least `rank` of the thread maxima reach: eight bits at a time, by counting in shared memory.
__device__ inline uint32_t key_at_rank(const float* maxima, int rank, Shared<int32_t> histogram) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    sync_threads();
    histogram[thread] = 0;
    sync_threads();
    for (int i = thread; i < kMaxima; i += kThreads) {
      const uint32_t key = key_of(load_shared_by_grid(maxima + i));
      if ((key & mask) == prefix) atomic_add(histogram + static_cast<int>(key >> shift & 255u), 1);
    }
    sync_threads();
    int digit = 255;  // every thread walks the same bins: no broadcast needed
    for (; digit > 0 && histogram[digit] < rank; --digit) rank -= histogram[digit];
    prefix |= static_cast<uint32_t>(digit) << shift;
    mask |= 255u << shift;
  }
  return prefix;
}

__device__ inline Best row_best(const SampleSpace* space) {
  Best best = {load_shared_by_grid(&space->parts[0].highest), load_shared_by_grid(&space->parts[0].highest_id)};
  for (int i = 1; i < kParts; ++i)
    best = better(best, {load_shared_by_grid(&space->parts[i].highest), load_shared_by_grid(&space->parts[i].highest_id)});
  return best;
}

// min_p: p >= min_p * highest p  <=>  (x - highest) / temperature >= log(min_p)
__device__ inline uint32_t min_p_key(float highest, const SampleSettings& s) {
  return key_of(highest + log2_approx(s.min_p) * kLn2 / s.inverse_temperature);
}

// The lowest key a candidate may have.
__device__ inline uint32_t bound_key(const SampleSpace* space, const SampleSettings& s, int vocab, Shared<int32_t> histogram) {
  const bool top_k = s.top_k > 0 && s.top_k < vocab;
  const uint32_t by_rank = key_at_rank(space->maxima, top_k ? min(s.top_k, kDefaultBound) : kDefaultBound, histogram);
  if (top_k || s.min_p <= 0.0f) return by_rank;  // top_p after top_k needs the mass of all k
  const uint32_t by_min_p = min_p_key(row_best(space).value, s);
  return by_rank > by_min_p ? by_rank : by_min_p;
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) collect(SampleParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int sample = static_cast<int>(blockIdx.y);
  SampleSpace* space = static_cast<SampleSpace*>(p.workspace) + sample;
  const SampleSettings s = load(p.settings + sample);
  if (s.inverse_temperature == 0.0f || !filters(s, p.vocab)) return;
  const uint32_t bound = bound_key(space, s, p.vocab, dynamic_shared<int32_t>());
  const float* row = p.logits + int64_t{s.logits_row} * p.vocab;
  for_each_logit<kVector>(row, part_of(static_cast<int>(blockIdx.x), p.vocab), [&](int id, float x) {
    if (key_of(x) < bound) return;
    const int at = atomic_add(&space->count, 1);
    if (at >= kMaxCandidates) return;
    store(space->ids + at, id);
    store(space->values + at, x);
  });
}

// ---- 3 choose: grid (samples) -------------------------------------------------------------------------------------------------
struct RowSums {
  Best best;
  float sum, tempered;  // relative to best.value
};
__device__ inline RowSums row_sums(const SampleSpace* space, float inverse_temperature) {
  RowSums r = {row_best(space), 0, 0};
  for (int i = 0; i < kParts; ++i) {
    const float below = load_shared_by_grid(&space->parts[i].highest) - r.best.value;
    r.sum += load_shared_by_grid(&space->parts[i].sum) * exp_approx(below);
    r.tempered += load_shared_by_grid(&space->parts[i].tempered_sum) * exp_approx(below * inverse_temperature);
  }
  return r;
}

__device__ inline float draw_number(const SampleSettings& s) {
  const auto bits = philox4x32({static_cast<uint32_t>(s.position), 0, 0, 0},
                               {static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32)});
  return uniform_open(bits[0]);
}

__device__ inline int32_t block_min(int32_t x, Shared<int32_t> scratch) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = min(x, shfl_xor(x, mask));
  sync_threads();
  if (threadIdx.x % kWarp == 0) scratch[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  int32_t lowest = scratch[0];
  for (int w = 1; w < kWarps; ++w) lowest = min(lowest, static_cast<int32_t>(scratch[w]));
  return lowest;
}
__device__ inline int32_t block_max(int32_t x, Shared<int32_t> scratch) { return -block_min(-x, scratch); }

inline constexpr int32_t kNoId = 0x7fffffff;

// What one row is chosen from.
struct Row {
  const float* logits;
  int vocab;
  SampleSettings settings;
  RowSums sums;
  uint32_t min_p_key;  // lowest key that min_p leaves

  __device__ float weight(float x) const {
    return key_of(x) == kLowestKey ? 0.0f : exp_approx((x - sums.best.value) * settings.inverse_temperature);
  }
};

// -- without filters: the part, then the thread's run of ids within it, then the id
__device__ inline int32_t draw_unfiltered(const SampleSpace* space, const Row& row, Shared<float> scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  float wanted = draw_number(row.settings) * row.sums.tempered;
  int part = 0;
  for (; part < kParts - 1; ++part) {
    const float below = (load_shared_by_grid(&space->parts[part].highest) - row.sums.best.value) * row.settings.inverse_temperature;
    const float mass = load_shared_by_grid(&space->parts[part].tempered_sum) * exp_approx(below);
    if (wanted < mass) break;
    wanted -= mass;
  }
  const Part ids = part_of(part, row.vocab);
  const int each = (ids.end - ids.begin + kThreads - 1) / kThreads;
  const int begin = min(ids.begin + thread * each, ids.end), end = min(begin + each, ids.end);
  float mine = 0;
  for (int id = begin; id < end; ++id) mine += row.weight(load(row.logits + id));
  scratch[kWarps + thread] = mine;
  sync_threads();
  float before = 0;
  for (int t = 0; t < thread; ++t) before += scratch[kWarps + t];
  int32_t passed = kNoId, last = -1;
  for (int id = begin; id < end; ++id) {
    const float w = row.weight(load(row.logits + id));
    before += w;
    if (w <= 0.0f) continue;
    last = id;
    if (before > wanted && passed == kNoId) passed = id;
  }
  passed = block_min(passed, scratch.as<int32_t>());
  // The part's sum was made in another order: rounding can leave the running sum just short of it.
  last = block_max(last, scratch.as<int32_t>());
  return passed != kNoId ? passed : last >= 0 ? last : row.sums.best.id;
}

// -- few candidates: ranks and running sums by counting, each candidate against all others
__device__ inline bool precedes(float a, int32_t a_id, float b, int32_t b_id) { return a != b ? a > b : a_id < b_id; }

__device__ inline int32_t draw_from_candidates(const Row& row, Shared<int32_t> ids, Shared<float> values, Shared<float> weights, int count,
                                               Shared<float> scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  const SampleSettings& s = row.settings;
  const bool by_rank = s.top_k > 0 && s.top_k < row.vocab;
  float kept_mass = 0;  // of the top_k
  for (int i = thread; i < count; i += kThreads) {
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += precedes(values[j], ids[j], values[i], ids[i]) ? 1 : 0;
    weights[i] = by_rank && rank >= s.top_k ? 0.0f : row.weight(values[i]);
    kept_mass += weights[i];
  }
  kept_mass = block_sum(kept_mass, scratch);
  const float mass = by_rank ? kept_mass : row.sums.tempered;
  // top_p keeps a candidate if those before it do not reach p; the sums read the weights that top_k left, so the cut is marked apart.
  uint32_t cut = 0;  // bit n: this thread's n-th candidate goes
  for (int i = thread, n = 0; i < count; i += kThreads, ++n) {
    float before = 0;
    for (int j = 0; j < count; ++j)
      if (precedes(values[j], ids[j], values[i], ids[i])) before += weights[j];
    if ((s.top_p < 1.0f && before >= s.top_p * mass) || key_of(values[i]) < row.min_p_key) cut |= 1u << n;
  }
  sync_threads();
  float left = 0;
  for (int i = thread, n = 0; i < count; i += kThreads, ++n) {
    if ((cut >> n & 1u) != 0) weights[i] = 0.0f;
    left += weights[i];
  }
  const float wanted = draw_number(s) * block_sum(left, scratch);
  int32_t passed = kNoId, last = -1;
  for (int i = thread; i < count; i += kThreads) {
    if (weights[i] <= 0.0f) continue;
    float through = 0;
    for (int j = 0; j < count; ++j)
      if (ids[j] <= ids[i]) through += weights[j];
    if (through > wanted) passed = min(passed, static_cast<int32_t>(ids[i]));
    last = max(last, static_cast<int32_t>(ids[i]));
  }
  passed = block_min(passed, scratch.as<int32_t>());
  last = block_max(last, scratch.as<int32_t>());
  return passed != kNoId ? passed : last >= 0 ? last : row.sums.best.id;
}

// -- any row: bisections. A set of a row is what lies above a key, and of the elements at the key those up to an id.
struct Cut {
  uint32_t key = 0;
  int32_t last_id = kNoId;

  __device__ bool keeps(uint32_t k, int32_t id) const { return k > key || (k == key && id <= last_id); }
};

// Sum over the row of weight (or of 1, to count) of what `kept` says yes to.
template <class F>
__device__ inline float row_mass(const Row& row, bool count, Shared<float> scratch, F kept) {
  float sum = 0;
  for (int id = static_cast<int>(threadIdx.x); id < row.vocab; id += kThreads) {
    const float x = load(row.logits + id);
    if (kept(key_of(x), id)) sum += count ? 1.0f : row.weight(x);
  }
  return block_sum(sum, scratch);  // a count is exact up to 2^24
}

// The smallest set in order of (logit, lower id) within `outer` whose mass reaches `wanted`.
__device__ inline Cut smallest_set(const Row& row, const Cut& outer, bool count, float wanted, Shared<float> scratch) {
  Cut cut;
  for (int bit = 31; bit >= 0; --bit) {  // the highest key at which the mass is reached
    const uint32_t tried = cut.key | 1u << bit;
    const float mass = row_mass(row, count, scratch, [&](uint32_t k, int32_t id) { return k >= tried && outer.keeps(k, id); });
    if (mass >= wanted) cut.key = tried;
  }
  int32_t low = -1, high = row.vocab - 1;  // the lowest id up to which elements at that key are needed
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const Cut tried{cut.key, middle};
    const float mass = row_mass(row, count, scratch, [&](uint32_t k, int32_t id) { return tried.keeps(k, id) && outer.keeps(k, id); });
    if (mass >= wanted) high = middle; else low = middle;
  }
  cut.last_id = min(high, outer.key == cut.key ? outer.last_id : kNoId);
  return cut;
}

__device__ inline int32_t draw_settled(const Row& row, Shared<float> scratch) {
  const SampleSettings& s = row.settings;
  Cut cut;
  if (s.top_k > 0 && s.top_k < row.vocab) cut = smallest_set(row, cut, true, static_cast<float>(s.top_k), scratch);
  const auto in_cut = [&](uint32_t k, int32_t id) { return cut.keeps(k, id); };
  if (s.top_p < 1.0f) cut = smallest_set(row, cut, false, s.top_p * row_mass(row, false, scratch, in_cut), scratch);
  const auto kept = [&](uint32_t k, int32_t id) { return cut.keeps(k, id) && k >= row.min_p_key; };
  const float wanted = draw_number(s) * row_mass(row, false, scratch, kept);
  int32_t low = -1, high = row.vocab - 1;  // the lowest id up to which the mass passes what was drawn
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (row_mass(row, false, scratch, [&](uint32_t k, int32_t id) { return id <= middle && kept(k, id); }) > wanted) high = middle;
    else low = middle;
  }
  const float x = load(row.logits + high);  // rounding can end on an element without weight: then the likeliest
  return kept(key_of(x), high) && row.weight(x) > 0.0f ? high : row.sums.best.id;
}

// Shared memory of choose: kWarps + kThreads floats of scratch, then the candidates.
constexpr int kScratch = kWarps + kThreads;
constexpr int kChooseBytes = (kScratch + 3 * kMaxCandidates) * 4;

__device__ inline int32_t draw_filtered(const SampleSpace* space, const Row& row, Shared<float> scratch) {
  const SampleSettings& s = row.settings;
  const int thread = static_cast<int>(threadIdx.x), count = load_shared_by_grid(&space->count);
  const bool by_rank = s.top_k > 0 && s.top_k < row.vocab;
  bool enough = count <= kMaxCandidates && !(by_rank && s.top_k > kDefaultBound);
  if (enough) {
    Shared<int32_t> ids = (scratch + kScratch).as<int32_t>();
    Shared<float> values = scratch + kScratch + kMaxCandidates, weights = scratch + kScratch + 2 * kMaxCandidates;
    float mass = 0;
    for (int i = thread; i < count; i += kThreads) {
      ids[i] = load_shared_by_grid(space->ids + i);
      values[i] = load_shared_by_grid(space->values + i);
      mass += row.weight(values[i]);
    }
    mass = block_sum(mass, scratch);
    // With top_k the bound lies at or below the k-th. Without it, the candidates must hold what top_p wants, or all that min_p leaves.
    const uint32_t rank_key = by_rank || s.min_p <= 0.0f ? kLowestKey : key_at_rank(space->maxima, kDefaultBound, scratch.as<int32_t>());
    sync_threads();
    const bool all_of_min_p = s.min_p > 0.0f && row.min_p_key >= rank_key;
    enough = by_rank || all_of_min_p || (s.top_p < 1.0f && mass >= s.top_p * row.sums.tempered);
    if (enough) return draw_from_candidates(row, ids, values, weights, count, scratch);
  }
  return draw_settled(row, scratch);
}

__global__ void __launch_bounds__(kThreads, 4) choose(SampleParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int sample = static_cast<int>(blockIdx.x);
  const SampleSpace* space = static_cast<const SampleSpace*>(p.workspace) + sample;
  Shared<float> scratch = dynamic_shared<float>();
  Row row{.logits = nullptr, .vocab = p.vocab, .settings = load(p.settings + sample), .sums = {}, .min_p_key = kLowestKey};
  row.logits = p.logits + int64_t{row.settings.logits_row} * p.vocab;
  row.sums = row_sums(space, row.settings.inverse_temperature);
  const SampleSettings& s = row.settings;
  int32_t token = row.sums.best.id;
  if (s.inverse_temperature > 0.0f && row.sums.tempered > 0.0f) {
    if (s.min_p > 0.0f) row.min_p_key = min_p_key(row.sums.best.value, s);
    token = filters(s, p.vocab) ? draw_filtered(space, row, scratch) : draw_unfiltered(space, row, scratch);
  }
  if (token < 0 || token >= p.vocab) token = 0;  // a row of nothing but NaN and minus infinity
  if (threadIdx.x == 0) {
    store(p.tokens + sample, token);
    store(p.logprobs + sample, load(row.logits + token) - row.sums.best.value - log2_approx(row.sums.sum) * kLn2);
  }
}

__global__ void __launch_bounds__(kThreads) take_sampled_rows(TakeSampledParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= p.rows) return;
  const int32_t source = load(p.source + row);
  if (source >= 0) store(p.ids + row, load(p.tokens + source));
}

}  // namespace

void take_sampled(const Target& target, const TakeSampledParams& params) {
  if (params.rows == 0) return;
  launch<take_sampled_rows>({.grid = as_grid(ceil_div<int64_t>(params.rows, kThreads)), .block = kThreads, .stream = target.stream,
                             .dependent = true}, params);
}

int64_t sample_space_bytes() { return sizeof(SampleSpace); }

void sample(const Target& target, const SampleParams& params) {
  for (int first = 0; first < params.num_samples; first += kGroup) {
    SampleParams p = params;
    p.num_samples = std::min(kGroup, params.num_samples - first);
    p.settings += first, p.tokens += first, p.logprobs += first;
    p.workspace = static_cast<SampleSpace*>(params.workspace) + first;
    const LaunchConfig parts{.grid = {kParts, static_cast<unsigned>(p.num_samples)}, .block = kThreads,
                             .shared_bytes = (kThreads + 3 * kWarps) * 4, .stream = target.stream, .dependent = true};
    with_bool(p.vocab % 4 == 0, [&](auto vector) {
      launch<scan<vector>>(parts, p);
      launch<collect<vector>>(parts, p);
    });
    launch<choose>({.grid = static_cast<unsigned>(p.num_samples), .block = kThreads, .shared_bytes = kChooseBytes, .stream = target.stream,
                    .dependent = true}, p);
  }
}

}  // namespace quire::QUIRE_SIDE
