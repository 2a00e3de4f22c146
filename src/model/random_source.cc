#include <fmt/format.h>
#include <sys/mman.h>

#include <array>
#include <bit>
#include <charconv>
#include <cmath>

#include "src/base/random.h"
#include "src/base/threads.h"
#include "src/model/weight_source.h"

namespace quire {
namespace {

constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;  // of splitmix64

// A value is a function of (key, index), so any thread can make any part: splitmix64's draw at any place of its row.
uint64_t mix(uint64_t z) {
  return Random(z - kStep).next();
}

uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t key = mix(seed + kStep);
  for (const char c : name) key = mix(key ^ static_cast<uint8_t>(c)) + kStep;
  return key;
}

template <DType kType>
void store(std::byte* out, int64_t i, float x) {
  if constexpr (kType == DType::kF32)
    reinterpret_cast<float*>(out)[i] = x;
  else if constexpr (kType == DType::kBF16)
    reinterpret_cast<uint16_t*>(out)[i] = f32_to_bf16(x);
  else
    reinterpret_cast<uint16_t*>(out)[i] = f32_to_f16(x);
}

void store(std::byte* out, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32)
    store<DType::kF32>(out, i, x);
  else if (dtype == DType::kBF16)
    store<DType::kBF16>(out, i, x);
  else
    store<DType::kF16>(out, i, x);
}

// Elements [first, last): four from one hash, 16 bits each, uniform in (-limit, limit). In two loops, so that the second runs in
// vectors.
template <DType kType>
void fill_range_of(std::byte* out, uint64_t key, float limit, int64_t first, int64_t last) {
  static_assert(std::endian::native == std::endian::little, "a hash's lowest 16 bits are its first element");
  constexpr int64_t kHashes = 256, kAtOnce = 4 * kHashes;
  const float scale = limit / 32768.0f;
  std::array<uint64_t, kHashes> hashes;
  for (int64_t from = first; from < last; from += kAtOnce) {
    const auto begin = static_cast<uint64_t>(from / 4);
    for (uint64_t h = 0; h < kHashes; ++h) hashes[h] = mix(key + (begin + h) * kStep);
    const auto levels = std::bit_cast<std::array<uint16_t, kAtOnce>>(hashes);
    const int64_t count = std::min(kAtOnce, last - from);
    for (int64_t i = 0; i < count; ++i)
      store<kType>(out, from + i, (static_cast<float>(levels[static_cast<size_t>(i)]) - 32767.5f) * scale);
  }
}

void fill_range(std::byte* out, DType dtype, uint64_t key, float limit, int64_t first, int64_t last) {
  if (dtype == DType::kF32)
    fill_range_of<DType::kF32>(out, key, limit, first, last);
  else if (dtype == DType::kBF16)
    fill_range_of<DType::kBF16>(out, key, limit, first, last);
  else
    fill_range_of<DType::kF16>(out, key, limit, first, last);
}

// Large pages for fresh memory, where the system has them: an 8B model's 16 GB are 4 million small ones, and each is a fault.
void ask_for_large_pages(std::byte* memory, int64_t bytes) {
  constexpr auto kPage = uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage,
             end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

void fill_in_parallel(std::byte* out, DType dtype, uint64_t key, float limit, int64_t count, int threads) {
  constexpr int64_t kLeastPerThread = 1 << 18;
  const int64_t parts = std::clamp<int64_t>(count / kLeastPerThread, 1, threads);
  const int64_t step = (count / parts + 3) / 4 * 4;
  run_side_by_side(parts, [=](int64_t p) {
    fill_range(out, dtype, key, limit, p * step, p + 1 == parts ? count : (p + 1) * step);
  });
}

// Memory of tensors that are gone serves those that come: an 8B model's 16 GB touched anew are page faults that take longer than
// the numbers in them.
class TensorMemory {
 public:
  std::shared_ptr<std::byte[]> take(int64_t bytes) {
    std::erase_if(kept_, [&](const Kept& k) { return is_free(k) && k.bytes < bytes; });
    for (const Kept& k : kept_)
      if (is_free(k)) return k.memory;
    // Not set to zero: its pages are touched by the threads that fill them.
    std::shared_ptr<std::byte[]> memory =
        std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
    ask_for_large_pages(memory.get(), bytes);
    kept_.push_back({memory, bytes});
    return memory;
  }

 private:
  struct Kept {
    std::shared_ptr<std::byte[]> memory;
    int64_t bytes;
  };
  static bool is_free(const Kept& k) { return k.memory.use_count() == 1; }

  std::vector<Kept> kept_;
};

class RandomSource final : public WeightSource {
 public:
  RandomSource(const ModelSpec& spec, uint64_t seed, int threads)
      : spec_(spec), seed_(seed), threads_(threads) {}

  DType dtype_of(const TensorSlot&) const override { return spec_.checkpoint_dtype; }

  HostTensor tensor(const TensorSlot& slot) override {
    const DType dtype = dtype_of(slot);
    const int64_t count = slot.rows() * slot.cols();
    HostTensor out;
    out.storage = memory_.take(count * bytes_of(dtype));
    out.matrix = {.data = out.storage.get(), .dtype = dtype, .rows = slot.rows(), .cols = slot.cols()};
    if (slot.kind == TensorKind::kNorm) {
      for (int64_t i = 0; i < count; ++i) store(out.storage.get(), dtype, i, 1.0f);
      return out;
    }
    fill_in_parallel(out.storage.get(), dtype, key_of(seed_, slot.name), limit_of(slot), count, threads_);
    return out;
  }

 private:
  // A uniform number in (-a, a) has variance a^2 / 3.
  float limit_of(const TensorSlot& slot) const {
    if (slot.kind == TensorKind::kBias) return 0.1f;
    double variance = 1.0 / static_cast<double>(slot.cols());
    if (slot.writes_residual) variance /= 2.0 * spec_.num_layers;
    return static_cast<float>(std::sqrt(3.0 * variance));
  }

  ModelSpec spec_;
  uint64_t seed_;
  int threads_;
  TensorMemory memory_;
};

}  // namespace

std::unique_ptr<WeightSource> make_random_source(const ModelSpec& spec, uint64_t seed, int threads) {
  return std::make_unique<RandomSource>(spec, seed, std::max(threads, 1));
}

Result<std::unique_ptr<WeightSource>> open_weight_source(const std::string& weights,
                                                         const std::string& model_dir, const ModelSpec& spec,
                                                         int threads) {
  constexpr std::string_view kRandom = "random";
  if (weights == "checkpoint") return open_checkpoint_source(model_dir, spec);
  if (weights == kRandom) return make_random_source(spec, 0, threads);
  uint64_t seed = 0;
  if (weights.starts_with("random:")) {
    const char* first = weights.data() + kRandom.size() + 1;
    const char* last = weights.data() + weights.size();
    const auto [end, fault] = std::from_chars(first, last, seed);
    if (fault == std::errc() && end == last) return make_random_source(spec, seed, threads);
  }
  return invalid(fmt::format("weights is `{}`; `checkpoint`, `random` or `random:SEED` is wanted", weights),
                 "weights");
}

}  // namespace quire
