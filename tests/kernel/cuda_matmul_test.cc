// The CUDA products, plain and fused, against kernels/reference (float64 sums). Method: the back end's own
// seam, on the host shim with all its checks on, or (QUIRE_ON_CARD) on a card. Activations are rounded to
// their type before either side sees them, and so are the values between two ops of a fusion, as kernels.h
// promises. Outputs are poisoned first.
//
// Tolerance: a float32 sum of k products of numbers below 1 errs by less than sqrt(k) 2^-24 k; a fused op
// adds one rounding of what stands between its parts, which may fall to the other side: kernels::rounding_of
// of the largest such value.
#include <algorithm>
#include <span>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/host_shim/runner.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/matmul/product.h"
#include "tests/kernel/cpu_test_rig.h"

namespace quire {
namespace {

StreamDevice* open_device() {
#ifdef QUIRE_ON_CARD
  auto opened = open_cuda_device();
  return opened ? std::move(*opened).release() : nullptr;
#else
  return open_cuda_host_device().release();
#endif
}
StreamDevice* device() {
  static StreamDevice* const opened = open_device();  // lives until the process ends
  return opened;
}

struct Shape {
  int64_t n, k;
};

class CudaProducts : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (device() == nullptr) GTEST_SKIP() << "no card";
    shim::set_shim_options({.checking = true, .order_seed = 3});
    kernels_ = std::move(make_cuda_kernels(*device(), {.activations = GetParam()})).value();
  }
  void TearDown() override { shim::set_shim_options({}); }

  DeviceBuffer upload(const Tensor& t) {
    DeviceBuffer buffer =
        std::move(device()->allocate(static_cast<int64_t>(t.all_bytes().size()), "test")).value();
    device()->copy_to_device(buffer.data(), t.data(), buffer.bytes());
    device()->synchronize();
    return buffer;
  }
  void download(const DeviceBuffer& buffer, Tensor& t) {
    device()->copy_to_host(t.data(), buffer.data(), buffer.bytes());
    device()->synchronize();
  }
  DType act() const { return GetParam(); }
  // With and without bias, as activations and as f32, twice.
  void agree(std::span<const Shape> shapes, std::span<const int64_t> rows);
  // Each fused op against what the single ops make of the same inputs.
  void agree_fused(std::span<const Shape> shapes, std::span<const int64_t> rows);

  std::unique_ptr<Kernels> kernels_;
};

double tolerance(int64_t k) {
  return std::sqrt(static_cast<double>(k)) * 0x1p-24 * static_cast<double>(k) + 1e-7;
}
double largest(const Tensor& t) {
  double most = 0;
  for (size_t i = 0; i < t.size(); ++i) most = std::max(most, std::abs(static_cast<double>(t.at(i))));
  return most;
}
Tensor rounded_to(DType dtype, const Tensor& t) {
  std::vector<float> values(t.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = t.at(i);
  return Tensor(dtype, std::move(values)).as_f32();
}

// Rows of w: none whole, one tile, an odd number; columns: below, at and above what a stage or a warp takes
// at once. 24 rows of 2048 and 3072: two warps a row at one row of x. 6144: too long for x to stay in shared
// memory.
constexpr Shape kShapes[] = {{1, 8},     {16, 64},   {37, 257},  {129, 96},  {80, 520}, {48, 1024},
                             {24, 2048}, {24, 3072}, {67, 2560}, {40, 4096}, {33, 6144}};
constexpr int64_t kRows[] = {1, 2, 7, 8, 9, 16, 17, 18, 33, 64, 65};

void CudaProducts::agree(std::span<const Shape> shapes, std::span<const int64_t> rows) {
  Random random(1);
  for (const Shape& s : shapes) {
    const Tensor w = Tensor::random(random, act(), s.n * s.k),
                 bias = Tensor::random(random, DType::kF32, s.n);
    const HostMatrix part{.data = w.data(), .dtype = act(), .rows = s.n, .cols = s.k};
    const auto packed = std::move(kernels_->pack({&part, 1})).value();
    const auto plain = std::move(reference().pack({&part, 1})).value();
    const DeviceBuffer on_device = upload(bias);
    for (const int64_t m : rows) {
      if (act() == DType::kF32 && m > 2 && s.n * s.k > 100000)
        continue;  // one kernel whatever the rows, and a slow one on the shim
      const Tensor x = Tensor::random(random, act(), m * s.k);
      const DeviceBuffer x_on_device = upload(x);
      const bool with_bias = m % 2 == 1, out_f32 = m % 3 == 1;
      Tensor wanted = Tensor::poisoned(DType::kF32, m * s.n);
      reference().matmul({.x = x.as_f32().data(),
                          .weight = plain.get(),
                          .bias = with_bias ? static_cast<const float*>(bias.data()) : nullptr,
                          .out = wanted.data(),
                          .out_f32 = true,
                          .m = m});
      Tensor runs[2];
      for (Tensor& got : runs) {
        got = Tensor::poisoned(out_f32 ? DType::kF32 : act(), m * s.n);
        const DeviceBuffer out = upload(got);
        kernels_->matmul({.x = x_on_device.data(),
                          .weight = packed.get(),
                          .bias = with_bias ? on_device.as<float>() : nullptr,
                          .out = out.data(),
                          .out_f32 = out_f32,
                          .m = m});
        download(out, got);
      }
      // A library's product (rows of prompts) is rounded before its bias is added; so it is with its beta
      // = 1.
      const double rounded_first = with_bias && m > 64 ? rounding_of(act()) * (largest(wanted) + 1) : 0;
      expect_near(runs[0], wanted, tolerance(s.k) + rounded_first,
                  "m " + std::to_string(m) + " n " + std::to_string(s.n) + " k " + std::to_string(s.k));
      EXPECT_EQ(runs[0], runs[1]) << "a second run differs";
    }
  }
}

TEST_P(CudaProducts, AgreeWithTheReferenceForAnyNumberOfRows) {
  agree(kShapes, kRows);
}

// One row that goes as several do, since its tiles share out evenly: one for each multiprocessor. And one that does not.
TEST_P(CudaProducts, ALongRowOfX) {
#if defined(QUIRE_ON_CARD)
  constexpr int64_t kTiles = 132;  // of an H100 and an H200
#else
  constexpr int64_t kTiles = 4;
#endif
  const Shape shapes[] = {{16 * kTiles, 8704}, {16 * kTiles + 16, 8704}};
  const int64_t rows[] = {1};
  agree(shapes, rows);
}

#ifndef QUIRE_ON_CARD
TEST(OneRowOfX, GoesAsSeveralDoWhereItIsLongAndItsTilesShareOut) {
  cuda_host::Target card{
      .multiprocessors = 132, .shared_bytes_per_block = 227 * 1024, .activations = DType::kBF16};
  const auto suits = [&](int n, int k, const float* norm = nullptr) {
    return cuda_host::skinny_suits_one_row(card,
                                           {.w_stride = k, .m = 1, .n = n, .k = k, .norm_weight = norm});
  };
  EXPECT_TRUE(suits(4096, 14336));   // Llama-3.1-8B's down: 256 tiles of 264
  EXPECT_FALSE(suits(5120, 13824));  // Llama-2-13B's: 320 of 396
  EXPECT_FALSE(suits(4096, 8192));
  const float weight = 1;
  EXPECT_FALSE(suits(4096, 14336, &weight));
  card.shared_bytes_per_block = 163 * 1024;
  EXPECT_FALSE(suits(4096, 14336));
  card.shared_bytes_per_block = 227 * 1024;
  card.activations = DType::kF32;
  EXPECT_FALSE(suits(4096, 14336));
}
#endif

// Two to four blocks a tile, a tile and parts of others a block (wide_plan.h).
TEST_P(CudaProducts, TilesThatBlocksShareAreAdded) {
  const Shape shapes[] = {{300, 520}, {129, 1032}, {100, 1032}};
  const int64_t rows[] = {17, 64};
  agree(shapes, rows);
}

#ifndef QUIRE_ON_CARD
// One row of x that does not fit a card's shared memory as f32: another product takes it. 99 KiB is what sm_86 and
// sm_89 have; a gate and its up are never so wide (a norm before them is not).
TEST_P(CudaProducts, TakeRowsLongerThanSharedMemory) {
  const auto card = open_cuda_host_device({.shared_bytes_per_block = 99 * 1024});
  const auto kernels = std::move(make_cuda_kernels(*card, {.activations = act()})).value();
  Random random(4);
  for (const Shape& s : {Shape{9, 24576}, Shape{9, 24640}, Shape{24, 28672}}) {
    if (act() == DType::kF32 && s.n > 9) continue;  // slow on the shim
    const Tensor w = Tensor::random(random, act(), s.n * s.k), x = Tensor::random(random, act(), s.k),
                 before = Tensor::random(random, act(), s.n);
    const HostMatrix part{.data = w.data(), .dtype = act(), .rows = s.n, .cols = s.k};
    const auto packed = std::move(kernels->pack({&part, 1})).value();
    const auto plain = std::move(reference().pack({&part, 1})).value();
    Tensor wanted = Tensor::poisoned(DType::kF32, s.n);
    reference().matmul(
        {.x = x.as_f32().data(), .weight = plain.get(), .out = wanted.data(), .out_f32 = true, .m = 1});
    const DeviceBuffer device_x = upload(x);
    Tensor got = Tensor::poisoned(DType::kF32, s.n), sum = before;
    const DeviceBuffer out = upload(got), residual = upload(before);
    kernels->matmul(
        {.x = device_x.data(), .weight = packed.get(), .out = out.data(), .out_f32 = true, .m = 1});
    kernels->fused_matmul(
        {.x = device_x.data(), .weight = packed.get(), .residual = residual.data(), .m = 1});
    download(out, got);
    download(residual, sum);
    const std::string what = "n " + std::to_string(s.n) + " k " + std::to_string(s.k);
    expect_near(got, wanted, tolerance(s.k), what);
    const double rounds_otherwise = 2 * rounding_of(act()) * largest(wanted);
    const Tensor rounded = rounded_to(act(), wanted);
    for (size_t i = 0; i < wanted.size(); ++i) wanted.set(i, rounded.at(i) + before.at(i));
    expect_near(sum, wanted, tolerance(s.k) + rounds_otherwise, what + " onto a residual");
  }
}
#endif

// One fused op and what the single ops make of the same inputs.
struct Fusion {
  bool norm = false, bias = false;
  enum { kOut, kResidual, kGated, kLogits } end = kOut;
};

void CudaProducts::agree_fused(std::span<const Shape> shapes, std::span<const int64_t> rows) {
  Random random(2);
  for (const Shape& s : shapes) {
    for (const Fusion& f : {Fusion{.norm = true}, Fusion{.norm = true, .bias = true, .end = Fusion::kGated},
                            Fusion{.bias = true, .end = Fusion::kResidual}, Fusion{.end = Fusion::kResidual},
                            Fusion{.norm = true, .end = Fusion::kLogits}, Fusion{.end = Fusion::kGated}}) {
      const int64_t n = f.end == Fusion::kGated ? (s.n + 15) / 16 * 16 : s.n;
      const Tensor w = Tensor::random(random, act(), n * s.k), bias = Tensor::random(random, DType::kF32, n);
      const Tensor norm_weight = Tensor::random(random, DType::kF32, s.k);
      const int64_t half = n / 2;
      const HostMatrix whole{.data = w.data(), .dtype = act(), .rows = n, .cols = s.k};
      const HostMatrix gate{.data = w.data(), .dtype = act(), .rows = half, .cols = s.k};
      const HostMatrix up{.data = static_cast<const char*>(w.data()) + half * s.k * bytes_of(act()),
                          .dtype = act(),
                          .rows = half,
                          .cols = s.k};
      auto packed = f.end == Fusion::kGated ? std::move(kernels_->pack_gate_up(gate, up)).value()
                                            : std::move(kernels_->pack({&whole, 1})).value();
      const auto plain = std::move(reference().pack({&whole, 1})).value();
      Tensor ordered_bias = bias;  // in the order of the packed rows
      if (f.end == Fusion::kGated) {
        ASSERT_EQ(packed->gate_group, kGateGroup);
        for (int64_t i = 0; i < half; ++i)
          for (const int64_t is_up : {0, 1})
            ordered_bias.set(
                static_cast<size_t>(i / kGateGroup * 2 * kGateGroup + is_up * kGateGroup + i % kGateGroup),
                bias.at(static_cast<size_t>(is_up * half + i)));
      }
      const DeviceBuffer device_bias = upload(ordered_bias), device_norm = upload(norm_weight);
      for (const int64_t m : rows) {
        const bool gates = f.end == Fusion::kGated && !f.norm && kernels_->gates(*packed, m);
        if (m > kernels_->fused_rows() && !gates) continue;
        const Tensor x = Tensor::random(random, act(), m * s.k),
                     before = Tensor::random(random, act(), m * n);
        // What is wanted.
        Tensor normed = x.as_f32();
        double between = 0;  // the largest value that is rounded on the way
        if (f.norm) {
          Tensor source = x.as_f32();
          reference().add_rms_norm({.residual = source.data(),
                                    .weight = static_cast<const float*>(norm_weight.data()),
                                    .out = normed.data(),
                                    .eps = 1e-5f,
                                    .rows = m,
                                    .hidden = s.k});
          normed = rounded_to(act(), normed);
          between = rounding_of(act()) * std::sqrt(static_cast<double>(s.k)) *
                    largest(normed);  // a few of the k may round otherwise
        }
        Tensor product = Tensor::poisoned(DType::kF32, m * n);
        reference().matmul({.x = normed.data(),
                            .weight = plain.get(),
                            .bias = f.bias ? static_cast<const float*>(bias.data()) : nullptr,
                            .out = product.data(),
                            .out_f32 = true,
                            .m = m});
        Tensor wanted = product;
        if (f.end != Fusion::kLogits && f.end != Fusion::kOut) product = rounded_to(act(), product);
        if (f.end == Fusion::kResidual) {
          for (size_t i = 0; i < wanted.size(); ++i) wanted.set(i, product.at(i) + before.at(i));
        } else if (f.end == Fusion::kGated) {
          wanted = Tensor::poisoned(DType::kF32, m * half);
          reference().silu_mul({.gate_up = product.data(), .out = wanted.data(), .rows = m, .width = half});
        }
        // What the kernels make of it.
        Tensor got = f.end == Fusion::kResidual
                         ? before
                         : Tensor::poisoned(f.end == Fusion::kLogits ? DType::kF32 : act(),
                                            m * (f.end == Fusion::kGated ? half : n));
        const DeviceBuffer out = upload(got), device_x = upload(x),
                           scratch = upload(Tensor::poisoned(act(), m * s.k));
        kernels_->fused_matmul({.x = device_x.data(),
                                .norm_weight = f.norm ? device_norm.as<float>() : nullptr,
                                .norm_eps = 1e-5f,
                                .normed = scratch.data(),
                                .weight = packed.get(),
                                .bias = f.bias ? device_bias.as<float>() : nullptr,
                                .residual = f.end == Fusion::kResidual ? out.data() : nullptr,
                                .gated = f.end == Fusion::kGated,
                                .out = f.end == Fusion::kResidual ? nullptr : out.data(),
                                .out_f32 = f.end == Fusion::kLogits,
                                .m = m});
        download(out, got);
        const double gain = f.end == Fusion::kGated ? 2 * largest(product) : 1;
        const double rounds_otherwise =
            f.end == Fusion::kResidual || f.end == Fusion::kGated ? rounding_of(act()) * largest(product) : 0;
        expect_near(got, wanted, (tolerance(s.k) * (f.norm ? 4 : 1) + between + 2 * rounds_otherwise) * gain,
                    "m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(s.k) +
                        " end " + std::to_string(f.end));
      }
    }
  }
}

TEST_P(CudaProducts, FuseWhatTheSingleOpsWouldDo) {
  agree_fused(kShapes, kRows);
}

#ifdef QUIRE_ON_CARD
// Weights that broad_sm90.cu takes (broad_plan.h): tiles in several waves and a last one in part; tall, k shared by blocks, in parts
// of unequal length, for one, two and three warpgroups and for clusters of two.
TEST_P(CudaProducts, AgreeForLargeWeights) {
  if (act() == DType::kF32) GTEST_SKIP() << "f32 has one kernel for all rows";
  const Shape wide[] = {{24592, 1032}}, tall[] = {{2064, 12296}};
  const int64_t few[] = {33}, more[] = {40, 80, 150, 200};
  agree(wide, few);
  if (act() != DType::kBF16) return;  // the reference takes its time
  agree_fused(wide, few);
  agree(tall, more);
}

// A small model's: few of a weight's stages before the wait, the others behind it. Gate and up in steps of more rows than fuse otherwise.
TEST_P(CudaProducts, AgreeForASmallModelsWeights) {
  if (act() == DType::kF32) GTEST_SKIP() << "f32 has one kernel for all rows";
  const Shape wide[] = {{4112, 1032}}, tall[] = {{1040, 3080}};
  const int64_t few[] = {33}, gated[] = {33, 80, 128}, more[] = {80, 120};
  agree(wide, few);
  agree_fused(wide, gated);
  agree(tall, more);
}

// Gate and up of more rows than the reference has time for, against matmul and silu_mul, in every form that is chosen for them.
TEST_P(CudaProducts, GateManyRowsAsTheSingleOpsDo) {
  if (act() == DType::kF32) GTEST_SKIP() << "f32 has one kernel for all rows";
  constexpr int64_t kHalf = 12296, kColumns = 1032, kMost = 256;
  Random random(6);
  const Tensor w = Tensor::random(random, act(), 2 * kHalf * kColumns);
  const auto half = [&](int64_t first) {
    return HostMatrix{.data = static_cast<const char*>(w.data()) + first * kColumns * bytes_of(act()),
                      .dtype = act(),
                      .rows = kHalf,
                      .cols = kColumns};
  };
  const auto packed = std::move(kernels_->pack_gate_up(half(0), half(kHalf))).value();
  const DeviceBuffer x = upload(Tensor::random(random, act(), kMost * kColumns)),
                     both = upload(Tensor::poisoned(act(), kMost * 2 * kHalf));
  for (const int64_t m : {65, 80, 128, 193, 256}) {
    ASSERT_TRUE(kernels_->gates(*packed, m)) << m;
    Tensor wanted = Tensor::poisoned(act(), m * kHalf), got = wanted;
    const DeviceBuffer apart = upload(wanted), at_once = upload(got);
    kernels_->matmul({.x = x.data(), .weight = packed.get(), .out = both.data(), .m = m});
    kernels_->silu_mul({.gate_up = both.data(),
                        .gate_group = packed->gate_group,
                        .out = apart.data(),
                        .rows = m,
                        .width = kHalf});
    kernels_->fused_matmul(
        {.x = x.data(), .weight = packed.get(), .gated = true, .out = at_once.data(), .m = m});
    download(apart, wanted);
    download(at_once, got);
    // Sums differ in their order, so both factors and what they give may be rounded otherwise.
    expect_near(got, wanted, 6 * rounding_of(act()) * largest(wanted), "m " + std::to_string(m));
  }
}

// Which steps of more than fused_rows() gate in their product (broad_plan.h), and that no other weight is asked about.
TEST_P(CudaProducts, GateWhereItPays) {
  Random random(5);
  const int64_t half = 3072, k = 1032;
  const Tensor w = Tensor::random(random, act(), 2 * half * k);
  const HostMatrix gate{.data = w.data(), .dtype = act(), .rows = half, .cols = k};
  const auto packed = std::move(kernels_->pack_gate_up(gate, gate)).value();
  const HostMatrix both[] = {gate, gate};
  const auto plain = std::move(kernels_->pack(both)).value();
  for (const int64_t m : {64, 65, 128, 129, 256, 257})
    EXPECT_EQ(kernels_->gates(*packed, m), act() != DType::kF32 && m > 64 && m <= 128) << m;
  EXPECT_FALSE(kernels_->gates(*plain, 80)) << "its rows do not alternate";
}
#endif

INSTANTIATE_TEST_SUITE_P(Activations, CudaProducts, testing::Values(DType::kBF16, DType::kF16, DType::kF32),
                         [](const auto& dtype) { return std::string(name_of(dtype.param)); });

}  // namespace
}  // namespace quire
