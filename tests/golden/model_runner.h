// One model, one sequence, no scheduler: the forward pass alone, for golden tests. The list's blocks are
// handed out in a scrambled order, so a kernel that ignores the block table cannot pass.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/model/forward.h"

namespace quire::golden {

enum class BackEnd { kReference, kCpu, kCudaHost };  // the last: the CUDA kernels on the host shim

inline const char* name_of(BackEnd back_end) {
  return back_end == BackEnd::kReference ? "reference" : back_end == BackEnd::kCpu ? "cpu" : "cuda_host";
}

struct RunnerOptions {
  BackEnd back_end = BackEnd::kReference;
  DType activations = DType::kF32;
  DType kv = DType::kF32;
  int32_t block_tokens = 16;
  int32_t max_context_tokens = 0;  // 0 = the model's
};

class ModelRunner {
 public:
  static Result<std::unique_ptr<ModelRunner>> open(const std::string& model_dir,
                                                   const RunnerOptions& options);

  // Runs `ids` after what the list holds; logits of every one of them: [ids, vocab].
  std::vector<float> extend(std::span<const int32_t> ids);
  // The same, with the logits of the last one only: [vocab].
  std::vector<float> extend_last(std::span<const int32_t> ids);
  // The likeliest next ids, one after another.
  std::vector<int32_t> greedy(std::span<const int32_t> prompt, int32_t count, int32_t chunk_tokens);
  void clear() { length_ = 0; }

  const ModelSpec& spec() const { return pass_->spec(); }

 private:
  std::vector<float> run(std::span<const int32_t> ids, bool all_rows);

  std::unique_ptr<Device> device_;
  std::unique_ptr<Kernels> kernels_;
  DeviceBuffer arena_;
  std::unique_ptr<ForwardPass> pass_;
  KvLayout layout_;
  std::vector<int32_t> block_table_;
  int32_t length_ = 0;
};

int32_t argmax(std::span<const float> row);  // the lowest id among equals

// $QUIRE_SHARED, or ../shared beside the repository; empty when it is not there.
std::string shared_dir();
std::string repository_root();  // $QUIRE_ROOT

}  // namespace quire::golden
