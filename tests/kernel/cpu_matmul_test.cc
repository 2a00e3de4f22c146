// Matmul of the CPU back end. Method: see cpu_test_rig.h.
// Tolerance: a float32 sum of k rounded products errs by about sqrt(k) roundings of the running sum, which
// with |x|, |w| at most 1 stays below k / 4 in expectation of its absolute terms: 4 sqrt(k) 2^-24 k / 4, plus
// the output's rounding.
#include "tests/kernel/cpu_test_rig.h"

namespace quire {
namespace {

struct Shape {
  int64_t m, n, k;
};

double tolerance(int64_t k) {
  return std::sqrt(static_cast<double>(k)) * 0x1p-24 * static_cast<double>(k) + 1e-7;
}

Tensor run_matmul(Kernels& kernels, const MatmulWeight& weight, const Tensor& x, int64_t m, const float* bias,
                  bool out_f32) {
  Tensor out = Tensor::poisoned(out_f32 ? DType::kF32 : kernels.options().activations, m * weight.rows);
  kernels.matmul(
      {.x = x.data(), .weight = &weight, .bias = bias, .out = out.data(), .out_f32 = out_f32, .m = m});
  return out;
}

std::unique_ptr<MatmulWeight> pack(Kernels& kernels, const Tensor& w, int64_t n, int64_t k) {
  const HostMatrix part{.data = w.data(), .dtype = w.dtype(), .rows = n, .cols = k};
  return std::move(kernels.pack({&part, 1})).value();
}

class CpuMatmul : public testing::TestWithParam<DType> {};  // of the weight

TEST_P(CpuMatmul, AgreesWithTheReferenceOnOddShapes) {
  Random random(1);
  for (const Shape& s : {Shape{1, 1, 1},
                         {2, 3, 2},
                         {1, 64, 64},
                         {7, 65, 31},
                         {13, 127, 257},
                         {64, 192, 129},
                         {129, 67, 300},
                         {3, 17, 5003}}) {
    const Tensor w = Tensor::random(random, GetParam(), s.n * s.k);
    const Tensor bias = Tensor::random(random, DType::kF32, s.n);
    const auto plain = pack(reference(), w, s.n, s.k);
    for (const Variant& v : all_variants()) {
      const auto kernels = open_kernels(v);
      const auto packed = pack(*kernels, w, s.n, s.k);
      const Tensor x = Tensor::random(random, v.act, s.m * s.k);
      const float* with_bias = s.n % 2 == 0 ? nullptr : static_cast<const float*>(bias.data());
      const Tensor wanted = run_matmul(reference(), *plain, x.as_f32(), s.m, with_bias, true);
      for (const bool out_f32 : {false, true}) {
        const Tensor got = run_matmul(*kernels, *packed, x, s.m, with_bias, out_f32);
        expect_near(got, wanted, tolerance(s.k),
                    to_string(v) + " m " + std::to_string(s.m) + " k " + std::to_string(s.k));
        EXPECT_EQ(got, run_matmul(*kernels, *packed, x, s.m, with_bias, out_f32)) << "a second run differs";
      }
    }
  }
}

TEST_P(CpuMatmul, GivesARowTheSameBitsWhateverRowsAreBesideIt) {
  Random random(2);
  const int64_t n = 200, k = 4500, most = 600;  // k over one block of the panel, m over one piece
  const Tensor w = Tensor::random(random, GetParam(), n * k);
  for (const Variant& v : all_variants()) {
    if (v.isa == CpuIsa::kPlain && GetParam() == DType::kF16) continue;  // the same code as f32, and slow
    const auto kernels = open_kernels(v);
    const auto packed = pack(*kernels, w, n, k);
    const Tensor x = Tensor::random(random, v.act, most * k);
    const std::vector<int64_t> counts = v.isa == CpuIsa::kPlain
                                            ? std::vector<int64_t>{1, 3}
                                            : std::vector<int64_t>{1, 2, 7, 8, 25, 64, 129, 600};
    const Tensor all = run_matmul(*kernels, *packed, x, counts.back(), nullptr, false);
    for (const int64_t m : counts) {
      const Tensor some = run_matmul(*kernels, *packed, x, m, nullptr, false);
      ASSERT_EQ(0, std::memcmp(some.data(), all.data(), some.all_bytes().size()))
          << to_string(v) << " m " << m;
    }
  }
}

TEST_P(CpuMatmul, GivesTheSameBitsOnOneThreadAndOnTwo) {
  Random random(3);
  const int64_t m = 37, n = 300, k = 320;
  const Tensor w = Tensor::random(random, GetParam(), n * k);
  for (Variant v : all_variants()) {
    const Tensor x = Tensor::random(random, v.act, m * k);
    const auto two = open_kernels(v);
    v.threads = 1;
    const auto one = open_kernels(v);
    EXPECT_EQ(run_matmul(*one, *pack(*one, w, n, k), x, m, nullptr, false),
              run_matmul(*two, *pack(*two, w, n, k), x, m, nullptr, false))
        << to_string(v);
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, CpuMatmul, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& dtype) { return std::string(name_of(dtype.param)); });

TEST(CpuMatmulWeight, PutsPartsOfAnyDtypeOneUnderAnother) {
  Random random(4);
  const int64_t k = 33;
  const Tensor a = Tensor::random(random, DType::kBF16, 5 * k),
               b = Tensor::random(random, DType::kF32, 70 * k);
  const std::vector<HostMatrix> parts = {{.data = a.data(), .dtype = DType::kBF16, .rows = 5, .cols = k},
                                         {.data = b.data(), .dtype = DType::kF32, .rows = 70, .cols = k}};
  const Tensor x = Tensor::random(random, DType::kF32, 2 * k);
  const auto kernels = open_kernels({.isa = machine_isa()});
  const auto packed = std::move(kernels->pack(parts)).value();
  const auto plain = std::move(reference().pack(parts)).value();
  ASSERT_EQ(packed->rows, 75);
  ASSERT_EQ(packed->cols, k);
  expect_near(run_matmul(*kernels, *packed, x, 2, nullptr, true),
              run_matmul(reference(), *plain, x, 2, nullptr, true), tolerance(k), "parts");
}

// With bf16 weights and f32 activations nothing of x may be lost: a product in bf16 would err by 4e-3.
TEST(CpuMatmulWeight, KeepsF32ActivationsWholeBesideBf16Weights) {
  Random random(5);
  const int64_t m = 16, n = 128, k = 4096;
  const Tensor w = Tensor::random(random, DType::kBF16, n * k),
               x = Tensor::random(random, DType::kF32, m * k);
  const auto plain = pack(reference(), w, n, k);
  const Tensor wanted = run_matmul(reference(), *plain, x, m, nullptr, true);
  double norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) norm += wanted.at(i) * wanted.at(i);
  for (const CpuIsa isa : usable_levels()) {
    const auto kernels = open_kernels({.isa = isa});
    const Tensor got = run_matmul(*kernels, *pack(*kernels, w, n, k), x, m, nullptr, true);
    double error = 0;
    for (size_t i = 0; i < got.size(); ++i) error += std::pow(got.at(i) - wanted.at(i), 2);
    RecordProperty(std::string(name_of(isa)), std::to_string(std::sqrt(error / norm)));
    EXPECT_LT(std::sqrt(error / norm), 2e-6) << name_of(isa);
  }
}

TEST(CpuKernelsOptions, RefuseWhatTheBackEndCannotDo) {
  const auto f16 = make_cpu_kernels(test_device(), {.activations = DType::kF16, .threads = 1});
  ASSERT_FALSE(f16.has_value());
  EXPECT_EQ(f16.error().code, Code::kInvalidArgument);
  EXPECT_FALSE(make_cpu_kernels(test_device(), {.activations = DType::kF32, .threads = -1}).has_value());
}

}  // namespace
}  // namespace quire
