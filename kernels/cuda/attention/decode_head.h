// One query head's result in a warp while decode attention merges: warps' parts within a block, blocks' parts of a list that they
// share, and the parts that a cascade left for a shared prefix.
#pragma once

#include "kernels/cuda/attention/attention.h"

namespace quire::QUIRE_SIDE {

// Lane l has floats 4l to 4l + 3 of every 128. A partial row in memory is kDim values, the largest logit and the sum. kRowsAhead: rows
// whose loads are under way together.
template <int kDim, int kRowsAhead>
struct DecodeHead {
  static constexpr int kVectors = (kDim / 4 + kWarp - 1) / kWarp;  // float4s of a lane

  SoftmaxState state;
  float4 values[kVectors];

  __device__ static bool has_vector(int lane, int i) {
    return kDim % 128 == 0 || i * kWarp + lane < kDim / 4;
  }

  __device__ void scale(float factor) {
    state.sum *= factor;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      values[i].x *= factor;
      values[i].y *= factor;
      values[i].z *= factor;
      values[i].w *= factor;
    }
  }

  template <class Load>
  __device__ void add(int lane, float factor, Load part) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!has_vector(lane, i)) continue;
      const float4 v = part(i);
      values[i].x += v.x * factor;
      values[i].y += v.y * factor;
      values[i].z += v.z * factor;
      values[i].w += v.w * factor;
    }
  }

  __device__ void store_partial(int lane, float* target) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (has_vector(lane, i)) store(reinterpret_cast<float4*>(target) + i * kWarp + lane, values[i]);
    if (lane == 0) store(reinterpret_cast<float2*>(target + kDim), make_float2(state.largest, state.sum));
  }

  // Folds `count` partial rows in; row(j) is the j-th. States and values of a batch are under way together. The lane by reference: of a
  // copy ptxas makes other predicates than those that were measured.
  template <class Row>
  __device__ void fold(const int& lane, int count, Row row) {
    for (int from = 0; from < count; from += kRowsAhead) {
      const int here = min(kRowsAhead, count - from);
      float2 theirs = make_float2(kNegativeInfinity, 0);
      if (lane < here) theirs = load_shared_by_grid(reinterpret_cast<const float2*>(row(from + lane) + kDim));
      float4 part[kRowsAhead][kVectors];
#pragma unroll
      for (int j = 0; j < kRowsAhead; ++j) {
        if (j >= here) break;
        const float4* source = reinterpret_cast<const float4*>(row(from + j));
#pragma unroll
        for (int i = 0; i < kVectors; ++i)
          if (has_vector(lane, i)) part[j][i] = load_shared_by_grid(source + i * kWarp + lane);
      }
      const float common = fmaxf(state.largest, warp_max(theirs.x));
      scale(rescale(state.largest, common));
      const float factor = rescale(theirs.x, common);
      state = {common, state.sum + warp_sum(theirs.y * factor)};
#pragma unroll
      for (int j = 0; j < kRowsAhead; ++j) {
        if (j >= here) break;
        const float f = shfl(factor, j);
        add(lane, f, [&](int i) { return part[j][i]; });
      }
    }
  }
};

}  // namespace quire::QUIRE_SIDE
