#include "src/model/fingerprint.h"

#include <algorithm>
#include <span>

#include "src/base/hash.h"
#include "src/model/checkpoint.h"
#include "src/model/text_file.h"

namespace quire {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kSamples = 8,
                  kSampleBytes = 256;  // of a tensor, spread evenly, the first and last among them

void add(uint64_t& hash, std::span<const std::byte> bytes) {
  hash = mix(hash, hash_bytes(bytes));
}
void add(uint64_t& hash, const std::string& text) {
  add(hash, std::as_bytes(std::span(text)));
}

void add_sample(uint64_t& hash, const TensorView& tensor) {
  const int64_t bytes = std::min(kSampleBytes, tensor.bytes());
  for (int64_t i = 0; i < kSamples; ++i) {
    const int64_t at = (tensor.bytes() - bytes) * i / (kSamples - 1);
    add(hash, {tensor.data + at, static_cast<size_t>(bytes)});
  }
}

}  // namespace

Result<uint64_t> model_fingerprint(const std::string& model_dir, const std::string& weights) {
  const Result<std::string> config = read_text_file(model_dir + "/config.json", kMaxConfigBytes);
  if (!config) return config.error();
  uint64_t hash = kHashSeed;
  add(hash, *config);
  add(hash, weights);
  if (weights != "checkpoint") return hash;
  const Result<Checkpoint> checkpoint = Checkpoint::open(model_dir);
  if (!checkpoint) return checkpoint.error();
  for (const std::string& name : checkpoint->names()) {
    const TensorView& tensor = *checkpoint->find(name);
    add(hash, name);
    add(hash, tensor.dtype);
    add(hash, std::as_bytes(std::span(tensor.shape)));
    add_sample(hash, tensor);
  }
  return hash;
}

}  // namespace quire
