#include "src/model/fingerprint.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <thread>
#include <vector>

#include "src/base/hash.h"
#include "src/base/text_file.h"
#include "src/base/threads.h"
#include "src/model/checkpoint.h"

namespace quire {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr unsigned kMostThreads = 8;  // more read no faster

void add(uint64_t& hash, std::span<const std::byte> bytes) {
  hash = mix(hash, hash_bytes(bytes));
}
void add(uint64_t& hash, const std::string& text) {
  add(hash, std::as_bytes(std::span(text)));
}

uint64_t hash_of(const std::string& name, const TensorView& tensor) {
  uint64_t hash = kHashSeed;
  add(hash, name);
  add(hash, tensor.dtype);
  add(hash, std::as_bytes(std::span(tensor.shape)));
  add(hash, {tensor.data, static_cast<size_t>(tensor.bytes())});
  return hash;
}

// In the order of names, whoever hashed them.
std::vector<uint64_t> hashes_of(const Checkpoint& checkpoint) {
  const std::vector<std::string> names = checkpoint.names();
  std::vector<uint64_t> hashes(names.size());
  std::atomic<size_t> next = 0;
  run_side_by_side(std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads), [&](int64_t) {
    for (size_t i = next++; i < names.size(); i = next++)
      hashes[i] = hash_of(names[i], *checkpoint.find(names[i]));
  });
  return hashes;
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
  for (const uint64_t tensor : hashes_of(*checkpoint)) hash = mix(hash, tensor);
  return hash;
}

}  // namespace quire
