#include "kernels/cpu/attention_partials.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/base/f32_at.h"

namespace quire::cpu {
namespace {

// A row and query head with the list that it reads.
class Row {
 public:
  Row(const AttentionParams& p, DType activations, int64_t sequence, int64_t row, int64_t q_head)
      : p_(p),
        activations_(activations),
        sequence_(sequence),
        kv_head_(q_head / (p.num_q_heads / p.num_kv_heads)),
        q_at_(row * p.q_stride + q_head * p.head_dim) {
    const int64_t length = p.lengths[sequence * p.length_stride + kv_head_ * p.head_length_stride];
    index_ = length - p.query_start[sequence + 1] + row;
  }

  int64_t index() const { return index_; }

  bool sees(int64_t slot) const {
    if (is_sink(slot)) return true;
    const auto inside = [&](int64_t window) { return window == 0 || slot > index_ - window; };
    return inside(p_.window) && (p_.windows == nullptr || inside(p_.windows[sequence_]));
  }

  float logit(int64_t slot) const {
    const void* q = is_sink(slot) ? p_.q_sink : p_.q;
    const char* k = key(slot);
    float dot = 0;
    for (int64_t i = 0; i < p_.head_dim; ++i)
      dot += f32_at(activations_, q, q_at_ + i) * f32_at(p_.layout.dtype, k, i);
    const float scaled = dot * p_.scale;
    return p_.soft_cap == 0 ? scaled : p_.soft_cap * std::tanh(scaled / p_.soft_cap);
  }

  void add_value(int64_t slot, float weight, float* values) const {
    const char* v = key(slot) + p_.layout.kv_stride();
    for (int64_t i = 0; i < p_.head_dim; ++i) values[i] += weight * f32_at(p_.layout.dtype, v, i);
  }

 private:
  bool is_sink(int64_t slot) const { return p_.q_sink != nullptr && slot < p_.sink_slots[sequence_]; }
  const char* key(int64_t slot) const {
    const bool own_list = p_.head_table_stride != 0;
    const int64_t table = sequence_ * p_.table_stride + kv_head_ * p_.head_table_stride;
    const int64_t block = p_.block_table[table + slot / p_.layout.block_tokens];
    return p_.arena + block * p_.layout.block_bytes() + (own_list ? 0 : kv_head_) * p_.layout.head_stride() +
           slot % p_.layout.block_tokens * p_.layout.token_bytes();
  }

  const AttentionParams& p_;
  DType activations_;
  int64_t sequence_, kv_head_, q_at_, index_ = 0;
};

// The largest logit is followed as it rises: one pass, and nothing is kept of the logits.
void write_segment(const Row& row, int64_t begin, int64_t end, int64_t dim, float* out) {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0;
  std::fill_n(out, dim, 0.0f);
  for (int64_t slot = begin; slot < end; ++slot) {
    if (!row.sees(slot)) continue;
    const float logit = row.logit(slot);
    if (logit > largest) {
      const float factor = std::exp(largest - logit);
      for (int64_t i = 0; i < dim; ++i) out[i] *= factor;
      sum *= factor;
      largest = logit;
    }
    const float weight = std::exp(logit - largest);
    sum += weight;
    row.add_value(slot, weight, out);
  }
  out[dim] = largest;
  out[dim + 1] = sum;
}

}  // namespace

void write_attention_partials(const AttentionParams& p, DType activations, ThreadPool& pool) {
  const int64_t floats = p.head_dim + 2;
  for (int64_t sequence = 0; sequence < p.num_sequences; ++sequence) {
    const int64_t first = p.query_start[sequence], rows = p.query_start[sequence + 1] - first;
    pool.run(rows * p.num_q_heads, [&](int64_t unit, int /*thread*/) {
      const int64_t row = first + unit / p.num_q_heads, q_head = unit % p.num_q_heads;
      const Row r(p, activations, sequence, row, q_head);
      float* out = p.partials + (row * p.num_q_heads + q_head) * p.num_segments * floats;
      for (int64_t s = 0; s < p.num_segments; ++s)
        write_segment(r, s * p.segment_slots, std::min((s + 1) * int64_t{p.segment_slots}, r.index() + 1),
                      p.head_dim, out + s * floats);
    });
  }
}

}  // namespace quire::cpu
