// A row of logits as the sampling kernels see it: parts that a block of threads holds in registers, keys in the order
// of the logits, sums whose order is always the same. See sampling.cu for how they meet.
#pragma once

#include "kernels/cuda/limits.h"
#include "kernels/cuda/portable.h"
#include "kernels/sampling.h"
#include "src/base/random.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kSampleThreads = 256, kSampleWarps = kSampleThreads / kWarp;
inline constexpr int kQuads = 16;  // runs of four neighbours that a thread holds of a part
inline constexpr int kPartLogits = kSampleThreads * kQuads * 4;
inline constexpr int kMaxParts = 32;  // of a row
static_assert(int64_t{kMaxParts} * kPartLogits == kMaxSampledLogits);
inline constexpr int kPartRank = 64;         // rank, within a part, of the bound that candidates must reach
inline constexpr int kPartCandidates = 128;  // 74 are expected at that rank
inline constexpr int32_t kNoId = 0x7fffffff;
inline constexpr float kMasked = -__builtin_inff();
inline constexpr uint32_t kMaskedKey = 0x007fffffu;  // of minus infinity

// What `scan` leaves of a part.
struct PartSums {
  float highest;
  int32_t highest_id;  // lowest id among equals
  float sum;           // of exp(x - highest)
  float tempered_sum;  // of exp((x - highest) * inverse temperature), where no top_k makes it needless
  float bound;         // all logits at or above it are candidates
  int32_t candidates;  // how many those are; the first kPartCandidates are stored
};

// The workspace of one sample.
struct SampleSpace {
  PartSums parts[kMaxParts];
  int32_t ids[kMaxParts * kPartCandidates];
  float values[kMaxParts * kPartCandidates];
};

__device__ inline PartSums load_part_sums(const SampleSpace* space, int part) {
  const PartSums* p = space->parts + part;
  return {load_shared_by_grid(&p->highest), load_shared_by_grid(&p->highest_id),
          load_shared_by_grid(&p->sum),     load_shared_by_grid(&p->tempered_sum),
          load_shared_by_grid(&p->bound),   load_shared_by_grid(&p->candidates)};
}

// Keys order as the floats do.
__device__ inline uint32_t key_of(float x) {
  const uint32_t u = f32_to_bits(x + 0.0f);  // minus zero equals zero
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
__device__ inline float value_of(uint32_t key) {
  return bits_to_f32((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// exp(x) of a non-positive x; NaN (of an infinity less an infinity) counts as minus infinity.
__device__ inline float exp_below(float x) {
  return exp2_approx(fmaxf(x, kMasked) * kLog2e);
}

__device__ inline bool has_top_k(const SampleSettings& s, int vocab) {
  return s.top_k > 0 && s.top_k < vocab;
}
__device__ inline bool has_filters(const SampleSettings& s, int vocab) {
  return has_top_k(s, vocab) || s.top_p < 1.0f || s.min_p > 0.0f;
}

// ---- a block's sums, each in one order ----
__device__ inline float block_sum(float x, Shared<float> scratch) {
  x = warp_sum(x);
  sync_threads();
  if (threadIdx.x % kWarp == 0) scratch[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kSampleWarps; ++w) sum += scratch[w];
  return sum;
}

__device__ inline float block_highest(float x, Shared<float> scratch) {
  x = warp_max(x);
  sync_threads();
  if (threadIdx.x % kWarp == 0) scratch[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  float highest = scratch[0];
#pragma unroll
  for (int w = 1; w < kSampleWarps; ++w) highest = fmaxf(highest, scratch[w]);
  return highest;
}

__device__ inline int32_t block_min(int32_t x, Shared<int32_t> scratch) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = min(x, shfl_xor(x, mask));
  sync_threads();
  if (threadIdx.x % kWarp == 0) scratch[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  int32_t lowest = scratch[0];
#pragma unroll
  for (int w = 1; w < kSampleWarps; ++w) lowest = min(lowest, static_cast<int32_t>(scratch[w]));
  return lowest;
}
__device__ inline int32_t block_max(int32_t x, Shared<int32_t> scratch) {
  return -block_min(-x, scratch);
}

template <class T>
__device__ inline T warp_scan(T x) {  // the sum of the lanes up to this one
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const T below = shfl_up(x, d);
    if (static_cast<int>(threadIdx.x % kWarp) >= d) x += below;
  }
  return x;
}
// The sum of the threads before this one, and of all. scratch: kSampleWarps of T.
template <class T>
__device__ inline T block_scan(T x, Shared<T> scratch, T& total) {
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  const T through = warp_scan(x);
  sync_threads();
  if (threadIdx.x % kWarp == kWarp - 1) scratch[warp] = through;
  sync_threads();
  T before = through - x;
  total = 0;
#pragma unroll
  for (int w = 0; w < kSampleWarps; ++w) {
    const T sum = scratch[w];
    if (w < warp) before += sum;
    total += sum;
  }
  return before;
}

// ---- parts ----
struct Part {
  int begin, end;  // token ids; begin is a multiple of 4
};
inline int parts_of(int vocab) {
  return (vocab + kPartLogits - 1) / kPartLogits;
}
__device__ inline Part part_of(int part, int parts, int vocab) {
  const int each = (vocab + parts * 4 - 1) / (parts * 4) * 4;
  return {min(part * each, vocab), min((part + 1) * each, vocab)};
}

// A part as a block's threads share it. NaN counts as minus infinity.
struct PartView {
  const float* row;
  Part part;
  bool aligned;  // rows of a multiple of four logits

  // Ids rise with (q, thread, i): of four neighbours a thread, the next four lie 4 * kSampleThreads further.
  __device__ int id(int q, int i) const {
    return part.begin + (q * kSampleThreads + static_cast<int>(threadIdx.x)) * 4 + i;
  }
  // What lies past the part's end counts as minus infinity.
  __device__ void load_quad(int q, float (&x)[4]) const {
    if (aligned) {
      float4 v = make_float4(kMasked, kMasked, kMasked, kMasked);
      if (id(q, 0) < part.end) v = load(reinterpret_cast<const float4*>(row + id(q, 0)));
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = id(q, i) < part.end ? load(row + id(q, i)) : kMasked;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = fmaxf(x[i], kMasked);
  }
  __device__ float logit(int id) const { return fmaxf(load(row + id), kMasked); }

  // f(q, quad) for a thread's quads in the order of ids, several loads ahead.
  template <class F>
  __device__ void for_each_quad(F f) const {
    constexpr int kAhead = 4;
#pragma unroll 1
    for (int first = 0; first < kQuads; first += kAhead) {
      float x[kAhead][4];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) load_quad(first + a, x[a]);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) f(first + a, x[a]);
    }
  }
  // f(id, logit) for those within the part.
  template <class F>
  __device__ void for_each(F f) const {
    for_each_quad([&](int q, const float(&x)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (id(q, i) < part.end) f(id(q, i), x[i]);
    });
  }
};

// A thread's logits of a part in registers, all of them asked for before the first is used.
struct PartLogits {
  float x[kQuads][4];

  __device__ explicit PartLogits(const PartView& part) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) part.load_quad(q, x[q]);
  }
  template <class F>
  __device__ float sum_of(F f) const {
    float sum = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += f(x[q][i]);
    return sum;
  }
  __device__ float highest() const {
    float h = kMasked;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i) h = fmaxf(h, x[q][i]);
    return h;
  }
  // Bit 4 (q % 8) + i of half q / 8: whether the logit is at or above `bound`.
  __device__ void reaching(float bound, uint32_t (&halves)[2]) const {
    halves[0] = halves[1] = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i) halves[q / 8] |= x[q][i] >= bound ? 1u << (q % 8 * 4 + i) : 0u;
  }
};

// ---- bounds ----
// A lower bound of the highest logits: at least `rank` of the block's threads have one at or above it, and minus
// infinity is below it. By one warp; exact in the upper 20 bits.
__device__ inline float bound_of(Shared<float> maxima, int rank) {
  constexpr int kKeys = kSampleThreads / kWarp, kLowestBit = 12;
  uint32_t keys[kKeys], bound = 0;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) keys[i] = key_of(maxima[i * kWarp + static_cast<int>(threadIdx.x % kWarp)]);
  for (int bit = 31; bit >= kLowestBit; --bit) {
    const uint32_t tried = bound | 1u << bit;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) reach += count_bits(ballot(keys[i] >= tried));
    if (reach >= rank) bound = tried;
  }
  return value_of(bound > kMaskedKey ? bound : kMaskedKey + 1);
}

// ---- rows ----
struct RowSums {
  float highest;
  int32_t highest_id;
  float sum, tempered;  // relative to highest
};

__device__ inline const float* row_of(const SampleParams& p, const SampleSettings& s) {
  return s.edited_row >= 0 ? p.edited + int64_t{s.edited_row} * p.vocab
                           : p.logits + int64_t{s.logits_row} * p.vocab;
}

// What one sample is chosen from.
struct Row {
  const float* logits;
  int vocab, parts;
  SampleSettings settings;
  RowSums sums;
  float least;  // the lowest logit that min_p leaves

  __device__ float weight(float x) const {
    return x == sums.highest ? 1.0f : exp_below((x - sums.highest) * settings.inverse_temperature);
  }
  __device__ PartView part(int i) const { return {logits, part_of(i, parts, vocab), vocab % 4 == 0}; }
  __device__ float draw_number() const {
    const auto bits =
        philox4x32({static_cast<uint32_t>(settings.position), 0, 0, 0},
                   {static_cast<uint32_t>(settings.seed), static_cast<uint32_t>(settings.seed >> 32)});
    return uniform_open(bits[0]);
  }
};

}  // namespace quire::QUIRE_SIDE
