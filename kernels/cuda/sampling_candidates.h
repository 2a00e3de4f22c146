// A draw from a row's few candidates: sorted by logit for the filters, by id for the draw.
#pragma once

#include "kernels/cuda/sampling_row.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kMaxCandidates = 1024;  // of a row
inline constexpr int kThreadCandidates = kMaxCandidates / kSampleThreads;

__device__ inline int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Ascending; n a power of two (bitonic).
__device__ inline void sort_shared(Shared<uint64_t> a, int n) {
  for (int k = 2; k <= n; k *= 2)
    for (int j = k / 2; j > 0; j /= 2) {
      sync_threads();
      for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += kSampleThreads) {
        const int low = (i & ~(j - 1)) * 2 + (i & (j - 1)), high = low + j;
        const uint64_t x = a[low], y = a[high];
        if ((x > y) == ((low & k) == 0)) a[low] = y, a[high] = x;
      }
    }
  sync_threads();
}

// `found`: [kMaxCandidates], the first `count` hold (~key, id). scratch: as block_sum's.
class CandidateDraw {
 public:
  __device__ CandidateDraw(const Row& row, Shared<uint64_t> found, int count, Shared<float> scratch)
      : row_(row), found_(found), count_(count), scratch_(scratch) {}

  // A candidate is written as (~key, id), so that the likeliest, and of equals the lowest id, comes first.
  __device__ static uint64_t packed(float value, int32_t id) {
    return static_cast<uint64_t>(~key_of(value)) << 32 | static_cast<uint32_t>(id);
  }

  __device__ int32_t draw() {
    sort_found();
    read_ranked();
    cut();
    return draw_kept();
  }

 private:
  __device__ int index(int n) const { return static_cast<int>(threadIdx.x) * kThreadCandidates + n; }

  __device__ void sort_found() const {
    const int padded = power_of_two_from(count_);
    for (int i = count_ + static_cast<int>(threadIdx.x); i < padded; i += kSampleThreads)
      found_[i] = ~uint64_t{0};
    sort_shared(found_, padded);
  }

  // A thread's candidates in order of rank, and their weights; top_k's are all that count.
  __device__ void read_ranked() {
    const int ranked = has_top_k(row_.settings, row_.vocab) ? min(row_.settings.top_k, count_) : count_;
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n) {
      const uint64_t c = index(n) < ranked ? static_cast<uint64_t>(found_[index(n)]) : ~uint64_t{0};
      id_[n] = static_cast<int32_t>(c & 0xffffffffu);
      value_[n] = value_of(~static_cast<uint32_t>(c >> 32));
      weight_[n] = index(n) < ranked ? row_.weight(value_[n]) : 0.0f;
    }
  }

  // top_p keeps a candidate if those before it do not reach p. What stays is the beginning of the order.
  __device__ void cut() {
    const SampleSettings& s = row_.settings;
    float mine = 0, total = 0;
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n) mine += weight_[n];
    float before = block_scan(mine, scratch_, total);
    const float wanted = s.top_p * (has_top_k(s, row_.vocab) ? total : row_.sums.tempered);
    int kept = 0;
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n) {
      const bool stays = weight_[n] > 0.0f && (s.top_p >= 1.0f || before < wanted) && value_[n] >= row_.least;
      before += weight_[n];
      if (!stays) weight_[n] = 0.0f;
      if (stays) kept = index(n) + 1;
    }
    kept_ = block_max(kept, scratch_.as<int32_t>());
  }

  // In the order of ids: the first whose running sum passes the number drawn.
  __device__ int32_t draw_kept() const {
    const int padded = power_of_two_from(kept_);
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n)
      if (index(n) < padded)
        found_[index(n)] =
            index(n) < kept_ ? static_cast<uint64_t>(id_[n]) << 32 | f32_to_bits(weight_[n]) : ~uint64_t{0};
    sort_shared(found_, padded);
    float weight[kThreadCandidates], mine = 0, total = 0;
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n) {
      weight[n] =
          index(n) < kept_
              ? bits_to_f32(static_cast<uint32_t>(static_cast<uint64_t>(found_[index(n)]) & 0xffffffffu))
              : 0.0f;
      mine += weight[n];
    }
    float through = block_scan(mine, scratch_, total);
    const float wanted = row_.draw_number() * total;
    int passed = kNoId, last = -1;  // in the order of ids
#pragma unroll
    for (int n = 0; n < kThreadCandidates; ++n) {
      through += weight[n];
      if (weight[n] <= 0.0f) continue;
      last = index(n);
      if (through > wanted && passed == kNoId) passed = index(n);
    }
    passed = block_min(passed, scratch_.as<int32_t>());
    last = block_max(last, scratch_.as<int32_t>());
    const int chosen = passed != kNoId ? passed : last;
    return chosen >= 0 ? static_cast<int32_t>(static_cast<uint64_t>(found_[chosen]) >> 32)
                       : row_.sums.highest_id;
  }

  const Row& row_;
  Shared<uint64_t> found_;
  int count_, kept_ = 0;
  Shared<float> scratch_;
  int32_t id_[kThreadCandidates];
  float value_[kThreadCandidates], weight_[kThreadCandidates];
};

}  // namespace quire::QUIRE_SIDE
