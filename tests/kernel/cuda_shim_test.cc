// Method: the host shim itself. Small kernels with one fault each must be stopped with a message that names
// the fault; kernels without must run, in any order of blocks and warps, and give what a card would.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/cuda/portable.h"

namespace quire::cuda_host {
namespace {

// ---- kernels ----
__global__ void block_sums(const int32_t* x, int32_t* out) {
  const auto sums = dynamic_shared<int32_t>();
  int32_t v = load(x + blockIdx.x * blockDim.x + threadIdx.x);
  for (int m = 16; m > 0; m /= 2) v += shfl_xor(v, m);
  if (threadIdx.x % 32 == 0) sums[static_cast<int>(threadIdx.x / 32)] = v;
  sync_threads();
  if (threadIdx.x != 0) return;
  int32_t total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) total += sums[w];
  atomic_add(out, total);
}
__global__ void no_barrier() {
  const auto s = dynamic_shared<int32_t>();
  s[static_cast<int>(threadIdx.x)] = 1;
  s[static_cast<int>((threadIdx.x + 32) % 64)] += 1;
}
// Runs right by luck: the reader comes after the writer in the shim's own order.
__global__ void lucky_race(int32_t* out) {
  const auto s = dynamic_shared<int32_t>();
  if (threadIdx.x == 0) s[0] = 7;
  if (threadIdx.x == 63) store(out, static_cast<int32_t>(s[0]));
}
__global__ void overwrites_what_others_read(int32_t* out) {
  const auto s = dynamic_shared<int32_t>();
  if (threadIdx.x == 0) s[0] = 7;
  sync_threads();
  const int32_t v = s[0];
  if (threadIdx.x == 63) s[0] = 8;
  store(out + threadIdx.x, v);
}
__global__ void warp_without_sync(int32_t* out) {
  const auto s = dynamic_shared<int32_t>();
  s[static_cast<int>(threadIdx.x)] = 1;
  store(out + threadIdx.x, static_cast<int32_t>(s[static_cast<int>(threadIdx.x ^ 1)]));
}
__global__ void unwritten_shared(int32_t* out) {
  store(out, static_cast<int32_t>(dynamic_shared<int32_t>()[3]));
}
__global__ void past_shared() {
  dynamic_shared<int32_t>()[64] = 1;
}
__global__ void past_global(int32_t* out, int n) {
  store(out + n, 1);
}
__global__ void divergent_barrier() {
  if (threadIdx.x < 32) sync_threads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    sync_threads();
  } else {
    sync_threads();
  }
}
__global__ void divergent_shuffle() {
  if (threadIdx.x != 5) shfl(1, 0);
}
__global__ void two_shuffles() {
  if (threadIdx.x < 7) {
    shfl(1, 0);
  } else {
    shfl(2, 0);
  }
}
__global__ void copy_then_read(const int32_t* x, int32_t* out, int wait) {
  const auto s = dynamic_shared();
  cp_async16(s + static_cast<int>(threadIdx.x) * 16, x + 4 * threadIdx.x);
  cp_async_commit();
  if (wait == 0) sync_warp();
  if (wait >= 1) cp_async_wait<0>();
  if (wait == 2) sync_warp();
  const auto ints = s.as<int32_t>();
  store(out + threadIdx.x, static_cast<int32_t>(ints[static_cast<int>(threadIdx.x ^ 1) * 4]));
}
__global__ void newest_copy_still_flies(const int32_t* x, int32_t* out) {
  const auto s = dynamic_shared();
  for (int i = 0; i < 2; ++i) {
    cp_async16(s + static_cast<int>(threadIdx.x) * 32 + i * 16, x + 4 * threadIdx.x);
    cp_async_commit();
  }
  cp_async_wait<1>();
  store(out + threadIdx.x, static_cast<int32_t>(s.as<int32_t>()[static_cast<int>(threadIdx.x) * 8 + 4]));
}
__global__ void writes(int32_t* x) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  store(x + threadIdx.x, 1);
}
__global__ void reads(const int32_t* x, int32_t* out, bool wait_first) {
  if (wait_first) wait_for_previous_kernel();
  const int32_t v = load(x + threadIdx.x);
  wait_for_previous_kernel();
  store(out + threadIdx.x, v);
}
__global__ void never_waits() {}
__global__ void lets_go_too_early() {
  let_next_kernel_start();
  wait_for_previous_kernel();
}
template <class T>
__global__ void product(const T* a, const T* b, float* d) {  // a 16 x 16, b 16 x 8 (by columns), d 16 x 8
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4 * 2;
  const auto pair = [](const T* p) { return load(reinterpret_cast<const uint32_t*>(p)); };
  const uint32_t fa[4] = {pair(a + g * 16 + t), pair(a + (g + 8) * 16 + t), pair(a + g * 16 + t + 8),
                          pair(a + (g + 8) * 16 + t + 8)};
  const uint32_t fb[2] = {pair(b + g * 16 + t), pair(b + g * 16 + t + 8)};
  float c[4] = {};
  mma_16816<T>(c, fa, fb);
  for (int i = 0; i < 4; ++i) store(d + (g + i / 2 * 8) * 8 + t + i % 2, c[i]);
}
__global__ void matrices(const uint16_t* x, uint32_t* plain, uint32_t* transposed,
                         uint32_t* moved) {  // x: 32 rows of 8
  const auto s = dynamic_shared();
  cp_async16(s + static_cast<int>(threadIdx.x) * 16, x + threadIdx.x * 8);
  cp_async_commit();
  cp_async_wait<0>();
  sync_warp();
  uint32_t r[4], q[4];
  ldmatrix_x4(r, s + static_cast<int>(threadIdx.x) * 16);
  ldmatrix_x4_trans(q, s + static_cast<int>(threadIdx.x) * 16);
  for (int j = 0; j < 4; ++j) {
    store(plain + j * 32 + threadIdx.x, r[j]);
    store(transposed + j * 32 + threadIdx.x, q[j]);
    store(moved + j * 32 + threadIdx.x, movmatrix_trans(r[j]));
  }
}

// ---- tests ----
template <class T>
struct Buffer {
  std::vector<T> v;
  explicit Buffer(size_t n) : v(n) { shim::register_memory(v.data(), static_cast<int64_t>(n * sizeof(T))); }
  ~Buffer() { shim::unregister_memory(v.data()); }
  T* data() { return v.data(); }
};

class Shim : public testing::Test {
 protected:
  void SetUp() override { shim::set_shim_options({.checking = true}); }

  template <class F>
  static std::string fault_of(F f) {
    try {
      f();
    } catch (const shim::ShimFault& e) {
      return e.what();
    }
    return "none";
  }
  Buffer<int32_t> x{256}, out{256};
};

#define EXPECT_FAULT(text, ...) \
  EXPECT_NE(fault_of([&] { __VA_ARGS__; }).find(text), std::string::npos) << fault_of([&] { __VA_ARGS__; })

TEST_F(Shim, RunsBlocksOfWarpsInAnyOrder) {
  std::iota(x.v.begin(), x.v.end(), 0);
  for (const uint64_t seed : {0, 1, 2, 3}) {
    shim::set_shim_options({.checking = true, .order_seed = seed});
    out.v[0] = 0;
    launch<block_sums>({.grid = {2}, .block = {128}, .shared_bytes = 16}, x.data(), out.data());
    EXPECT_EQ(out.v[0], 255 * 256 / 2);
  }
}
TEST_F(Shim, RunsAgainAfterAFault) {
  EXPECT_FAULT("divergent barrier", launch<divergent_barrier>({.block = {64}}));
  std::iota(x.v.begin(), x.v.end(), 0);
  out.v[0] = 0;
  launch<block_sums>({.grid = {1}, .block = {256}, .shared_bytes = 32}, x.data(), out.data());
  EXPECT_EQ(out.v[0], 255 * 256 / 2);
}
TEST_F(Shim, RefusesGridsThatNoCardTakes) {
  EXPECT_FAULT("a card takes", launch<never_waits>({.grid = {1, 65536}, .block = {1}}));
  EXPECT_FAULT("a card takes", launch<never_waits>({.grid = {1, 1, 65536}, .block = {1}}));
  EXPECT_FAULT("a card takes", launch<never_waits>({.grid = {0x80000000u}, .block = {1}}));
  EXPECT_EQ(fault_of([&] { launch<never_waits>({.grid = {65536, 1, 1}, .block = {1}}); }), "none");
  EXPECT_EQ(fault_of([&] { launch<never_waits>({.grid = {1, 65535, 1}, .block = {1}}); }), "none");
}
TEST_F(Shim, FindsRacesWhateverTheOrder) {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    shim::set_shim_options({.checking = true, .order_seed = seed});
    EXPECT_NE(fault_of([&] { launch<no_barrier>({.block = {64}, .shared_bytes = 256}); }), "none");
    EXPECT_NE(fault_of([&] { launch<lucky_race>({.block = {64}, .shared_bytes = 4}, out.data()); }), "none");
  }
}
TEST_F(Shim, NamesEachRace) {
  EXPECT_FAULT("race: read", launch<lucky_race>({.block = {64}, .shared_bytes = 4}, out.data()));
  EXPECT_FAULT("race: write",
               launch<overwrites_what_others_read>({.block = {64}, .shared_bytes = 4}, out.data()));
}
TEST_F(Shim, FindsALaneThatReadsAnothersWriteWithoutSyncWarp) {
  EXPECT_NE(fault_of([&] { launch<warp_without_sync>({.block = {32}, .shared_bytes = 128}, out.data()); }),
            "none");
}
TEST_F(Shim, FindsReadsOfWhatNobodyWrote) {
  EXPECT_FAULT("that nobody wrote",
               launch<unwritten_shared>({.block = {32}, .shared_bytes = 64}, out.data()));
}
TEST_F(Shim, FindsAccessesOutOfBounds) {
  EXPECT_FAULT("shared memory out of bounds", launch<past_shared>({.block = {32}, .shared_bytes = 256}));
  EXPECT_FAULT("outside every allocation", launch<past_global>({.block = {1}}, out.data(), 256));
}
TEST_F(Shim, FindsAccessesToMemoryThatWasGivenBack) {
  Buffer<int32_t> gone(4096);
  EXPECT_EQ(fault_of([&] { launch<past_global>({.block = {1}}, gone.data(), 2048); }), "none");
  shim::unregister_memory(gone.data());
  EXPECT_EQ(fault_of([&] { launch<past_global>({.block = {1}}, out.data(), 0); }), "none");
  EXPECT_FAULT("outside every allocation", launch<past_global>({.block = {1}}, gone.data(), 2048));
}
TEST_F(Shim, FindsDivergence) {
  EXPECT_FAULT("divergent barrier", launch<divergent_barrier>({.block = {64}}));
  EXPECT_FAULT("divergent barrier", launch<two_barriers>({.block = {64}}));
  EXPECT_FAULT("divergent warp operation", launch<divergent_shuffle>({.block = {32}}));
  EXPECT_FAULT("divergent warp operation", launch<two_shuffles>({.block = {32}}));
}
TEST_F(Shim, LandsAsynchronousCopiesAtTheirWaitAndShowsThemAfterASync) {
  const auto run = [&](int wait) {
    launch<copy_then_read>({.block = {32}, .shared_bytes = 512}, x.data(), out.data(), wait);
  };
  EXPECT_FAULT("in flight", run(0));
  EXPECT_NE(fault_of([&] { run(1); }), "none");  // the reader's own copies have landed, not its neighbour's
  EXPECT_EQ(fault_of([&] { run(2); }), "none");
  EXPECT_FAULT("in flight",
               launch<newest_copy_still_flies>({.block = {32}, .shared_bytes = 1024}, x.data(), out.data()));
}
TEST_F(Shim, FindsEarlyReadsInDependentLaunches) {
  const auto pair = [&](bool wait_first) {
    launch<writes>({.block = {32}, .dependent = true}, x.data());
    launch<reads>({.block = {32}, .dependent = true}, x.data(), out.data(), wait_first);
  };
  EXPECT_FAULT("before wait_for_previous_kernel()", pair(false));
  EXPECT_EQ(fault_of([&] { pair(true); }), "none");
  EXPECT_FAULT("without wait_for_previous_kernel()", launch<never_waits>({.block = {32}, .dependent = true}));
  EXPECT_FAULT("let_next_kernel_start()", launch<lets_go_too_early>({.block = {32}, .dependent = true}));
}
TEST_F(Shim, MultipliesAsTheFragmentsOfThePtxManualSay) {
  Buffer<bf16> a(256), b(128);
  Buffer<float> d(128);
  for (int i = 0; i < 256; ++i) a.v[i] = from_f32<bf16>(static_cast<float>(i % 13 - 6));
  for (int i = 0; i < 128; ++i) b.v[i] = from_f32<bf16>(static_cast<float>(i % 7 - 3));
  launch<product<bf16>>({.block = {32}}, a.data(), b.data(), d.data());
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += to_f32(a.v[m * 16 + k]) * to_f32(b.v[n * 16 + k]);
      EXPECT_EQ(d.v[m * 8 + n], sum) << m << ' ' << n;
    }
}
// Every number of 16 bits, 16 at a time in the first column of a, by a row of ones.
template <class T>
void expect_products_with_one(Buffer<T>& a, Buffer<T>& b, Buffer<float>& d) {
  for (int n = 0; n < 8; ++n) b.v[n * 16] = from_f32<T>(1.0f);
  for (uint32_t bits = 0; bits <= 0xffffu; bits += 16) {
    for (uint32_t m = 0; m < 16; ++m) a.v[m * 16] = {static_cast<uint16_t>(bits + m)};
    launch<product<T>>({.block = {32}}, a.data(), b.data(), d.data());
    for (uint32_t m = 0; m < 16; ++m) {
      const float expected = to_f32(a.v[m * 16]);
      const bool equal = std::isnan(expected) ? std::isnan(d.v[m * 8]) : d.v[m * 8] == expected;
      ASSERT_TRUE(equal) << "bits " << bits + m << ": " << d.v[m * 8] << ", not " << expected;
    }
  }
}
TEST_F(Shim, WidensEveryNumberOf16BitsExactly) {
  Buffer<bf16> a(256), b(128);
  Buffer<f16> half_a(256), half_b(128);
  Buffer<float> d(128);
  expect_products_with_one(a, b, d);
  expect_products_with_one(half_a, half_b, d);
}
// The product has a bit more than fits beside its first: rounded by itself it would lose it, and the sum would be 0.
TEST_F(Shim, RoundsAProductAndASumOnce) {
  volatile float a = 0x1.001p0f, c = -0x1.002p0f;  // nothing to work out while compiling
  EXPECT_EQ(fmaf(a, a, c), 0x1p-24f);
  EXPECT_EQ(fmaf(a, -a, -c), -0x1p-24f);
  EXPECT_EQ(fmaf(2.0f, 3.0f, a), 7.0f + 0x1p-12f);
}
TEST_F(Shim, LoadsAndTransposesMatricesOfEightByEight) {
  Buffer<uint16_t> m(256);
  Buffer<uint32_t> plain(128), transposed(128), moved(128);
  std::iota(m.v.begin(), m.v.end(), uint16_t{0});
  launch<matrices>({.block = {32}, .shared_bytes = 512}, m.data(), plain.data(), transposed.data(),
                   moved.data());
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const auto at = [&](int row, int column) { return uint32_t{m.v[(j * 8 + row) * 8 + column]}; };
      EXPECT_EQ(plain.v[j * 32 + lane], at(r, c) | at(r, c + 1) << 16);
      EXPECT_EQ(transposed.v[j * 32 + lane], at(c, r) | at(c + 1, r) << 16);
      EXPECT_EQ(moved.v[j * 32 + lane], at(c, r) | at(c + 1, r) << 16);
    }
}
TEST_F(Shim, KeepsRecordedLaunchesForLater) {
  std::vector<std::function<void()>> recorded;
  shim::HostStream stream{.recording = &recorded};
  launch<writes>({.block = {32}, .stream = &stream}, out.data());
  EXPECT_EQ(out.v[31], 0);
  for (const auto& work : recorded) work();
  EXPECT_EQ(out.v[31], 1);
}

}  // namespace
}  // namespace quire::cuda_host
