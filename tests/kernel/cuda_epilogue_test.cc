// What becomes of sums eight columns at a time (broad_sm90.cu, which only a card runs) against the same one by one, which the other
// products' tests hold to the reference: equal bits, nothing outside the result, on the host shim with its checks on.
#include <gtest/gtest.h>

#include "kernels/cuda/matmul/epilogue.h"
#include "src/base/random.h"

namespace quire::cuda_host {
namespace {

struct Case {
  Product p;
  const float* sums = nullptr;  // [rows][n], more rows and columns than the product has
  int32_t rows = 0, columns = 0;
};

__device__ Chunk sums_at(const Case& c, int64_t m, int64_t n) {
  return load_chunk(c.sums + m * c.columns + n);
}

__global__ void by_chunks(Case c) {
  for (int64_t m = 0; m < c.rows; ++m)
    for (int64_t n = 0; n < c.columns; n += c.p.gated ? 2 * kGateGroup : kChunk)
      if (c.p.gated) {
        put_gated_chunk<bf16>(c.p, m, n, sums_at(c, m, n), sums_at(c, m, n + kGateGroup));
      } else {
        put_chunk<bf16>(c.p, m, n, sums_at(c, m, n));
      }
}

__global__ void one_by_one(Case c) {
  const Product& p = c.p;
  for (int64_t m = 0; m < p.m; ++m)
    for (int64_t n = 0; n < (p.gated ? p.n / 2 : p.n); ++n)
      if (p.gated) {
        put_gated<bf16>(p, m, n, load(c.sums + m * c.columns + gated_row(2 * n)),
                        load(c.sums + m * c.columns + gated_row(2 * n + 1)));
      } else {
        put_sum<bf16>(p, m, n, load(c.sums + m * c.columns + n), before_sum<bf16>(p, m, n));
      }
}

enum class End { kStored, kResidual, kGated };

class Epilogue : public testing::TestWithParam<std::tuple<End, bool>> {
 protected:
  static constexpr int32_t kM = 5, kN = 48, kRows = 8, kColumns = 64;

  Epilogue() {
    Random random(7);
    for (float& s : sums_) s = static_cast<float>(random.between(-4000, 4000)) / 512.0f;
    for (float& b : bias_) b = static_cast<float>(random.between(-100, 100)) / 64.0f;
  }
  // The result's bytes, and as many behind them.
  template <auto kernel>
  std::vector<uint16_t> run() const {
    const auto [end, with_bias] = GetParam();
    std::vector<uint16_t> out(size_t{2} * kM * kN, 0x3f80);
    Case c{.p = {.bias = with_bias ? bias_.data() : nullptr,
                 .out = out.data(),
                 .m = kM,
                 .n = kN,
                 .gated = end == End::kGated},
           .sums = sums_.data(),
           .rows = kRows,
           .columns = kColumns};
    if (end == End::kResidual) std::swap(c.p.out, c.p.residual);
    launch<kernel>({}, c);
    return out;
  }

  std::vector<float> sums_ = std::vector<float>(size_t{kRows} * kColumns), bias_ = std::vector<float>(kN);
};

TEST_P(Epilogue, OfEightColumnsIsThatOfEach) {
  EXPECT_EQ(run<by_chunks>(), run<one_by_one>());
}

INSTANTIATE_TEST_SUITE_P(Ends, Epilogue,
                         testing::Combine(testing::Values(End::kStored, End::kResidual, End::kGated),
                                          testing::Bool()));

}  // namespace
}  // namespace quire::cuda_host
