// What the tests of the CPU ops share. Method: the op on the CPU back end, for every instruction set this
// machine has and both activation types, against kernels/reference (float64 sums) on the same values:
// activations are rounded to their type before either sees them. Outputs are poisoned first, and what must
// not be written is compared after.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "src/base/random.h"
#include "src/device/cpu_features.h"
#include "src/device/device.h"

namespace quire {

inline const std::vector<CpuIsa>& usable_levels() {
  static const std::vector<CpuIsa> levels = [] {
    std::vector<CpuIsa> found;
    for (CpuIsa isa : {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
      if (isa <= machine_isa()) found.push_back(isa);
    }
    return found;
  }();
  return levels;
}

struct Variant {
  CpuIsa isa = CpuIsa::kPlain;
  DType act = DType::kF32;
  int threads = 2;
};

inline std::vector<Variant> all_variants() {
  std::vector<Variant> all;
  for (CpuIsa isa : usable_levels()) {
    for (DType act : {DType::kF32, DType::kBF16}) all.push_back({.isa = isa, .act = act});
  }
  return all;
}

inline std::string to_string(const Variant& v) {
  return std::string(name_of(v.isa)) + " " + std::string(name_of(v.act)) + " " + std::to_string(v.threads) +
         " threads";
}

inline Device& test_device() {
  static const std::unique_ptr<Device> device = std::move(open_cpu_device(2)).value();
  return *device;
}

inline std::unique_ptr<Kernels> open_kernels(const Variant& v) {
  setenv("QUIRE_CPU_ISA", std::string(name_of(v.isa)).c_str(), 1);
  auto kernels = make_cpu_kernels(test_device(), {.activations = v.act, .threads = v.threads});
  unsetenv("QUIRE_CPU_ISA");
  return std::move(kernels).value();
}

inline Kernels& reference() {
  static const std::unique_ptr<Kernels> kernels = make_reference_kernels(test_device());
  return *kernels;
}

// Values and their bytes in one dtype; the f32 values are what the bytes mean.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<float> values)
      : dtype_(dtype), bytes_(values.size() * static_cast<size_t>(bytes_of(dtype))) {
    for (size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }
  static Tensor random(Random& random, DType dtype, int64_t count, double scale = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = static_cast<float>((random.uniform() * 2 - 1) * scale);
    return Tensor(dtype, std::move(values));
  }
  static Tensor poisoned(DType dtype, int64_t count) {
    return Tensor(dtype,
                  std::vector<float>(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN()));
  }

  DType dtype() const { return dtype_; }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  char* bytes() { return bytes_.data(); }
  const std::vector<char>& all_bytes() const { return bytes_; }
  size_t size() const { return bytes_.size() / static_cast<size_t>(bytes_of(dtype_)); }

  float at(size_t i) const {
    if (dtype_ == DType::kF32) return read<float>(i);
    return dtype_ == DType::kBF16 ? bf16_to_f32(read<uint16_t>(i)) : f16_to_f32(read<uint16_t>(i));
  }
  void set(size_t i, float value) {
    if (dtype_ == DType::kF32) return write(i, value);
    write(i, dtype_ == DType::kBF16 ? f32_to_bf16(value) : f32_to_f16(value));
  }
  Tensor as_f32() const {
    std::vector<float> values(size());
    for (size_t i = 0; i < size(); ++i) values[i] = at(i);
    return Tensor(DType::kF32, std::move(values));
  }
  bool operator==(const Tensor& other) const { return bytes_ == other.bytes_; }

 private:
  template <class T>
  T read(size_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void write(size_t i, T value) {
    std::memcpy(bytes_.data() + i * sizeof(T), &value, sizeof(T));
  }

  DType dtype_ = DType::kF32;
  std::vector<char> bytes_;
};

// Half a unit in the last place, relative.
inline double rounding_of(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

// |got - wanted| <= absolute + the output type's rounding of wanted. Stops at the first that is not.
inline void expect_near(const Tensor& got, const Tensor& wanted, double absolute, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = got.at(i), w = wanted.at(i);
    if (std::isinf(w) && g == w) continue;  // below, any g would be within what is allowed of it
    ASSERT_FALSE(std::isinf(w)) << what << ", element " << i << ": got " << g << ", wanted " << w;
    const double allowed = absolute + 1.01 * rounding_of(got.dtype()) * std::abs(w);
    ASSERT_TRUE(std::abs(g - w) <= allowed)
        << what << ", element " << i << ": got " << g << ", wanted " << w << " within " << allowed;
  }
}

}  // namespace quire
