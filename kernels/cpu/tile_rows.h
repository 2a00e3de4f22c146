// The ops that work row by row: embed, add_rms_norm, rope_kv_write, silu_mul. Rows do not meet, and a row's
// sums have one order: sixteen lanes over the row, then the lanes.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {
namespace {

template <class V>
float sum_of_squares(const float* x, int64_t count) {
  typename V::F sum = V::zero();
  for (int64_t i = 0; i < count; i += 16) {
    const typename V::F part = load_some<V>(x + i, count - i);
    sum = V::fma(part, part, sum);
  }
  return V::sum(sum);
}

template <class V>
float rms_scale(float squares, int64_t count, float eps) {
  return 1.0f / std::sqrt(squares / static_cast<float>(count) + eps);
}

template <class V, class Act, class Table>
void embed_rows(const EmbedParams& p, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const Table* source = static_cast<const Table*>(p.table) + p.ids[r] * p.hidden;
    Act* target = static_cast<Act*>(p.out) + r * p.hidden;
    for (int64_t i = 0; i < p.hidden; i += 16) {
      store_some<V>(target + i, load_some<V>(source + i, p.hidden - i), p.hidden - i);
    }
  }
}

template <class V>
void embed(const EmbedParams& p, DType act, int64_t first, int64_t last) {
  with_element(act, [&](auto a) {
    with_element(p.table_dtype, [&](auto t) { embed_rows<V, decltype(a), decltype(t)>(p, first, last); });
  });
}

template <class Act>
const Act* delta_of(const AddRmsNormParams& p, int64_t row) {
  return p.delta == nullptr ? nullptr : static_cast<const Act*>(p.delta) + row * p.hidden;
}

// residual + delta of one row, rounded to the activation type (the norm sees what the next layer will),
// written back where the op says so. Returns the sum of squares.
template <class V, class Act>
float add_delta(const AddRmsNormParams& p, int64_t source) {
  Act* residual = static_cast<Act*>(p.residual) + source * p.hidden;
  const Act* delta = delta_of<Act>(p, source);
  typename V::F squares = V::zero();
  for (int64_t i = 0; i < p.hidden; i += 16) {
    const int64_t count = std::min<int64_t>(16, p.hidden - i);
    typename V::F x = load_some<V>(residual + i, count);
    if (delta != nullptr) {
      Act rounded[16];
      V::store(rounded, V::add(x, load_some<V>(delta + i, count)));
      x = V::load(rounded);
      if (p.row_index == nullptr) store_some<V>(residual + i, x, count);
    }
    squares = V::fma(x, x, squares);
  }
  return V::sum(squares);
}

template <class V, class Act>
void norm_rows(const AddRmsNormParams& p, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const int64_t source = p.row_index == nullptr ? r : p.row_index[r];
    const typename V::F scale = V::set(rms_scale<V>(add_delta<V, Act>(p, source), p.hidden, p.eps));
    const Act* residual = static_cast<const Act*>(p.residual) + source * p.hidden;
    const Act* delta = delta_of<Act>(p, source);
    Act* out = static_cast<Act*>(p.out) + r * p.hidden;
    const bool adds = delta != nullptr && p.row_index != nullptr;  // nothing was written back
    for (int64_t i = 0; i < p.hidden; i += 16) {
      const int64_t count = std::min<int64_t>(16, p.hidden - i);
      typename V::F x = load_some<V>(residual + i, count);
      if (adds) {
        Act rounded[16];
        V::store(rounded, V::add(x, load_some<V>(delta + i, count)));
        x = V::load(rounded);
      }
      store_some<V>(out + i, V::mul(V::mul(x, scale), load_some<V>(p.weight + i, count)), count);
    }
  }
}

template <class V>
void add_rms_norm(const AddRmsNormParams& p, DType act, int64_t first, int64_t last) {
  with_element(act, [&](auto a) { norm_rows<V, decltype(a)>(p, first, last); });
}

template <class V, class Act>
void silu_columns(const SiluMulParams& p, int64_t row, int64_t first, int64_t last) {
  const Act* gate = static_cast<const Act*>(p.gate_up) + row * 2 * p.width;
  Act* out = static_cast<Act*>(p.out) + row * p.width;
  for (int64_t i = first; i < last; i += 16) {
    const typename V::F g = load_some<V>(gate + i, last - i);
    const typename V::F weight = V::add(V::set(1), exp<V>(V::sub(V::zero(), g)));
    store_some<V>(out + i, V::mul(V::div(g, weight), load_some<V>(gate + p.width + i, last - i)), last - i);
  }
}

template <class V>
void silu_mul(const SiluMulParams& p, DType act, int64_t row, int64_t first, int64_t last) {
  with_element(act, [&](auto a) { silu_columns<V, decltype(a)>(p, row, first, last); });
}

// One head in f32: RMSNorm where a weight is given, then the rotation of the pairs (i, i + rotary_dim / 2).
template <class V, class Act>
void norm_and_rotate(const RopeKvWriteParams& p, const Act* head, const float* norm, int64_t position,
                     float* x) {
  const int64_t dim = p.head_dim, half = p.rotary_dim / 2;
  for (int64_t i = 0; i < dim; i += 16) store_some<V>(x + i, load_some<V>(head + i, dim - i), dim - i);
  if (norm != nullptr) {
    const typename V::F scale = V::set(rms_scale<V>(sum_of_squares<V>(x, dim), dim, p.norm_eps));
    for (int64_t i = 0; i < dim; i += 16) {
      const typename V::F scaled = V::mul(load_some<V>(x + i, dim - i), scale);
      store_some<V>(x + i, V::mul(scaled, load_some<V>(norm + i, dim - i)), dim - i);
    }
  }
  for (int64_t i = 0; i < half; i += 16) {
    const float* turn = p.cos_sin + position * dim + i;
    const typename V::F cos = load_some<V>(turn, half - i), sin = load_some<V>(turn + half, half - i);
    const typename V::F a = load_some<V>(x + i, half - i), b = load_some<V>(x + half + i, half - i);
    store_some<V>(x + i, V::sub(V::mul(a, cos), V::mul(b, sin)), half - i);
    store_some<V>(x + half + i, V::fma(a, sin, V::mul(b, cos)), half - i);
  }
}

template <class V, class Target, class Source>
void convert(Target* target, const Source* source, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    store_some<V>(target + i, load_some<V>(source + i, count - i), count - i);
  }
}

template <class V, class Act, class Kv>
void write_kv(const RopeKvWriteParams& p, int64_t row, int64_t head, const float* k, const Act* v) {
  const bool own_list = p.slot_stride != 1;
  const int64_t slot = p.slots[row * p.slot_stride + (own_list ? head : 0)];
  if (slot < 0) return;
  char* target = p.arena + slot / p.layout.block_tokens * p.layout.block_bytes() +
                 (p.layout.num_kv_heads == 1 ? 0 : head) * p.layout.head_stride() +
                 slot % p.layout.block_tokens * p.layout.token_bytes();
  convert<V>(reinterpret_cast<Kv*>(target), k, p.head_dim);
  convert<V>(reinterpret_cast<Kv*>(target + p.layout.kv_stride()), v, p.head_dim);
}

template <class V>
bool is_padding(const RopeKvWriteParams& p, int64_t row) {
  if (p.num_kv_heads == 0) return false;  // a layer that only reads: no slots
  const int64_t* slots = p.slots + row * p.slot_stride;
  return std::all_of(slots, slots + p.slot_stride, [](int64_t slot) { return slot < 0; });
}

template <class V, class Act>
void rotate_queries(const RopeKvWriteParams& p, const Act* q, int64_t position, Act* out) {
  float x[kMaxHeadDim];
  for (int64_t h = 0; h < p.num_q_heads; ++h) {
    norm_and_rotate<V>(p, q + h * p.head_dim, p.q_norm, position, x);
    convert<V>(out + h * p.head_dim, x, p.head_dim);
  }
}

template <class V, class Act, class Kv>
void rope_rows(const RopeKvWriteParams& p, int64_t first, int64_t last) {
  float x[kMaxHeadDim];
  for (int64_t r = first; r < last; ++r) {
    if (is_padding<V>(p, r)) continue;
    const int64_t stride = (p.num_q_heads + 2 * p.num_kv_heads) * p.head_dim;
    const int64_t position = p.rotary_dim > 0 ? p.positions[r] : 0;
    Act* q = static_cast<Act*>(p.qkv) + r * stride;
    Act* q_out = p.q_out == nullptr ? q : static_cast<Act*>(p.q_out) + r * p.num_q_heads * p.head_dim;
    // Before q is rotated in place.
    if (p.q_sink_out != nullptr)
      rotate_queries<V>(p, q, p.sink_positions[r], static_cast<Act*>(p.q_sink_out) + r * stride);
    rotate_queries<V>(p, q, position, q_out);
    for (int64_t h = 0; h < p.num_kv_heads; ++h) {
      const Act* k = q + (p.num_q_heads + h) * p.head_dim;
      norm_and_rotate<V>(p, k, p.k_norm, position, x);
      write_kv<V, Act, Kv>(p, r, h, x, k + p.num_kv_heads * p.head_dim);
    }
  }
}

template <class V>
void rope_kv_write(const RopeKvWriteParams& p, DType act, int64_t first, int64_t last) {
  with_element(act, [&](auto a) {
    with_element(p.layout.dtype, [&](auto kv) { rope_rows<V, decltype(a), decltype(kv)>(p, first, last); });
  });
}

}  // namespace
}  // namespace quire::cpu
