#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/op_checks.h"
#include "kernels/reference/reference_ops.h"
#include "src/base/f32_at.h"

namespace quire {
namespace reference {

double load(const void* data, DType dtype, int64_t i) {
  return f32_at(dtype, data, i);
}

void store(void* data, DType dtype, int64_t i, double value) {
  const float f = static_cast<float>(value);
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(data)[i] = f;
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(data)[i] = f32_to_bf16(f);
      return;
    case DType::kF16:
      static_cast<uint16_t*>(data)[i] = f32_to_f16(f);
      return;
    default:
      check_failed(fmt::format("store: dtype {}, a float wanted", name_of(dtype)), __FILE__, __LINE__);
  }
}

namespace {

struct PlainWeight final : MatmulWeight {
  std::vector<float> values;  // [rows, cols]; every dtype widens to f32 without loss
};

double rms_scale(const std::vector<double>& x, double eps) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
}

// One head: RMSNorm where a weight is given, then the rotation of the pairs (i, i + rotary_dim / 2).
std::vector<double> norm_and_rotate(const RopeKvWriteParams& p, const float* head, const float* norm,
                                    int64_t position) {
  std::vector<double> x(head, head + p.head_dim);
  if (norm != nullptr) {
    const double scale = rms_scale(x, p.norm_eps);
    for (int64_t i = 0; i < p.head_dim; ++i) x[i] *= scale * norm[i];
  }
  const int64_t half = p.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float* turn = p.cos_sin + position * p.head_dim;
    const double cos = turn[i], sin = turn[half + i], a = x[i], b = x[half + i];
    x[i] = a * cos - b * sin;
    x[half + i] = b * cos + a * sin;
  }
  return x;
}

bool is_padding(const RopeKvWriteParams& p, int64_t row) {
  if (p.num_kv_heads == 0) return false;
  for (int64_t i = 0; i < p.slot_stride; ++i) {
    if (p.slots[row * p.slot_stride + i] >= 0) return false;
  }
  return true;
}

void write_kv(const RopeKvWriteParams& p, int64_t row, int64_t head, const std::vector<double>& k,
              const float* v) {
  const bool own_list = p.slot_stride != 1;
  const int64_t slot = p.slots[row * p.slot_stride + (own_list ? head : 0)];
  if (slot < 0) return;
  char* k_out = p.arena + slot / p.layout.block_tokens * p.layout.block_bytes() +
                (p.layout.num_kv_heads == 1 ? 0 : head) * p.layout.head_stride() +
                slot % p.layout.block_tokens * p.layout.token_bytes();
  for (int64_t i = 0; i < p.head_dim; ++i) {
    store(k_out, p.layout.dtype, i, k[i]);
    store(k_out + p.layout.kv_stride(), p.layout.dtype, i, v[i]);
  }
}

void rotate_queries(const RopeKvWriteParams& p, const float* q, int64_t position, float* out) {
  for (int64_t h = 0; h < p.num_q_heads; ++h) {
    const std::vector<double> x = norm_and_rotate(p, q + h * p.head_dim, p.q_norm, position);
    for (int64_t i = 0; i < p.head_dim; ++i) out[h * p.head_dim + i] = static_cast<float>(x[i]);
  }
}

// list = layer * num_kv_heads + head
void move_slot(const MoveSlotsParams& p, int64_t list, int64_t to) {
  const KvLayout& layout = p.layout;
  const int64_t from =
      p.source_slots[p.source_index(list / layout.num_kv_heads, list % layout.num_kv_heads) + to];
  const auto k_of = [&](const int32_t* blocks, int64_t slot) {
    return p.arena + blocks[slot / layout.block_tokens] * layout.block_bytes() +
           layout.k_offset(list / layout.num_kv_heads, list % layout.num_kv_heads,
                           slot % layout.block_tokens);
  };
  const char* source = k_of(p.source_blocks, from);
  char* target = k_of(p.target_blocks, to);
  std::memcpy(target, source, static_cast<size_t>(layout.token_bytes()));
  std::memcpy(target + layout.kv_stride(), source + layout.kv_stride(),
              static_cast<size_t>(layout.token_bytes()));
}

class ReferenceKernels final : public Kernels {
 public:
  explicit ReferenceKernels(Device& device) : device_(device) {}
  const KernelOptions& options() const override { return options_; }
  Device& device() override { return device_; }

  Result<std::unique_ptr<MatmulWeight>> pack(std::span<const HostMatrix> parts) override {
    check_parts(parts);
    auto weight = std::make_unique<PlainWeight>();
    weight->cols = parts[0].cols;
    for (const HostMatrix& part : parts) {
      weight->rows += part.rows;
      for (int64_t i = 0; i < part.rows * part.cols; ++i) {
        weight->values.push_back(static_cast<float>(load(part.data, part.dtype, i)));
      }
    }
    return std::unique_ptr<MatmulWeight>(std::move(weight));
  }

  Status reserve(const ScratchLimits&) override { return ok(); }
  int64_t scratch_bytes(const ScratchLimits&) const override { return 0; }

  void embed(const EmbedParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t i = 0; i < p.hidden; ++i) {
        static_cast<float*>(p.out)[r * p.hidden + i] =
            static_cast<float>(load(p.table, p.table_dtype, p.ids[r] * p.hidden + i));
      }
    }
  }

  void add_rms_norm(const AddRmsNormParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t source = p.row_index == nullptr ? r : p.row_index[r];
      float* residual = static_cast<float*>(p.residual) + source * p.hidden;
      std::vector<double> x(residual, residual + p.hidden);
      for (int64_t i = 0; i < p.hidden && p.delta != nullptr; ++i) {
        // The sum is an activation like any other: rounded to f32 before the norm sees it.
        x[i] = static_cast<float>(x[i] + static_cast<const float*>(p.delta)[source * p.hidden + i]);
        if (p.row_index == nullptr) residual[i] = static_cast<float>(x[i]);
      }
      const double scale = rms_scale(x, p.eps);
      float* out = static_cast<float*>(p.out) + r * p.hidden;
      for (int64_t i = 0; i < p.hidden; ++i) out[i] = static_cast<float>(x[i] * scale * p.weight[i]);
    }
  }

  void matmul(const MatmulParams& p) override {
    if (p.m == 0) return;
    check_op(p);
    const auto& w = static_cast<const PlainWeight&>(*p.weight);
    for (int64_t m = 0; m < p.m; ++m) {
      const float* x = static_cast<const float*>(p.x) + m * w.cols;
      for (int64_t n = 0; n < w.rows; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < w.cols; ++k) sum += static_cast<double>(x[k]) * w.values[n * w.cols + k];
        static_cast<float*>(p.out)[m * w.rows + n] =
            static_cast<float>(sum + (p.bias == nullptr ? 0 : p.bias[n]));
      }
    }
  }

  void rope_kv_write(const RopeKvWriteParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    const int64_t heads = p.num_q_heads + 2 * p.num_kv_heads;
    for (int64_t r = 0; r < p.rows; ++r) {
      if (is_padding(p, r)) continue;
      float* q = static_cast<float*>(p.qkv) + r * heads * p.head_dim;
      float* q_out = p.q_out == nullptr ? q : static_cast<float*>(p.q_out) + r * p.num_q_heads * p.head_dim;
      const int64_t position = p.rotary_dim > 0 ? p.positions[r] : 0;
      if (p.q_sink_out != nullptr) {
        float* q_sink = static_cast<float*>(p.q_sink_out) + r * heads * p.head_dim;
        rotate_queries(p, q, p.sink_positions[r], q_sink);  // first: the next may be in place
      }
      rotate_queries(p, q, position, q_out);
      for (int64_t h = 0; h < p.num_kv_heads; ++h) {
        const float* k = q + (p.num_q_heads + h) * p.head_dim;
        write_kv(p, r, h, norm_and_rotate(p, k, p.k_norm, position), k + p.num_kv_heads * p.head_dim);
      }
    }
  }

  void attention(const AttentionParams& p) override { reference::attention(p); }

  void silu_mul(const SiluMulParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    for (int64_t r = 0; r < p.rows; ++r) {
      const float* gate = static_cast<const float*>(p.gate_up) + r * 2 * p.width;
      const int64_t group = p.gate_group == 0 ? p.width : p.gate_group;
      for (int64_t i = 0; i < p.width; ++i) {
        const int64_t at = i / group * 2 * group + i % group;
        const double g = gate[at], up = gate[at + group];
        static_cast<float*>(p.out)[r * p.width + i] = static_cast<float>(g / (1 + std::exp(-g)) * up);
      }
    }
  }

  void copy_blocks(const BlockCopyParams& p) override {
    if (p.count == 0) return;
    check_op(p);
    for (int64_t i = 0; i < p.count; ++i) {
      std::memcpy(p.arena + p.pairs[2 * i + 1] * p.block_bytes, p.arena + p.pairs[2 * i] * p.block_bytes,
                  static_cast<size_t>(p.block_bytes));
    }
  }

  void move_slots(const MoveSlotsParams& p) override {
    if (p.count == 0) return;
    check_op(p);
    for (int64_t list = 0; list < int64_t{p.layout.num_layers} * p.layout.num_kv_heads; ++list)
      for (int64_t i = 0; i < p.count; ++i) move_slot(p, list, i);
  }

 private:
  Device& device_;
  KernelOptions options_;
};

}  // namespace
}  // namespace reference

std::unique_ptr<Kernels> make_reference_kernels(Device& device) {
  return std::make_unique<reference::ReferenceKernels>(device);
}

}  // namespace quire
