#include "tests/golden/model_runner.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "src/base/random.h"
#ifdef QUIRE_GOLDEN_CUDA_HOST
#include "kernels/cuda/host_device.h"
#endif
#include "src/model/config.h"

namespace quire::golden {
namespace {

Result<std::unique_ptr<Device>> open_device(BackEnd back_end) {
#ifdef QUIRE_GOLDEN_CUDA_HOST
  if (back_end == BackEnd::kCudaHost) return std::unique_ptr<Device>(open_cuda_host_device());
#endif
  if (back_end == BackEnd::kCudaHost) return error(Code::kUnavailable, "built without the CUDA kernels");
  return open_cpu_device(0);
}

Result<std::unique_ptr<Kernels>> make_kernels(Device& device, const RunnerOptions& options) {
  [[maybe_unused]] const KernelOptions of_kernels{.activations = options.activations, .threads = 0};
  if (options.back_end == BackEnd::kReference) return make_reference_kernels(device);
#ifdef QUIRE_GOLDEN_CUDA_HOST
  if (options.back_end == BackEnd::kCudaHost) return make_cuda_kernels(device, of_kernels);
#endif
#ifdef QUIRE_GOLDEN_CPU
  if (options.back_end == BackEnd::kCpu) return make_cpu_kernels(device, of_kernels);
#endif
  return error(Code::kUnavailable, "built without these kernels");
}

std::vector<int32_t> scrambled(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  Random random(7);
  for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[random.below(i)]);
  return ids;
}

}  // namespace

Result<std::unique_ptr<ModelRunner>> ModelRunner::open(const std::string& model_dir,
                                                       const RunnerOptions& options) {
  Result<ModelSpec> spec = read_model_config(model_dir);
  if (!spec) return spec.error();
  auto runner = std::make_unique<ModelRunner>();
  Result<std::unique_ptr<Device>> device = open_device(options.back_end);
  if (!device) return device.error();
  runner->device_ = std::move(*device);
  Result<std::unique_ptr<Kernels>> kernels = make_kernels(*runner->device_, options);
  if (!kernels) return kernels.error();
  runner->kernels_ = std::move(*kernels);
  Result<std::unique_ptr<WeightSource>> source = open_checkpoint_source(model_dir, *spec);
  if (!source) return source.error();
  Result<Weights> weights = load_weights(**source, *spec, *runner->kernels_);
  if (!weights) return weights.error();

  const int32_t context = options.max_context_tokens > 0 ? options.max_context_tokens : spec->max_positions;
  runner->layout_ = {.dtype = options.kv,
                     .num_layers = spec->num_layers,
                     .num_kv_heads = spec->num_kv_heads,
                     .head_dim = spec->head_dim,
                     .block_tokens = options.block_tokens};
  const int32_t blocks = (context + options.block_tokens - 1) / options.block_tokens;
  runner->block_table_ = scrambled(blocks);
  Result<DeviceBuffer> arena = runner->device_->allocate(blocks * runner->layout_.block_bytes(), "cache");
  if (!arena) return arena.error();
  runner->arena_ = std::move(*arena);
  const ForwardLimits limits{
      .max_rows = context, .max_logits_rows = context, .max_sequences = 1, .max_context_tokens = context};
  const int64_t before = runner->device_->allocated_bytes();
  Result<std::unique_ptr<ForwardPass>> pass = ForwardPass::create(
      *runner->kernels_, *spec, std::move(*weights), limits, runner->layout_, runner->arena_.as<char>());
  if (!pass) return pass.error();
  const int64_t taken = runner->device_->allocated_bytes() - before,
                planned = ForwardPass::workspace_bytes(*runner->kernels_, *spec, limits);
  // On the shim what weights were sent through is given back meanwhile; there golden_device_calls holds plan and memory against each other.
  if (taken != planned && options.back_end != BackEnd::kCudaHost)
    return error(Code::kInternal, "the forward pass took " + std::to_string(taken) +
                                      " bytes; its memory plan has " + std::to_string(planned));
  runner->pass_ = std::move(*pass);
  return runner;
}

std::vector<float> ModelRunner::run(std::span<const int32_t> ids, bool all_rows) {
  const auto rows = static_cast<int32_t>(ids.size());
  std::vector<int32_t> positions(ids.size());
  std::vector<int64_t> slots(ids.size());
  for (int32_t i = 0; i < rows; ++i) {
    const int32_t at = length_ + i, block = block_table_[static_cast<size_t>(at / layout_.block_tokens)];
    positions[static_cast<size_t>(i)] = at;
    slots[static_cast<size_t>(i)] = int64_t{block} * layout_.block_tokens + at % layout_.block_tokens;
  }
  length_ += rows;
  const std::vector<int32_t> query_start = {0, rows};
  const int32_t last = rows - 1;
  const StepArrays step{.ids = ids.data(),
                        .positions = positions.data(),
                        .slots = slots.data(),
                        .query_start = query_start.data(),
                        .lengths = &length_,
                        .block_table = block_table_.data(),
                        .logits_rows = &last,
                        .rows = rows,
                        .table_stride = static_cast<int64_t>(block_table_.size()),
                        .num_logits_rows = all_rows ? rows : 1,
                        .num_sequences = 1,
                        .max_rows = rows,
                        .max_length = length_,
                        .all_rows_have_logits = all_rows};
  std::vector<float> logits(static_cast<size_t>(step.num_logits_rows * spec().vocab_size));
  pass_->run(step, logits.data());
  return logits;
}

std::vector<float> ModelRunner::extend(std::span<const int32_t> ids) {
  return run(ids, true);
}
std::vector<float> ModelRunner::extend_last(std::span<const int32_t> ids) {
  return run(ids, false);
}

std::vector<int32_t> ModelRunner::greedy(std::span<const int32_t> prompt, int32_t count,
                                         int32_t chunk_tokens) {
  clear();
  std::vector<float> row;
  for (size_t at = 0; at < prompt.size(); at += static_cast<size_t>(chunk_tokens)) {
    row = extend_last(prompt.subspan(at, std::min(static_cast<size_t>(chunk_tokens), prompt.size() - at)));
  }
  std::vector<int32_t> out = {argmax(row)};
  while (static_cast<int32_t>(out.size()) < count)
    out.push_back(argmax(extend_last(std::span(&out.back(), 1))));
  return out;
}

int32_t argmax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

std::string repository_root() {
  const char* root = std::getenv("QUIRE_ROOT");
  return root != nullptr ? root : ".";
}

std::string shared_dir() {
  const char* shared = std::getenv("QUIRE_SHARED");
  const std::string path = shared != nullptr ? shared : repository_root() + "/../shared";
  return std::filesystem::is_directory(path) ? path : "";
}

}  // namespace quire::golden
