// What needs the whole row: a draw in the order of ids without filters, and exact top_k and top_p where the candidates
// that `scan` kept do not settle them (flat rows, large top_k, many equal logits). A cut is found digit by digit of the
// keys, eight bits at a time, by the mass of each of 256 bins: four reads of the row, then one for the elements that
// are equal at the cut, and two for the draw. Masses are whole numbers (of 2^-33 of the likeliest's), so they add up
// to the same in any order.
#pragma once

#include "kernels/cuda/sampling_row.h"

namespace quire::QUIRE_SIDE {

// Running sums in the order of ids. scratch: kSampleWarps + kQuads * kSampleWarps floats.
class IdOrder {
 public:
  __device__ IdOrder(const Row& row, Shared<float> scratch) : row_(row), scratch_(scratch) {}

  template <class F>
  __device__ float sum(F weight) const {
    float mine = 0;
    for (int i = 0; i < row_.parts; ++i)
      row_.part(i).for_each([&](int id, float x) { mine += weight(id, x); });
    return block_sum(mine, scratch_);
  }

  // The first id at which the sum of weight(id, logit) over the row passes `wanted`; the last with any weight where
  // rounding leaves the sum short of it; -1 where none has.
  template <class F>
  __device__ int32_t find(float wanted, F weight) const {
    int chosen = -1;
    for (int i = 0; i < row_.parts; ++i) {
      float mine = 0;
      row_.part(i).for_each([&](int id, float x) { mine += weight(id, x); });
      const float mass = block_sum(mine, scratch_);
      if (mass <= 0.0f) continue;
      chosen = i;
      if (wanted < mass) break;
      wanted -= mass;
    }
    return chosen < 0 ? -1 : find_in(row_.part(chosen), wanted, weight);
  }

  // The same within one part: a warp's stretch of four logits a lane, then the lane, then the logit.
  template <class F>
  __device__ int32_t find_in(const PartView& part, float wanted, F weight) const {
    const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
    const Shared<float> stretches = scratch_ + kSampleWarps;  // [kQuads][kSampleWarps]: in the order of ids
    sync_threads();
    part.for_each_quad([&](int q, const float(&x)[4]) {
      float w[4];
      quad_weights(part, q, x, weight, w);
      const float mass = warp_sum((w[0] + w[1]) + (w[2] + w[3]));
      if (lane == 0) stretches[q * kSampleWarps + warp] = mass;
    });
    sync_threads();
    const Stretch s = stretch_of(stretches, wanted);
    const int q = s.index / kSampleWarps;
    float x[4], w[4];
    part.load_quad(q, x);
    quad_weights(part, q, x, weight, w);
    const float mine = (w[0] + w[1]) + (w[2] + w[3]);
    float through = s.before + (warp_scan(mine) - mine);
    int32_t passed = kNoId, last = -1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      through += w[i];
      if (warp != s.index % kSampleWarps || w[i] <= 0.0f) continue;
      last = part.id(q, i);
      if (through > wanted && passed == kNoId) passed = last;
    }
    passed = block_min(passed, scratch_.as<int32_t>());
    last = block_max(last, scratch_.as<int32_t>());
    return passed != kNoId ? passed : last;
  }

 private:
  struct Stretch {
    int index;
    float before;
  };
  // The first whose sum passes `wanted`, or the last with any mass.
  __device__ static Stretch stretch_of(Shared<float> stretches, float wanted) {
    Stretch found = {-1, 0}, last = {0, 0};
    float before = 0;
#pragma unroll 8
    for (int i = 0; i < kQuads * kSampleWarps; ++i) {
      const float mass = stretches[i];
      if (mass > 0.0f) last = {i, before};
      if (found.index < 0 && mass > 0.0f && wanted < before + mass) found = {i, before};
      before += mass;
    }
    return found.index < 0 ? last : found;
  }
  template <class F>
  __device__ static void quad_weights(const PartView& part, int q, const float (&x)[4], F weight,
                                      float (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = part.id(q, i) < part.part.end ? weight(part.id(q, i), x[i]) : 0.0f;
  }

  const Row& row_;
  Shared<float> scratch_;
};

// A set of a row: what lies above a key, and of the elements at the key those up to an id.
struct Cut {
  uint32_t key = 0;
  int32_t last_id = kNoId;

  __device__ bool keeps(float x, int32_t id) const {
    const uint32_t k = key_of(x);
    return k > key || (k == key && id <= last_id);
  }
};

inline constexpr int kBins = kSampleThreads;      // a thread sums a bin
inline constexpr int kBinCopies = 16;             // lanes add to different banks
inline constexpr int kLimbs = 3, kLimbBits = 11;  // a mass is added in three numbers that cannot overflow
inline constexpr int kHistogramBytes = kLimbs * kBins * kBinCopies * 4;
inline constexpr int kSettleBytes = kHistogramBytes + (kSampleWarps + 4) * 8;

class Settle {
 public:
  // memory: kSettleBytes; scratch: IdOrder's.
  __device__ Settle(const Row& row, Shared<char> memory, Shared<float> scratch)
      : row_(row),
        bins_(memory.as<uint32_t>()),
        sums_((memory + kHistogramBytes).as<uint64_t>()),
        in_ids_(row, scratch) {}

  __device__ int32_t draw() {
    const SampleSettings& s = row_.settings;
    Cut cut;
    if (has_top_k(s, row_.vocab)) cut = smallest_set(cut, Measure::kCount, s.top_k);
    if (s.top_p < 1.0f) cut = smallest_set(cut, Measure::kMass, s.top_p);
    const auto weight = [&](int32_t id, float x) {
      return cut.keeps(x, id) && x >= row_.least ? row_.weight(x) : 0.0f;
    };
    const float wanted = row_.draw_number() * in_ids_.sum(weight);
    const int32_t id = in_ids_.find(wanted, weight);
    return id >= 0 ? id : row_.sums.highest_id;
  }

  // The first `count` in the order of (logit, lower id).
  __device__ Cut likeliest(int32_t count) {
    return smallest_set(Cut{}, Measure::kCount, static_cast<float>(count));
  }

 private:
  enum class Measure { kCount, kMass };

  // In units of 2^-33 of the likeliest's mass, or one by one.
  __device__ uint64_t measure_of(float x, Measure by) const {
    if (by == Measure::kCount) return 1;
    const float scaled = row_.weight(x) * static_cast<float>(1 << (2 * kLimbBits));
    const auto whole = static_cast<uint32_t>(scaled);
    const auto rest =
        static_cast<uint32_t>((scaled - static_cast<float>(whole)) * static_cast<float>(1 << kLimbBits));
    return static_cast<uint64_t>(whole) << kLimbBits | rest;
  }

  // The smallest set in the order of (logit, lower id) within `outer` that reaches `wanted`: a count, or a share of
  // outer's mass.
  __device__ Cut smallest_set(const Cut& outer, Measure by, float wanted) {
    uint32_t prefix = 0, mask = 0;
    uint64_t above = 0, goal = 0;  // of what lies above the prefix; to be reached
    for (int shift = 24; shift >= 0; shift -= 8) {
      count_digits(outer, by, shift, prefix, mask);
      uint64_t all = 0;
      const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
      const uint64_t mine = bin_total(bin), before = above + block_scan(mine, sums_, all);
      if (shift == 24) goal = goal_of(by, wanted, all);
      if (before < goal && goal <= before + mine) {
        sums_[kSampleWarps] = static_cast<uint64_t>(bin);
        sums_[kSampleWarps + 1] = before;
      }
      sync_threads();
      prefix |= static_cast<uint32_t>(static_cast<uint64_t>(sums_[kSampleWarps])) << shift;
      above = sums_[kSampleWarps + 1];
      mask |= 255u << shift;
    }
    const uint64_t each = measure_of(value_of(prefix), by), ties = (goal - above + each - 1) / each;
    const auto at_key = [&](int32_t id, float x) {
      return key_of(x) == prefix && outer.keeps(x, id) ? 1.0f : 0.0f;
    };
    return {prefix, in_ids_.find(static_cast<float>(ties) - 0.5f, at_key)};
  }
  __device__ static uint64_t goal_of(Measure by, float wanted, uint64_t all) {
    const uint64_t goal = by == Measure::kCount
                              ? static_cast<uint64_t>(wanted)
                              : static_cast<uint64_t>(static_cast<double>(wanted) * static_cast<double>(all));
    return goal == 0 ? 1 : goal < all ? goal : all;
  }

  // The bins of the digit at `shift`, over the elements of `outer` whose key begins with `prefix`.
  __device__ void count_digits(const Cut& outer, Measure by, int shift, uint32_t prefix, uint32_t mask) {
    const int thread = static_cast<int>(threadIdx.x);
    sync_threads();
    for (int i = thread; i < kLimbs * kBins * kBinCopies; i += kSampleThreads) bins_[i] = 0;
    sync_threads();
    for (int i = 0; i < row_.parts; ++i)
      row_.part(i).for_each([&](int32_t id, float x) {
        const uint32_t key = key_of(x);
        if ((key & mask) != prefix || !outer.keeps(x, id)) return;
        add(static_cast<int>(key >> shift & 255u), measure_of(x, by));
      });
    sync_threads();
  }
  __device__ void add(int bin, uint64_t measure) const {
    const int at = bin * kBinCopies + static_cast<int>(threadIdx.x % kBinCopies);
#pragma unroll
    for (int limb = 0; limb < kLimbs; ++limb) {
      const auto part = static_cast<uint32_t>(measure >> (limb * kLimbBits)) &
                        (limb == kLimbs - 1 ? ~0u : (1u << kLimbBits) - 1);
      if (part != 0) atomic_add(bins_ + (limb * kBins * kBinCopies + at), part);
    }
  }
  __device__ uint64_t bin_total(int bin) const {
    uint64_t total = 0;
#pragma unroll
    for (int limb = 0; limb < kLimbs; ++limb) {
      uint64_t sum = 0;
      for (int copy = 0; copy < kBinCopies; ++copy)  // each thread begins at another bank
        sum += bins_[(limb * kBins + bin) * kBinCopies + (copy + bin / 2) % kBinCopies];
      total += sum << (limb * kLimbBits);
    }
    return total;
  }

  const Row& row_;
  Shared<uint32_t> bins_;  // [kLimbs][kBins][kBinCopies]
  Shared<uint64_t> sums_;  // kSampleWarps of a scan; the digit that was found; what lies above it
  IdOrder in_ids_;
};

}  // namespace quire::QUIRE_SIDE
