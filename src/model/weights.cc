#include "src/model/weights.h"

#include <fmt/format.h>

#include <optional>
#include <span>
#include <unordered_map>

#include "src/base/check.h"
#include "src/base/clock.h"
#include "src/base/f32_at.h"
#include "src/base/log.h"
#include "src/base/progress.h"

namespace quire {
namespace {

// Loads slots by name; the first fault is kept and later loads do nothing, so that the reader below stays a
// list.
class Loader {
 public:
  Loader(WeightSource& source, const ModelSpec& spec, Kernels& kernels)
      : source_(source),
        kernels_(kernels),
        progress_("reading weights", weight_bytes(source, spec, /*widens_f16=*/false), "bytes") {
    for (TensorSlot& slot : all_slots(spec)) {
      std::string name = slot.name;
      slots_.emplace(std::move(name), std::move(slot));
    }
  }

  std::unique_ptr<MatmulWeight> matrix(std::initializer_list<std::string> names) {
    if (fault_) return nullptr;
    std::vector<HostTensor> parts;
    std::vector<HostMatrix> matrices;
    for (const std::string& name : names) {
      parts.push_back(tensor(name));
      matrices.push_back(parts.back().matrix);
    }
    return packed(kernels_.pack(matrices), matrices);
  }

  // The gate's and the up projection's rows, in the back end's order.
  std::unique_ptr<MatmulWeight> gate_up(const std::string& gate, const std::string& up) {
    if (fault_) return nullptr;
    const HostTensor parts[] = {tensor(gate), tensor(up)};
    const HostMatrix matrices[] = {parts[0].matrix, parts[1].matrix};
    return packed(kernels_.pack_gate_up(matrices[0], matrices[1]), matrices);
  }

  // The biases of a weight from gate_up(), in its order.
  DeviceBuffer gate_up_bias(const std::string& gate, const std::string& up, int32_t gate_group) {
    std::vector<float> parts;
    append_floats(tensor(gate).matrix, parts);
    append_floats(tensor(up).matrix, parts);
    const auto width = static_cast<int64_t>(parts.size() / 2),
               group = gate_group > 0 ? int64_t{gate_group} : width;
    std::vector<float> ordered;
    for (int64_t first = 0; first < width; first += group)
      for (const int64_t part : {int64_t{0}, width})
        ordered.insert(ordered.end(), parts.begin() + part + first, parts.begin() + part + first + group);
    return upload(ordered.data(), static_cast<int64_t>(ordered.size() * sizeof(float)), "norms and biases");
  }

  // One vector after another, as f32.
  DeviceBuffer vector(std::initializer_list<std::string> names) {
    std::vector<float> values;
    for (const std::string& name : names) append_floats(tensor(name).matrix, values);
    return upload(values.data(), static_cast<int64_t>(values.size() * sizeof(float)), "norms and biases");
  }

  DeviceBuffer table(const std::string& name, DType& dtype) {
    const HostTensor t = tensor(name);
    dtype = t.matrix.dtype;
    return upload(t.matrix.data, t.matrix.rows * t.matrix.cols * bytes_of(dtype), "embedding");
  }

  const std::optional<Error>& fault() const { return fault_; }

  // A mapping's pages are read when they are copied, which counts for the device.
  void report() const {
    const int64_t all_us = clock_.now_us() - begun_us_;
    log_line(LogLevel::kInfo, "weights_loaded",
             {{"ms", all_us / 1000},
              {"source_ms", source_us_ / 1000},
              {"device_ms", (all_us - source_us_) / 1000}});
  }

 private:
  HostTensor tensor(const std::string& name) {
    const int64_t from = clock_.now_us();
    HostTensor t = source_.tensor(slot(name));
    source_us_ += clock_.now_us() - from;
    return t;
  }

  std::unique_ptr<MatmulWeight> packed(Result<std::unique_ptr<MatmulWeight>> weight,
                                       std::span<const HostMatrix> from) {
    for (const HostMatrix& m : from) progress_.advance(m.rows * m.cols * bytes_of(m.dtype));
    if (weight) return std::move(*weight);
    fault_ = weight.error();
    return nullptr;
  }

  const TensorSlot& slot(const std::string& name) const {
    const auto it = slots_.find(name);
    if (it != slots_.end()) return it->second;
    check_failed(fmt::format("weights: the model has no tensor {}", name), __FILE__, __LINE__);
  }

  static void append_floats(const HostMatrix& m, std::vector<float>& out) {
    for (int64_t i = 0; i < m.rows * m.cols; ++i) out.push_back(f32_at(m.dtype, m.data, i));
  }

  DeviceBuffer upload(const void* host, int64_t bytes, const char* what) {
    if (fault_) return {};
    Result<DeviceBuffer> buffer = kernels_.device().allocate(bytes, what);
    if (!buffer) {
      fault_ = buffer.error();
      return {};
    }
    kernels_.device().copy_to_device(buffer->data(), host, bytes);
    kernels_.device().synchronize();  // `host` may be a temporary
    progress_.advance(bytes);
    return std::move(*buffer);
  }

  WeightSource& source_;
  Kernels& kernels_;
  std::unordered_map<std::string, TensorSlot> slots_;
  std::optional<Error> fault_;
  Progress progress_;
  SteadyClock clock_;
  int64_t begun_us_ = clock_.now_us(), source_us_ = 0;
};

LayerWeights load_layer(Loader& load, const ModelSpec& spec, int32_t layer) {
  const auto name = [&](const char* rest) { return layer_tensor_name(layer, rest); };
  LayerWeights w;
  w.input_norm = load.vector({name("input_layernorm.weight")});
  w.post_norm = load.vector({name("post_attention_layernorm.weight")});
  w.qkv = load.matrix(
      {name("self_attn.q_proj.weight"), name("self_attn.k_proj.weight"), name("self_attn.v_proj.weight")});
  w.o = load.matrix({name("self_attn.o_proj.weight")});
  w.gate_up = load.gate_up(name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"));
  w.down = load.matrix({name("mlp.down_proj.weight")});
  if (spec.qkv_bias)
    w.qkv_bias = load.vector(
        {name("self_attn.q_proj.bias"), name("self_attn.k_proj.bias"), name("self_attn.v_proj.bias")});
  if (spec.o_bias) w.o_bias = load.vector({name("self_attn.o_proj.bias")});
  if (spec.mlp_bias && w.gate_up != nullptr)
    w.gate_up_bias =
        load.gate_up_bias(name("mlp.gate_proj.bias"), name("mlp.up_proj.bias"), w.gate_up->gate_group);
  if (spec.mlp_bias) w.down_bias = load.vector({name("mlp.down_proj.bias")});
  if (spec.qk_norm) w.q_norm = load.vector({name("self_attn.q_norm.weight")});
  if (spec.qk_norm) w.k_norm = load.vector({name("self_attn.k_norm.weight")});
  return w;
}

}  // namespace

Result<Weights> load_weights(WeightSource& source, const ModelSpec& spec, Kernels& kernels) {
  Loader load(source, spec, kernels);
  Weights weights;
  const std::string embedding = embedding_slot(spec).name;
  weights.embedding = load.table(embedding, weights.embedding_dtype);
  for (int32_t i = 0; i < spec.num_layers && !load.fault(); ++i)
    weights.layers.push_back(load_layer(load, spec, i));
  weights.final_norm = load.vector({final_norm_slot(spec).name});
  weights.lm_head = load.matrix({spec.tied_embeddings ? embedding : lm_head_slot(spec).name});
  if (load.fault()) return *load.fault();
  load.report();
  return weights;
}

int64_t weight_bytes(const WeightSource& source, const ModelSpec& spec, bool widens_f16) {
  int64_t sum = 0;
  for (const TensorSlot& slot : all_slots(spec)) {
    const DType dtype = source.dtype_of(slot);
    const int64_t count = slot.rows() * slot.cols();
    const int64_t stored = count * bytes_of(dtype);
    const int64_t packed = dtype == DType::kF16 && widens_f16 ? count * 4 : stored;
    if (slot.kind == TensorKind::kMatrix)
      sum += packed;
    else if (slot.kind == TensorKind::kEmbedding)
      sum += stored + (spec.tied_embeddings ? packed : 0);
    else
      sum += count * 4;
  }
  return sum;
}

}  // namespace quire
