// A layer of a decode step without its attention, by rows: norm, q, k, v, rope, attention's output, norm, gate and up, SiLU, down, as
// src/model/forward.cc asks for them, in one graph over several layers' weights. Products that are fast by themselves may be slow here: what
// a kernel fetches before the one before it has ended keeps that one waiting, and nothing hides its last blocks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "benchmarks/cuda/step_bench.h"

namespace quire::bench {
namespace {

struct Model {
  const char* name;
  int64_t hidden, intermediate;
  int32_t q_heads, kv_heads, head_dim;
  int layers;  // together several times L2
  int64_t qkv() const { return int64_t{q_heads + 2 * kv_heads} * head_dim; }
  int64_t attention() const { return int64_t{q_heads} * head_dim; }
  int64_t weights() const { return hidden * (qkv() + attention() + 3 * intermediate); }
};
constexpr Model kModels[] = {{"Llama-3.1-8B", 4096, 14336, 32, 8, 128, 3},
                             {"Qwen3-0.6B", 1024, 3072, 16, 8, 128, 6}};
constexpr Model kTinyModel = {"tiny", 64, 96, 4, 2, 32, 2};
constexpr int64_t kMostRows = 256;

class Layer {
 public:
  Layer(Rig& rig, const Model& model)
      : rig_(rig),
        m_(model),
        layout_{.dtype = DType::kBF16,
                .num_layers = 1,
                .num_kv_heads = model.kv_heads,
                .head_dim = model.head_dim,
                .block_tokens = 16},
        residual_(rows_of(m_.hidden, "residual")),
        delta_(rows_of(m_.hidden, "delta")),
        normed_(rows_of(m_.hidden, "norm")),
        qkv_(rows_of(m_.qkv(), "qkv")),
        attention_(rows_of(m_.attention(), "attention")),
        gate_up_(rows_of(2 * m_.intermediate, "gate and up")),
        product_(rows_of(m_.intermediate, "SiLU")),
        arena_(rig.random(kMostRows / 16 * layout_.block_bytes() / 2, 7, "blocks")),
        ones_(rig.upload(std::vector<float>(static_cast<size_t>(m_.hidden), 1.0f), "norm weights")),
        angles_(
            rig.upload(std::vector<float>(static_cast<size_t>(kMostRows * m_.head_dim), 0.7f), "angles")) {
    std::vector<int32_t> positions(kMostRows);
    std::iota(positions.begin(), positions.end(), 0);
    positions_ = rig.upload(positions, "positions");
    slots_ = rig.upload(std::vector<int64_t>(positions.begin(), positions.end()), "slots");
    pack(qkv_weights_, m_.qkv(), m_.hidden);
    pack(o_weights_, m_.hidden, m_.attention());
    pack(gate_up_weights_, 2 * m_.intermediate, m_.hidden);
    pack(down_weights_, m_.hidden, m_.intermediate);
  }

  // As an engine does at its start.
  void tune() {
    std::vector<const MatmulWeight*> all;
    for (size_t i = 0; i < o_weights_.size(); ++i)
      for (const auto* w : {&qkv_weights_, &o_weights_, &gate_up_weights_, &down_weights_})
        all.push_back((*w)[i].get());
    rig_.kernels().tune({.weights = all, .max_rows = kMostRows, .budget_ms = 2000});
    rig_.rest();
  }

  void run(int at, int64_t rows) {
    at_ = static_cast<size_t>(at) % o_weights_.size(), rows_ = rows;
    fused_ = rows <= rig_.kernels().fused_rows();
    norm_product(qkv_weights_, qkv_);
    rope();
    add_product(o_weights_, attention_);
    mlp();
    add_product(down_weights_, product_);
  }

 private:
  using Weights = std::vector<std::unique_ptr<MatmulWeight>>;

  DeviceBuffer rows_of(int64_t width, const char* what) {
    return rig_.random(kMostRows * width, static_cast<uint32_t>(width), what);
  }
  void pack(Weights& weights, int64_t n, int64_t k) {
    const std::vector<uint16_t> host =
        random_host(n * k, static_cast<uint64_t>(n), 1.0f / std::sqrt(static_cast<float>(k)));
    const HostMatrix whole{.data = host.data(), .dtype = DType::kBF16, .rows = n, .cols = k};
    HostMatrix half = whole;
    half.rows /= 2;
    for (int i = 0; i < m_.layers; ++i)
      weights.push_back(value_or_exit(&weights == &gate_up_weights_ ? rig_.kernels().pack_gate_up(half, half)
                                                                    : rig_.kernels().pack({&whole, 1})));
  }

  void norm() {
    rig_.kernels().add_rms_norm({.residual = residual_.data(),
                                 .delta = delta_.data(),
                                 .weight = ones_.as<float>(),
                                 .out = normed_.data(),
                                 .eps = 1e-5f,
                                 .rows = rows_,
                                 .hidden = m_.hidden});
  }
  FusedMatmulParams fused(const Weights& weights) const {
    return {.x = residual_.data(),
            .norm_weight = ones_.as<float>(),
            .norm_eps = 1e-5f,
            .normed = normed_.data(),
            .weight = weights[at_].get(),
            .m = rows_};
  }
  void norm_product(const Weights& weights, DeviceBuffer& out) {
    if (fused_) {
      FusedMatmulParams p = fused(weights);
      p.out = out.data();
      return rig_.kernels().fused_matmul(p);
    }
    norm();
    rig_.kernels().matmul({.x = normed_.data(), .weight = weights[at_].get(), .out = out.data(), .m = rows_});
  }
  void add_product(const Weights& weights, const DeviceBuffer& x) {
    const MatmulWeight* w = weights[at_].get();
    fused_
        ? rig_.kernels().fused_matmul({.x = x.data(), .weight = w, .residual = residual_.data(), .m = rows_})
        : rig_.kernels().matmul({.x = x.data(), .weight = w, .out = delta_.data(), .m = rows_});
  }
  void mlp() {
    const MatmulWeight& w = *gate_up_weights_[at_];
    if (!fused_ && !rig_.kernels().gates(w, rows_)) {
      norm_product(gate_up_weights_, gate_up_);
      return rig_.kernels().silu_mul({.gate_up = gate_up_.data(),
                                      .gate_group = w.gate_group,
                                      .out = product_.data(),
                                      .rows = rows_,
                                      .width = m_.intermediate});
    }
    FusedMatmulParams p = fused(gate_up_weights_);
    p.gated = true;
    p.out = product_.data();
    if (!fused_) {
      norm();
      p.x = normed_.data(), p.norm_weight = nullptr;
    }
    rig_.kernels().fused_matmul(p);
  }
  void rope() {
    rig_.kernels().rope_kv_write({.qkv = qkv_.data(),
                                  .positions = positions_.as<int32_t>(),
                                  .slots = slots_.as<int64_t>(),
                                  .cos_sin = angles_.as<float>(),
                                  .rotary_dim = m_.head_dim,
                                  .arena = arena_.as<char>(),
                                  .layout = layout_,
                                  .num_q_heads = m_.q_heads,
                                  .num_kv_heads = m_.kv_heads,
                                  .head_dim = m_.head_dim,
                                  .rows = rows_});
  }

  Rig& rig_;
  Model m_;
  KvLayout layout_;
  Weights qkv_weights_, o_weights_, gate_up_weights_, down_weights_;
  DeviceBuffer residual_, delta_, normed_, qkv_, attention_, gate_up_, product_, arena_, ones_, angles_;
  DeviceBuffer positions_, slots_;
  size_t at_ = 0;
  int64_t rows_ = 0;
  bool fused_ = false;
};

}  // namespace

void bench_layer(Rig& rig, Report& report, bool tiny, const std::vector<std::string>& only) {
  for (const Model& model : tiny ? std::span(&kTinyModel, 1) : std::span<const Model>(kModels)) {
    std::vector<Line> lines;
    for (const int64_t rows : {16, 32, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256}) {
      if (tiny && rows > 32) continue;
      Line line{.part = "layer", .name = fmt::format("{} at {} rows", model.name, rows)};
      if (!only.empty() && std::find(only.begin(), only.end(), line.name) == only.end()) continue;
      line.bytes = static_cast<double>(model.weights()) * 2;
      line.more = {{"rows", rows}};
      lines.push_back(std::move(line));
    }
    if (lines.empty()) continue;
    Layer layer(rig, model);
    if (!tiny) layer.tune();
    for (Line& line : lines) {
      const auto rows = line.more["rows"].get<int64_t>();
      line.time = rig.time(2 * model.layers, [&](int i) { layer.run(i, rows); });
      report.add(line);
    }
  }
}

}  // namespace quire::bench
