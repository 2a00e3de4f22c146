// The ops that move a row, a block or bytes: embed, add_rms_norm, silu_mul, copy_blocks, copy_bytes, and add_bias, against
// kernels/reference; of all of them and of the other ops of a step, that empty work touches nothing and that a step may have more rows
// than a grid has blocks along y (65535). Method: cuda_test_rig.h. Tolerances: a handful of float32 roundings (2^-24 each) of values of
// order 1 to 4, and sqrt(hidden) of them in a norm.
#include <numeric>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/matmul/matmul.h"
#include "tests/kernel/cuda_test_rig.h"

namespace quire {
namespace {

using CudaElementwise = CudaOps;

// Below, at and off a chunk of eight; above what one block of threads holds in one chunk each (4096), whole chunks and not.
constexpr int64_t kWidths[] = {1, 8, 31, 64, 127, 576, 4100, 8192};

TEST_P(CudaElementwise, EmbedCopiesRowsOfEveryTableType) {
  Random random(1);
  for (const DType table : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int64_t hidden : kWidths) {
      const Tensor t = Tensor::random(random, table, 11 * hidden);
      const std::vector<int32_t> ids = {10, 0, 3, 3, 7};
      Tensor wanted = Tensor::poisoned(DType::kF32, 5 * hidden), got = Tensor::poisoned(act(), 5 * hidden);
      const DeviceBuffer ids_there = upload(ids), table_there = upload(t), out = upload(got);
      const auto params = [&](const int32_t* from_ids, const void* from, void* to) {
        return EmbedParams{
            .ids = from_ids, .table = from, .table_dtype = table, .out = to, .rows = 5, .hidden = hidden};
      };
      reference().embed(params(ids.data(), t.data(), wanted.data()));
      kernels_->embed(params(ids_there.as<int32_t>(), table_there.data(), out.data()));
      download(out, got.data());
      // Half a unit of the smallest f16 where a table of f32 has values below its normal ones.
      expect_near(got, wanted, act() == DType::kF16 ? 0x1p-25 : 0, "hidden " + std::to_string(hidden));
    }
  }
}

TEST_P(CudaElementwise, AddRmsNormAgreesWithTheReferenceWithAndWithoutDeltaAndGather) {
  Random random(2);
  const std::vector<int32_t> gather = {4, 0, 4};
  const DeviceBuffer gather_there = upload(gather);
  for (const int64_t hidden : kWidths) {
    const Tensor residual = Tensor::random(random, act(), 5 * hidden),
                 delta = Tensor::random(random, act(), 5 * hidden),
                 weight = Tensor::random(random, DType::kF32, hidden);
    const DeviceBuffer delta_there = upload(delta), weight_there = upload(weight);
    for (const bool adds : {false, true}) {
      for (const bool gathers : {false, true}) {
        const std::string what =
            "hidden " + std::to_string(hidden) + (adds ? ", delta" : "") + (gathers ? ", gathered" : "");
        const int64_t rows = gathers ? 3 : 5;
        const auto params = [&](void* x, const void* d, const void* w, void* out, const int32_t* index) {
          return AddRmsNormParams{.residual = x,
                                  .delta = adds ? d : nullptr,
                                  .weight = static_cast<const float*>(w),
                                  .out = out,
                                  .row_index = gathers ? index : nullptr,
                                  .eps = 1e-5f,
                                  .rows = rows,
                                  .hidden = hidden};
        };
        Tensor x = residual.as_f32(), wanted = Tensor::poisoned(DType::kF32, rows * hidden);
        reference().add_rms_norm(
            params(x.data(), delta.as_f32().data(), weight.data(), wanted.data(), gather.data()));
        Tensor got = Tensor::poisoned(act(), rows * hidden), got_x = residual;
        const DeviceBuffer out = upload(got), x_there = upload(got_x);
        kernels_->add_rms_norm(params(x_there.data(), delta_there.data(), weight_there.data(), out.data(),
                                      gather_there.as<int32_t>()));
        download(out, got.data()), download(x_there, got_x.data());
        // 16-bit types: the sum is rounded before the norm; that moves an element by half a unit and the scale by less.
        const double root = std::sqrt(static_cast<double>(hidden));
        const double rounding = act() == DType::kF32 || !adds ? 0 : 2 * rounding_of(act()) * root;
        expect_near(got, wanted, 4e-7 * root + rounding, what);
        expect_near(got_x, x, 1e-7, what + ", residual");
        if (!adds || gathers) {
          EXPECT_EQ(got_x, residual) << what << ": written though nothing was to be";
        }
      }
    }
  }
}

TEST_P(CudaElementwise, SiluMulAgreesWithTheReferenceInBothOrdersOfItsColumns) {
  Random random(3);
  for (const int32_t group : {0, 8}) {
    for (const int64_t width : {1, 8, 31, 127, 520, 2056, 2049}) {
      if (group != 0 && width % group != 0) continue;
      const Tensor gate_up = Tensor::random(random, act(), 5 * 2 * width, 6);
      Tensor wanted = Tensor::poisoned(DType::kF32, 5 * width), got = Tensor::poisoned(act(), 5 * width);
      const auto params = [&](const void* from, void* to) {
        return SiluMulParams{.gate_up = from, .gate_group = group, .out = to, .rows = 5, .width = width};
      };
      const Tensor exact = gate_up.as_f32();
      reference().silu_mul(params(exact.data(), wanted.data()));
      const DeviceBuffer from = upload(gate_up), to = upload(got);
      kernels_->silu_mul(params(from.data(), to.data()));
      download(to, got.data());
      expect_near(got, wanted, 2e-5, "width " + std::to_string(width) + " group " + std::to_string(group));
    }
  }
}

TEST_P(CudaElementwise, CopyBlocksCopiesEachPairAndNothingElse) {
  for (const int64_t block_bytes : {16, 4096, 48 * 1024 + 16}) {
    std::vector<char> arena(static_cast<size_t>(9 * block_bytes));
    Random random(4);
    for (char& c : arena) c = static_cast<char>(random.next());
    const std::vector<int32_t> pairs = {0, 8, 3, 1, 3, 2, 7, 5};
    std::vector<char> wanted = arena;
    BlockCopyParams p{.arena = wanted.data(), .block_bytes = block_bytes, .pairs = pairs.data(), .count = 4};
    reference().copy_blocks(p);
    const DeviceBuffer there = upload(arena), pairs_there = upload(pairs);
    p.arena = there.as<char>();
    p.pairs = pairs_there.as<int32_t>();
    kernels_->copy_blocks(p);
    download(there, arena.data());
    EXPECT_EQ(arena, wanted) << block_bytes << " bytes a block";
  }
}

TEST_P(CudaElementwise, CopyBytesCopiesSoManyAndNoMore) {
  for (const int64_t bytes : {4, 1024, 1028, 3 * 1024 - 4}) {
    std::vector<char> from(static_cast<size_t>(bytes)), got(from.size() + 8, 'x');
    Random random(5);
    for (char& c : from) c = static_cast<char>(random.next());
    std::vector<char> wanted = got;
    std::copy(from.begin(), from.end(), wanted.begin());
    const DeviceBuffer source = upload(from), target = upload(got);
    kernels_->copy_bytes({.source = source.data(), .target = target.data(), .bytes = bytes});
    download(target, got.data());
    EXPECT_EQ(got, wanted) << bytes << " bytes";
  }
}

TEST_P(CudaElementwise, TakeSampledFillsTheRowsThatHaveASource) {
  constexpr size_t kMany = 1100;  // more than a block of threads
  std::vector<int32_t> ids(kMany), source(kMany), tokens(kMany);
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t i = 0; i < kMany; ++i) {
    source[i] = i % 3 == 0 ? -1 : static_cast<int32_t>((i * 7) % kMany);
    tokens[i] = static_cast<int32_t>(100000 + i);
  }
  std::vector<int32_t> wanted = ids;
  for (size_t i = 0; i < kMany; ++i)
    if (source[i] >= 0) wanted[i] = tokens[static_cast<size_t>(source[i])];
  const DeviceBuffer there = upload(std::vector<int32_t>(kMany, -7)), given = upload(ids),
                     from = upload(source), sampled = upload(tokens);
  kernels_->bring_step({.ids = {.ids = there.as<int32_t>(),
                                .given = given.as<int32_t>(),
                                .source = from.as<int32_t>(),
                                .tokens = sampled.as<int32_t>(),
                                .rows = kMany}});
  download(there, ids.data());
  EXPECT_EQ(ids, wanted);
}

// Null pointers: whoever launched a kernel all the same would fault, and whoever asked for shapes first would fail a check.
TEST_P(CudaElementwise, EmptyWorkOfEveryOpTouchesNothing) {
  kernels_->embed({});
  kernels_->add_rms_norm({});
  kernels_->matmul({});
  kernels_->fused_matmul({});
  kernels_->rope_kv_write({});
  kernels_->attention({});
  kernels_->silu_mul({});
  kernels_->copy_blocks({});
  kernels_->move_slots({});
  kernels_->copy_bytes({});
  kernels_->bring_step({});
  kernels_->sample({});
  kernels_->retention_slots({});
  kernels_->retention_scores({});
}

TEST_P(CudaElementwise, ReserveTakesWhatScratchBytesSays) {
  const ScratchLimits limits{
      .max_rows = 37, .max_sequences = 9, .max_q_heads = 12, .max_head_dim = 80, .max_length = 999};
  const int64_t before = shim_device().allocated_bytes();
  ASSERT_TRUE(kernels_->reserve(limits));
  EXPECT_EQ(shim_device().allocated_bytes() - before, kernels_->scratch_bytes(limits));
  EXPECT_GT(kernels_->scratch_bytes(limits), 0);
}

// ---- steps of more rows than a grid has blocks along y ----
// Small rows, and without the shim's checks of each access, which these shapes have under the other tests.
constexpr int64_t kManyRows = 65537;

class CudaManyRows : public CudaOps {
 protected:
  void SetUp() override {
    CudaOps::SetUp();
    shim::set_shim_options({});
  }
};

TEST_P(CudaManyRows, SiluMulRunsOnEachRow) {
  Random random(6);
  const Tensor gate_up = Tensor::random(random, act(), kManyRows * 2);
  Tensor wanted = Tensor::poisoned(DType::kF32, kManyRows), got = Tensor::poisoned(act(), kManyRows);
  const Tensor exact = gate_up.as_f32();
  reference().silu_mul({.gate_up = exact.data(), .out = wanted.data(), .rows = kManyRows, .width = 1});
  const DeviceBuffer from = upload(gate_up), to = upload(got);
  kernels_->silu_mul({.gate_up = from.data(), .out = to.data(), .rows = kManyRows, .width = 1});
  download(to, got.data());
  expect_near(got, wanted, 2e-5, "silu_mul");
}

TEST_P(CudaManyRows, RopeKvWriteRunsOnEachRow) {
  constexpr int32_t kDim = 16;
  Random random(7);
  const Tensor q = Tensor::random(random, act(), kManyRows * kDim),
               angles = Tensor::random(random, DType::kF32, 8 * kDim);
  std::vector<int32_t> positions(kManyRows);
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i % 8);
  const auto params = [&](void* qkv, const int32_t* at, const void* turns) {
    return RopeKvWriteParams{.qkv = qkv,
                             .positions = at,
                             .cos_sin = static_cast<const float*>(turns),
                             .rotary_dim = kDim,
                             .num_q_heads = 1,
                             .head_dim = kDim,
                             .rows = kManyRows};
  };
  Tensor wanted = q.as_f32(), got = q;
  reference().rope_kv_write(params(wanted.data(), positions.data(), angles.data()));
  const DeviceBuffer there = upload(q), at = upload(positions), turns = upload(angles);
  kernels_->rope_kv_write(params(there.data(), at.as<int32_t>(), turns.data()));
  download(there, got.data());
  expect_near(got, wanted, 1e-6, "rope_kv_write");
}

TEST_P(CudaManyRows, AddBiasRunsOnEachRow) {
  Random random(8);
  const Tensor x = Tensor::random(random, act(), kManyRows);
  const std::vector<float> bias = {0.75f};
  Tensor got = x, wanted = x.as_f32();
  for (size_t i = 0; i < wanted.size(); ++i) wanted.set(i, wanted.at(i) + bias[0]);
  const DeviceBuffer out = upload(x), bias_there = upload(bias);
  cuda_host::add_bias({.stream = shim_device().stream(), .activations = act()},
                      {.bias = bias_there.as<float>(), .out = out.data(), .m = kManyRows, .n = 1, .k = 8});
  download(out, got.data());
  expect_near(got, wanted, 1e-7, "add_bias");
}

TEST_P(CudaManyRows, CopyBlocksCopiesEachPair) {
  std::vector<int32_t> pairs(2 * kManyRows);
  std::iota(pairs.begin(), pairs.end(), 0);  // block 2 i to block 2 i + 1
  std::vector<int32_t> arena(2 * kManyRows * 4);
  for (size_t i = 0; i < arena.size(); ++i) arena[i] = static_cast<int32_t>(i);
  const DeviceBuffer there = upload(arena), pairs_there = upload(pairs);
  kernels_->copy_blocks(
      {.arena = there.as<char>(), .block_bytes = 16, .pairs = pairs_there.as<int32_t>(), .count = kManyRows});
  download(there, arena.data());
  for (size_t i = 0; i < arena.size(); ++i) ASSERT_EQ(arena[i], static_cast<int32_t>(i / 8 * 8 + i % 4)) << i;
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaElementwise,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF16), name_of_activations);
INSTANTIATE_TEST_SUITE_P(Activations, CudaManyRows, testing::Values(DType::kBF16, DType::kF16),
                         name_of_activations);

}  // namespace
}  // namespace quire
