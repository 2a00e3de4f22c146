// The cuBLASLt side of products over a library made up here: every function that quire looks up, with times per way and row count. What is
// tuned is used, for its class of rows and no other; what does not run or does not fit is not; without tuning the heuristic's first is taken.
#include <gtest/gtest.h>

#include <map>

#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/cuda/matmul/cublaslt_api.h"
#include "tests/unit/counting_device.h"

namespace quire {
namespace {

using namespace cublaslt;

struct FakeLayout {
  uint64_t rows, cols;
};

// The library's functions have no place for a pointer of ours.
struct FakeLibrary {
  ManualClock clock;
  int num_ways = 3;
  // Of way `id` for m rows, us; < 0: it does not run.
  std::function<int64_t(uint64_t id, uint64_t m)> us = [](uint64_t, uint64_t) { return 10; };
  std::function<bool(uint64_t id, uint64_t m)> fits = [](uint64_t, uint64_t) { return true; };
  std::vector<std::pair<uint64_t, const void*>> runs;  // way, weight
  int asked = 0;
};
FakeLibrary* library = nullptr;

StatusCode heuristic(Handle, Desc, Layout, Layout b, Layout, Layout, Preference, int wanted,
                     Heuristic* results, int* found) {
  EXPECT_NE(b, nullptr);
  ++library->asked;
  *found = std::min(wanted, library->num_ways);
  for (int i = 0; i < *found; ++i) results[i] = {.algo = {.data = {static_cast<uint64_t>(i)}}};
  return 0;
}

StatusCode check_algo(Handle, Desc, Layout, Layout b, Layout, Layout, const Algo* algo, Heuristic* result) {
  *result = {.algo = *algo};
  return library->fits(algo->data[0], static_cast<FakeLayout*>(b)->cols) ? 0 : 15;
}

StatusCode multiply(Handle, Desc, const void*, const void* a, Layout, const void*, Layout b, const void*,
                    const void*, Layout, void*, Layout, const Algo* algo, void*, size_t, cudaStream_t) {
  const int64_t us = library->us(algo->data[0], static_cast<FakeLayout*>(b)->cols);
  if (us < 0) return 15;
  library->clock.advance_us(us);
  library->runs.emplace_back(algo->data[0], a);
  return 0;
}

Api fake_api() {
  Api api{};
  api.get_version = [] { return size_t{130000}; };
  api.create = [](Handle* h) { return *h = h, 0; };
  api.destroy = [](Handle) { return 0; };
  api.desc_create = [](Desc*, int, cudaDataType_t) { return 0; };
  api.desc_destroy = [](Desc) { return 0; };
  api.desc_set = [](Desc, int, const void*, size_t) { return 0; };
  api.layout_create = [](Layout* l, cudaDataType_t, uint64_t rows, uint64_t cols, int64_t) {
    return *l = new FakeLayout{rows, cols}, 0;
  };
  api.layout_destroy = [](Layout l) { return delete static_cast<FakeLayout*>(l), 0; };
  api.preference_create = [](Preference*) { return 0; };
  api.preference_destroy = [](Preference) { return 0; };
  api.preference_set = [](Preference, int, const void*, size_t) { return 0; };
  api.get_heuristic = heuristic;
  api.algo_check = check_algo;
  api.matmul = multiply;
  return api;
}

class TunedPlans : public ::testing::Test {
 protected:
  void SetUp() override {
    library = &library_;
    device_.event_clock = &library_.clock;
    gemm_ = std::move(make_cublaslt(fake_api(), device_, DType::kBF16, library_.clock)).value();
  }
  void TearDown() override { library = nullptr; }

  // Layer `layer`'s product of m rows.
  Product product(int32_t m, int32_t n = 64, uintptr_t layer = 0) const {
    return {.w = reinterpret_cast<void*>(4096 + layer), .w_stride = 64, .m = m, .n = n, .k = 64};
  }
  std::vector<ProductFamily> families(int32_t m) const {
    return {{product(m, 64, 0), product(m, 64, 1), product(m, 64, 2)}, {product(m, 128, 5)}};
  }
  // The way that is taken for so many rows.
  uint64_t way_of(int32_t m, int32_t n = 64) {
    library_.runs.clear();
    gemm_->run(product(m, n));
    return library_.runs.back().first;
  }

  FakeLibrary library_;
  CountingDevice device_;
  std::unique_ptr<GemmLibrary> gemm_;
};

TEST_F(TunedPlans, TheFirstIsTakenWhereNothingWasTimed) {
  library_.us = [](uint64_t id, uint64_t) { return id == 0 ? 50 : 10; };
  EXPECT_EQ(way_of(100), 0u);
}

TEST_F(TunedPlans, EachClassOfRowsHasItsFastest) {
  library_.us = [](uint64_t id, uint64_t m) { return id == (m <= 96 ? 1u : m <= 128 ? 2u : 0u) ? 10 : 20; };
  const auto all = families(200);
  const TuningResult result = gemm_->tune(all, 64, 1'000'000);
  EXPECT_EQ(result.shapes, 2 * 5);  // 96, 128, 160, 192, 224 (which holds 200)
  EXPECT_EQ(result.timed, result.shapes);
  EXPECT_EQ(result.changed, 2 * 2);
  EXPECT_EQ(way_of(65), 1u);
  EXPECT_EQ(way_of(96), 1u);
  EXPECT_EQ(way_of(97), 2u);
  EXPECT_EQ(way_of(128, 128), 2u);
  EXPECT_EQ(way_of(129), 0u);
  EXPECT_EQ(way_of(200), 0u);
}

TEST_F(TunedPlans, AShapeIsAlwaysMadeTheSameWay) {
  library_.us = [](uint64_t id, uint64_t) { return id == 1 ? 10 : 20; };
  const auto all = families(96);
  gemm_->tune(all, 64, 1'000'000);
  EXPECT_EQ(way_of(80), 1u);
  const int asked = library_.asked;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(way_of(80), 1u);
  EXPECT_EQ(library_.asked, asked);
}

TEST_F(TunedPlans, WeightsTakeTurns) {
  const auto all = families(96);
  gemm_->tune(all, 64, 1'000'000);
  for (size_t i = 0; i + 1 < library_.runs.size(); ++i) {
    const auto weight = reinterpret_cast<uintptr_t>(library_.runs[i].second) - 4096;
    if (weight < 3 && reinterpret_cast<uintptr_t>(library_.runs[i + 1].second) - 4096 < 3) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(library_.runs[i + 1].second) - 4096, (weight + 1) % 3) << i;
    }
  }
}

TEST_F(TunedPlans, WhatDoesNotRunIsNotTaken) {
  library_.us = [](uint64_t id, uint64_t) { return id == 2 ? -1 : id == 1 ? 10 : 20; };
  const auto all = families(96);
  gemm_->tune(all, 64, 1'000'000);
  EXPECT_EQ(way_of(90), 1u);
}

TEST_F(TunedPlans, WhatDoesNotFitARowCountOfItsClassIsNotTakenThere) {
  library_.us = [](uint64_t id, uint64_t) { return id == 1 ? 10 : 20; };
  library_.fits = [](uint64_t, uint64_t m) { return m % 8 == 0; };
  const auto all = families(96);
  gemm_->tune(all, 64, 1'000'000);
  EXPECT_EQ(way_of(88), 1u);
  EXPECT_EQ(way_of(89), 0u);
}

TEST_F(TunedPlans, TimeIsBounded) {
  library_.us = [](uint64_t id, uint64_t) { return id == 1 ? 100 : 200; };
  const auto all = families(2048);
  const TuningResult result = gemm_->tune(all, 64, 20'000);
  EXPECT_GT(result.timed, 0);
  EXPECT_LT(result.timed, result.shapes);
  EXPECT_LE(result.us, 20'000 + 600) << "one candidate's runs may go over";
  EXPECT_EQ(way_of(96), 1u) << "the first classes were timed";
  EXPECT_EQ(way_of(2048), 0u);
}

}  // namespace
}  // namespace quire
