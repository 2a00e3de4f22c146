// The ops that work row by row: embed, add_rms_norm, rope_kv_write, silu_mul, and copy_blocks. Method:
// cpu_test_rig.h. Tolerances: a handful of float32 roundings (2^-24 each) of values of order 1 to 4, and
// sqrt(hidden) of them in a norm.
#include <numeric>

#include "tests/kernel/cpu_test_rig.h"

namespace quire {
namespace {

constexpr int64_t kWidths[] = {1, 8, 16, 31, 64, 127, 576};

TEST(CpuEmbed, CopiesRowsOfEveryTableType) {
  Random random(1);
  for (const DType table : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int64_t hidden : kWidths) {
      const Tensor t = Tensor::random(random, table, 11 * hidden);
      const std::vector<int32_t> ids = {10, 0, 3, 3, 7};
      Tensor wanted = Tensor::poisoned(DType::kF32, 5 * hidden);
      EmbedParams p{.ids = ids.data(),
                    .table = t.data(),
                    .table_dtype = table,
                    .out = wanted.data(),
                    .rows = 5,
                    .hidden = hidden};
      reference().embed(p);
      for (const Variant& v : all_variants()) {
        Tensor got = Tensor::poisoned(v.act, 5 * hidden);
        p.out = got.data();
        open_kernels(v)->embed(p);
        expect_near(got, wanted, 0, to_string(v));
      }
    }
  }
}

struct NormRun {
  Tensor residual, out;
};

NormRun run_norm(Kernels& kernels, Tensor residual, const Tensor* delta, const Tensor& weight,
                 const std::vector<int32_t>* index, int64_t rows) {
  const int64_t hidden = static_cast<int64_t>(weight.size());
  NormRun run{std::move(residual), Tensor::poisoned(kernels.options().activations, rows * hidden)};
  kernels.add_rms_norm({.residual = run.residual.data(),
                        .delta = delta == nullptr ? nullptr : delta->data(),
                        .weight = static_cast<const float*>(weight.data()),
                        .out = run.out.data(),
                        .row_index = index == nullptr ? nullptr : index->data(),
                        .eps = 1e-5f,
                        .rows = rows,
                        .hidden = hidden});
  return run;
}

TEST(CpuAddRmsNorm, AgreesWithTheReferenceWithAndWithoutDeltaAndGather) {
  Random random(2);
  const std::vector<int32_t> gather = {4, 0, 4};
  for (const Variant& v : all_variants()) {
    const auto kernels = open_kernels(v);
    for (const int64_t hidden : kWidths) {
      const Tensor residual = Tensor::random(random, v.act, 5 * hidden),
                   delta = Tensor::random(random, v.act, 5 * hidden);
      const Tensor weight = Tensor::random(random, DType::kF32, hidden), delta_f32 = delta.as_f32();
      for (const bool adds : {false, true}) {
        for (const auto* index : {static_cast<const std::vector<int32_t>*>(nullptr), &gather}) {
          const int64_t rows = index == nullptr ? 5 : 3;
          const NormRun got = run_norm(*kernels, residual, adds ? &delta : nullptr, weight, index, rows);
          const NormRun wanted =
              run_norm(reference(), residual.as_f32(), adds ? &delta_f32 : nullptr, weight, index, rows);
          // bf16: the sum is rounded before the norm; that moves an element by half a unit and the scale by
          // less.
          const double rounding =
              v.act == DType::kF32 ? 0 : 2 * rounding_of(v.act) * std::sqrt(static_cast<double>(hidden));
          expect_near(got.out, wanted.out,
                      4e-7 * std::sqrt(static_cast<double>(hidden)) + (adds ? rounding : 0), to_string(v));
          expect_near(got.residual, wanted.residual, 1e-7, to_string(v) + " residual");
          if (!adds || index != nullptr) {
            EXPECT_EQ(got.residual, residual) << "written though nothing was to be";
          }
        }
      }
    }
  }
}

TEST(CpuAddRmsNorm, GathersTheBitsThatItWouldHaveWritten) {
  Random random(3);
  const std::vector<int32_t> index = {3, 1};
  const int64_t hidden = 100;
  for (const Variant& v : all_variants()) {
    const auto kernels = open_kernels(v);
    const Tensor residual = Tensor::random(random, v.act, 5 * hidden),
                 delta = Tensor::random(random, v.act, 5 * hidden);
    const Tensor weight = Tensor::random(random, DType::kF32, hidden);
    const NormRun all = run_norm(*kernels, residual, &delta, weight, nullptr, 5);
    const NormRun some = run_norm(*kernels, residual, &delta, weight, &index, 2);
    for (size_t r = 0; r < 2; ++r) {
      for (size_t i = 0; i < 100; ++i)
        ASSERT_EQ(some.out.at(r * 100 + i), all.out.at(static_cast<size_t>(index[r]) * 100 + i));
    }
  }
}

TEST(CpuSiluMul, AgreesWithTheReferenceFromVerySmallToVeryLarge) {
  Random random(4);
  for (const Variant& v : all_variants()) {
    const auto kernels = open_kernels(v);
    for (const int64_t width : {int64_t{1}, int64_t{15}, int64_t{48}, int64_t{2049}}) {
      for (const double scale : {1e-6, 1.0, 20.0, 200.0}) {
        const Tensor gate_up = Tensor::random(random, v.act, 3 * 2 * width, scale), exact = gate_up.as_f32();
        Tensor got = Tensor::poisoned(v.act, 3 * width), wanted = Tensor::poisoned(DType::kF32, 3 * width);
        kernels->silu_mul({.gate_up = gate_up.data(), .out = got.data(), .rows = 3, .width = width});
        reference().silu_mul({.gate_up = exact.data(), .out = wanted.data(), .rows = 3, .width = width});
        for (size_t i = 0; i < got.size(); ++i) {  // relative: 6 roundings; below exp(-86) a weight may be 0
          ASSERT_NEAR(got.at(i), wanted.at(i),
                      std::abs(wanted.at(i)) * (6 * 0x1p-24 + 1.01 * rounding_of(v.act)) + 1e-30)
              << to_string(v) << " element " << i;
        }
      }
    }
  }
}

struct RopeCase {
  int32_t q_heads = 4, kv_heads = 2, dim = 64, rotary = 64, block_tokens = 16;
  DType kv = DType::kBF16;
  bool norms = false, q_out = false, own_lists = false, shared_blocks = false, sinks = false;
};

struct RopeRun {
  Tensor qkv, q_out, arena, q_sink;
};

constexpr int64_t kRopeRows = 7, kRopeBlocks = 9, kMaxPosition = 50;

RopeRun run_rope(Kernels& kernels, const RopeCase& c, const Tensor& qkv, const Tensor& turns,
                 const Tensor& norms, const std::vector<int64_t>& slots) {
  const KvLayout layout{.dtype = c.kv,
                        .num_layers = 2,
                        .num_kv_heads = c.own_lists && !c.shared_blocks ? 1 : c.kv_heads,
                        .head_dim = c.dim,
                        .block_tokens = c.block_tokens};
  const std::vector<int32_t> positions = {0, 1, 49, 7, 7, 30, 12};
  RopeRun run{
      qkv, Tensor::poisoned(kernels.options().activations, kRopeRows * c.q_heads * c.dim),
      Tensor::poisoned(c.kv, kRopeBlocks * layout.block_bytes() / bytes_of(c.kv)),
      Tensor::poisoned(kernels.options().activations, kRopeRows * (c.q_heads + 2 * c.kv_heads) * c.dim)};
  const std::vector<int32_t> sink_positions = {0, 1, 9, 7, 6, 9, 9};
  const float* norm = static_cast<const float*>(norms.data());
  kernels.rope_kv_write({.qkv = run.qkv.data(),
                         .q_out = c.q_out ? run.q_out.data() : nullptr,
                         .q_sink_out = c.sinks ? run.q_sink.data() : nullptr,
                         .sink_positions = c.sinks ? sink_positions.data() : nullptr,
                         .positions = positions.data(),
                         .slots = slots.data(),
                         .slot_stride = c.own_lists ? c.kv_heads : 1,
                         .cos_sin = static_cast<const float*>(turns.data()),
                         .rotary_dim = c.rotary,
                         .q_norm = c.norms ? norm : nullptr,
                         .k_norm = c.norms ? norm + c.dim : nullptr,
                         .arena = run.arena.bytes() + layout.layer_stride(),
                         .layout = layout,
                         .num_q_heads = c.q_heads,
                         .num_kv_heads = c.kv_heads,
                         .head_dim = c.dim,
                         .rows = kRopeRows});
  return run;
}

// NaN where nothing was written, in both or in neither. Both sides were rounded to the arena's type: a hair
// of float32 can take them to neighbours, two half units apart.
void expect_same_writes(const Tensor& got, const Tensor& wanted, double absolute, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got.at(i)), std::isnan(wanted.at(i))) << what << " element " << i;
    if (std::isnan(wanted.at(i))) continue;
    ASSERT_NEAR(got.at(i), wanted.at(i), absolute + 2.02 * rounding_of(got.dtype()) * std::abs(wanted.at(i)))
        << what << " element " << i;
  }
}

void check_rope(const RopeCase& c, Random& random) {
  std::vector<int64_t> slots(static_cast<size_t>(kRopeRows * (c.own_lists ? c.kv_heads : 1)));
  for (size_t i = 0; i < slots.size(); ++i)
    slots[i] = static_cast<int64_t>(i) * 3 % (kRopeBlocks * c.block_tokens);
  const size_t lists = slots.size() / kRopeRows;
  for (size_t h = 0; h < lists; ++h) slots[2 * lists + h] = -1;  // row 2 is padding
  if (c.own_lists) slots[5 * lists] = -1;                        // row 5 keeps nothing in its first head
  Tensor turns = Tensor::random(random, DType::kF32, kMaxPosition * c.dim);
  const Tensor norms = Tensor::random(random, DType::kF32, 2 * c.dim);
  for (const Variant& v : all_variants()) {
    const Tensor qkv = Tensor::random(random, v.act, kRopeRows * (c.q_heads + 2 * c.kv_heads) * c.dim);
    const RopeRun got = run_rope(*open_kernels(v), c, qkv, turns, norms, slots);
    const RopeRun wanted = run_rope(reference(), c, qkv.as_f32(), turns, norms, slots);
    const std::string what = to_string(v) + " dim " + std::to_string(c.dim);
    expect_same_writes(got.arena, wanted.arena, 2e-6, what + " arena");
    expect_same_writes(got.qkv, wanted.qkv, 2e-6, what + " qkv");
    expect_same_writes(got.q_out, wanted.q_out, 2e-6, what + " q_out");
    expect_same_writes(got.q_sink, wanted.q_sink, 2e-6, what + " q_sink_out");
  }
}

TEST(CpuRopeKvWrite, AgreesWithTheReferenceAndSkipsPadding) {
  Random random(5);
  for (const int32_t dim : {8, 16, 64, 80, 96, 128, 256}) check_rope({.dim = dim, .rotary = dim}, random);
  for (const DType kv : {DType::kF32, DType::kF16})
    check_rope({.kv = kv, .norms = true, .q_out = true}, random);
  check_rope({.dim = 80, .rotary = 32, .block_tokens = 8}, random);
  check_rope({.q_heads = 6,
              .kv_heads = 3,
              .dim = 32,
              .rotary = 30,
              .block_tokens = 8,
              .norms = true,
              .own_lists = true},
             random);
  // a slot of its own for each head, in common blocks
  check_rope({.own_lists = true, .shared_blocks = true}, random);
  check_rope({.norms = true, .sinks = true}, random);
  check_rope({.dim = 80, .rotary = 32, .q_out = true, .sinks = true}, random);
  check_rope({.q_heads = 3, .kv_heads = 0, .dim = 32, .rotary = 32},
             random);  // a layer that reads another's K and V
  check_rope({.dim = 64, .rotary = 0}, random);
}

TEST(CpuCopyBlocks, CopiesWholeBlocksAndNothingElse) {
  Random random(6);
  for (const int64_t block_bytes : {int64_t{1}, int64_t{4097}, int64_t{200000}}) {
    std::vector<char> arena(static_cast<size_t>(6 * block_bytes));
    for (char& c : arena) c = static_cast<char>(random.next());
    std::vector<char> wanted = arena;
    const std::vector<int32_t> pairs = {0, 5, 3, 1, 0, 2};
    reference().copy_blocks(
        {.arena = wanted.data(), .block_bytes = block_bytes, .pairs = pairs.data(), .count = 3});
    open_kernels({.isa = machine_isa()})
        ->copy_blocks({.arena = arena.data(), .block_bytes = block_bytes, .pairs = pairs.data(), .count = 3});
    EXPECT_EQ(arena, wanted);
    EXPECT_EQ(0, std::memcmp(arena.data() + 5 * block_bytes, arena.data(), static_cast<size_t>(block_bytes)));
  }
}

TEST(CpuMoveSlots, TakesEachHeadsOwnSlots) {
  Random random(8);
  for (const DType kv : {DType::kF32, DType::kBF16}) {
    const KvLayout layout{.dtype = kv, .num_layers = 3, .num_kv_heads = 2, .head_dim = 24, .block_tokens = 8};
    const std::vector<int32_t> source_blocks = {6, 1, 4}, target_blocks = {2, 5};
    std::vector<int32_t> slots;
    for (int i = 0; i < 3 * 2 * 11; ++i) slots.push_back(static_cast<int32_t>(random.below(24)));
    std::vector<char> arena(static_cast<size_t>(7 * layout.block_bytes()));
    for (char& c : arena) c = static_cast<char>(random.next());
    std::vector<char> wanted = arena;
    const auto params = [&](std::vector<char>& of) {
      return MoveSlotsParams{.arena = of.data(),
                             .layout = layout,
                             .source_blocks = source_blocks.data(),
                             .target_blocks = target_blocks.data(),
                             .source_slots = slots.data(),
                             .source_stride = 11,
                             .count = 11};
    };
    reference().move_slots(params(wanted));
    open_kernels({.isa = machine_isa()})->move_slots(params(arena));
    EXPECT_EQ(arena, wanted);
    // slot 10 of layer 2, head 1
    const char* moved = arena.data() + 5 * layout.block_bytes() + layout.k_offset(2, 1, 2);
    const int32_t from = slots[(2 * 2 + 1) * 11 + 10];
    const char* source =
        arena.data() + source_blocks[from / 8] * layout.block_bytes() + layout.k_offset(2, 1, from % 8);
    EXPECT_EQ(0, std::memcmp(moved, source, static_cast<size_t>(layout.token_bytes())));
  }
}

TEST(CpuRowOps, DoNothingForNoRows) {
  const auto kernels = open_kernels({.isa = machine_isa()});
  kernels->embed({});
  kernels->add_rms_norm({});
  kernels->matmul({});
  kernels->rope_kv_write({});
  kernels->attention({});
  kernels->silu_mul({});
  kernels->copy_blocks({});
  kernels->move_slots({});
}

}  // namespace
}  // namespace quire
