#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/op_checks.h"
#include "kernels/reference/reference_ops.h"

namespace quire::reference {
namespace {

// One (sequence, query head) and the list it reads.
struct HeadView {
  const AttentionParams& p;
  int64_t sequence, q_head, kv_head;

  bool own_list() const { return p.head_table_stride != 0; }
  int64_t length() const { return p.lengths[sequence * p.length_stride + kv_head * p.head_length_stride]; }
  int64_t first_row() const { return p.query_start[sequence]; }
  int64_t num_rows() const { return p.query_start[sequence + 1] - first_row(); }

  const char* k_of(int64_t slot) const {
    const int64_t table = sequence * p.table_stride + kv_head * p.head_table_stride;
    const int64_t block = p.block_table[table + slot / p.layout.block_tokens];
    return p.arena + block * p.layout.block_bytes() + (own_list() ? 0 : kv_head) * p.layout.head_stride() +
           slot % p.layout.block_tokens * p.layout.token_bytes();
  }
  double v(int64_t slot, int64_t i) const {
    return load(k_of(slot) + p.layout.kv_stride(), p.layout.dtype, i);
  }

  bool is_sink(int64_t slot) const { return p.q_sink != nullptr && slot < p.sink_slots[sequence]; }
  // Does the row at `index` of the list see the slot?
  bool sees(int64_t index, int64_t slot) const {
    if (is_sink(slot)) return true;
    const auto inside = [&](int64_t window) { return window == 0 || slot > index - window; };
    return inside(p.window) && (p.windows == nullptr || inside(p.windows[sequence]));
  }

  double logit(int64_t row, int64_t slot) const {
    const bool sink = is_sink(slot);
    const float* q =
        static_cast<const float*>(sink ? p.q_sink : p.q) + row * p.q_stride + q_head * p.head_dim;
    double sum = 0;
    const char* k = k_of(slot);
    for (int64_t i = 0; i < p.head_dim; ++i) sum += q[i] * load(k, p.layout.dtype, i);
    const double scaled = sum * p.scale;
    return p.soft_cap == 0 ? scaled : p.soft_cap * std::tanh(scaled / p.soft_cap);
  }
};

struct Softmax {
  std::vector<double> logits;  // [length], -inf where the row does not see the slot
  double lse = -std::numeric_limits<double>::infinity();
  double log_total = lse;  // with the sink's share

  double probability(int64_t slot) const { return std::exp(logits[slot] - log_total); }
};

double log_add(double a, double b) {
  const double most = std::max(a, b);
  return std::isinf(most) ? most : most + std::log(std::exp(a - most) + std::exp(b - most));
}

Softmax softmax_of(const HeadView& view, int64_t r) {
  Softmax s{.logits = std::vector<double>(view.length(), -std::numeric_limits<double>::infinity())};
  const int64_t index = view.length() - view.num_rows() + r;
  for (int64_t j = 0; j <= index; ++j) {
    if (!view.sees(index, j)) continue;
    s.logits[j] = view.logit(view.first_row() + r, j);
    s.lse = log_add(s.lse, s.logits[j]);
  }
  s.log_total = view.p.sinks == nullptr ? s.lse : log_add(s.lse, view.p.sinks[view.q_head]);
  return s;
}

void write_values(const HeadView& view, const Softmax& s, int64_t row) {
  const AttentionParams& p = view.p;
  std::vector<double> sums(p.head_dim);
  for (int64_t j = 0; j < view.length(); ++j) {
    if (std::isinf(s.logits[j])) continue;  // not seen, or of no weight: the slot may hold anything
    const double probability = s.probability(j);
    for (int64_t i = 0; i < p.head_dim; ++i) sums[i] += probability * view.v(j, i);
  }
  float* out = static_cast<float*>(p.out) + (row * p.num_q_heads + view.q_head) * p.head_dim;
  for (int64_t i = 0; i < p.head_dim; ++i) out[i] = static_cast<float>(sums[i]);
}

void write_side_outputs(const HeadView& view, const Softmax& s, int64_t r) {
  const AttentionParams& p = view.p;
  const int64_t head = view.sequence * p.num_q_heads + view.q_head;
  if (p.lse != nullptr)
    p.lse[(view.first_row() + r) * p.num_q_heads + view.q_head] = static_cast<float>(s.lse);
  for (int64_t j = 0; j < view.length(); ++j) {
    if (p.row_logits != nullptr && r + 1 == view.num_rows()) {
      p.row_logits[head * p.row_logits_stride + j] = static_cast<float>(s.logits[j]);
    }
    if (p.column_sums != nullptr && !std::isinf(s.logits[j])) {
      float& sum = p.column_sums[head * p.column_sums_stride + j];
      sum = static_cast<float>(sum + s.probability(j));
    }
  }
}

// Segment by segment, each with a largest logit of its own.
void write_partials(const HeadView& view, const Softmax& s, int64_t r) {
  const AttentionParams& p = view.p;
  const int64_t row = (view.first_row() + r) * p.num_q_heads + view.q_head, floats = p.head_dim + 2;
  for (int64_t segment = 0; segment < p.num_segments; ++segment) {
    const int64_t begin = segment * p.segment_slots, end = std::min(begin + p.segment_slots, view.length());
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t j = begin; j < end; ++j) largest = std::max(largest, s.logits[j]);
    std::vector<double> sums(p.head_dim);
    for (int64_t j = begin; j < end; ++j) {
      if (std::isinf(s.logits[j])) continue;
      const double weight = std::exp(s.logits[j] - largest);
      total += weight;
      for (int64_t i = 0; i < p.head_dim; ++i) sums[i] += weight * view.v(j, i);
    }
    float* out = p.partials + (row * p.num_segments + segment) * floats;
    for (int64_t i = 0; i < p.head_dim; ++i) out[i] = static_cast<float>(sums[i]);
    out[p.head_dim] = static_cast<float>(largest);
    out[p.head_dim + 1] = static_cast<float>(total);
  }
}

}  // namespace

void attention(const AttentionParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  for (int64_t sequence = 0; sequence < p.num_sequences; ++sequence) {
    for (int64_t q_head = 0; q_head < p.num_q_heads; ++q_head) {
      const HeadView view{p, sequence, q_head, q_head / (p.num_q_heads / p.num_kv_heads)};
      for (int64_t r = 0; r < view.num_rows(); ++r) {
        const Softmax s = softmax_of(view, r);
        write_values(view, s, view.first_row() + r);
        write_side_outputs(view, s, r);
        if (p.partials != nullptr) write_partials(view, s, r);
      }
    }
  }
}

}  // namespace quire::reference
