// The CUDA row kernels: rotation with the write of K and V, also as KV policies ask (a second rotation of q, a slot of its own for
// each head in common blocks), the move of kept slots and the bringing of a step, against kernels/reference. Method: cuda_test_rig.h.
#include "tests/kernel/cuda_test_rig.h"

namespace quire {
namespace {

using CudaRows = CudaOps;

constexpr int64_t kPositions = 40;
constexpr int32_t kQHeads = 4, kKvHeads = 2, kBlocks = 5, kBlockTokens = 8;

// `sinks`: q's second rotation. `own_slots`: a slot for each head, as KV policies ask; otherwise one for each row.
struct RopeShape {
  int32_t dim = 64, rotary = 64;
  bool norms = false, sinks = true, own_slots = true;
  int64_t rows = 4;
};

// Positions, positions for sinks, and a slot of its own for each head of a row. Row 2, and each seventh of many, is padding.
struct RopeRows {
  std::vector<int32_t> positions = {39, 3, 0, 20}, sink_positions = {9, 3, 0, 9};
  std::vector<int64_t> slots = {3, 38, 17, 17, -1, -1, 30, 8};

  explicit RopeRows(int64_t rows) {
    for (int64_t r = 4; r < rows; ++r) {
      positions.push_back(static_cast<int32_t>(r * 7 % kPositions));
      sink_positions.push_back(static_cast<int32_t>(r * 3 % kPositions));
      const bool padding = r % 7 == 2;
      slots.push_back(padding ? -1 : 40 + r);
      slots.push_back(padding ? -1 : 40 + rows - r);
    }
  }
  // Of the first heads alone.
  std::vector<int64_t> slots_of_rows() const {
    std::vector<int64_t> first;
    for (size_t i = 0; i < slots.size(); i += kKvHeads) first.push_back(slots[i]);
    return first;
  }
  int32_t blocks() const { return kBlocks + static_cast<int32_t>(positions.size()) / kBlockTokens + 1; }
};

const std::vector<RopeShape> kRopeShapes = {
    {},
    {.dim = 128, .rotary = 128, .norms = true},
    {.dim = 80, .rotary = 32},
    {.dim = 80, .rotary = 80, .norms = true},
    {.dim = 96, .rotary = 96, .norms = true},
    {.dim = 256, .rotary = 256, .norms = true},
    {.rows = 513},
    {.sinks = false, .rows = 515},
    {.dim = 128, .rotary = 128, .norms = true, .sinks = false, .rows = 520},
    // As steps without a policy have it.
    {.sinks = false, .own_slots = false},
    {.dim = 80, .rotary = 32, .sinks = false, .own_slots = false},
    {.dim = 256, .rotary = 256, .sinks = false, .own_slots = false},
    {.dim = 128, .rotary = 128, .norms = true, .sinks = false, .own_slots = false, .rows = 520}};

// Both sides' outputs, NaN where nothing was written.
struct RopeOutputs {
  Tensor qkv, q_sink, arena;
};

TEST_P(CudaRows, RotatesAlsoForSinksAndWritesEachRowOrHeadToItsSlot) {
  Random random(11);
  const DType act = GetParam();
  for (const RopeShape& shape : kRopeShapes) {
    const RopeRows rows(shape.rows);
    const std::vector<int64_t> slots = shape.own_slots ? rows.slots : rows.slots_of_rows();
    const KvLayout layout{.dtype = act,
                          .num_layers = 2,
                          .num_kv_heads = kKvHeads,
                          .head_dim = shape.dim,
                          .block_tokens = kBlockTokens};
    const int64_t stride = (kQHeads + 2 * kKvHeads) * shape.dim,
                  arena_elements = rows.blocks() * layout.block_bytes() / bytes_of(act);
    const Tensor qkv = Tensor::random(random, act, shape.rows * stride),
                 turns = Tensor::random(random, DType::kF32, kPositions * shape.dim);
    const Tensor norms = Tensor::random(random, DType::kF32, 2 * shape.dim);
    const auto params = [&](void* q, void* sink, char* arena, const int32_t* at, const int32_t* sink_at,
                            const int64_t* to, const float* cos_sin, const float* norm) {
      return RopeKvWriteParams{.qkv = q,
                               .q_sink_out = shape.sinks ? sink : nullptr,
                               .sink_positions = shape.sinks ? sink_at : nullptr,
                               .positions = at,
                               .slots = to,
                               .slot_stride = shape.own_slots ? kKvHeads : 1,
                               .cos_sin = cos_sin,
                               .rotary_dim = shape.rotary,
                               .q_norm = shape.norms ? norm : nullptr,
                               .k_norm = shape.norms ? norm + shape.dim : nullptr,
                               .arena = arena + layout.layer_stride(),
                               .layout = layout,
                               .num_q_heads = kQHeads,
                               .num_kv_heads = kKvHeads,
                               .head_dim = shape.dim,
                               .rows = shape.rows};
    };
    RopeOutputs wanted{qkv.as_f32(), Tensor::poisoned(DType::kF32, shape.rows * stride),
                       Tensor::poisoned(act, arena_elements)};
    reference().rope_kv_write(params(wanted.qkv.data(), wanted.q_sink.data(), wanted.arena.bytes(),
                                     rows.positions.data(), rows.sink_positions.data(), slots.data(),
                                     static_cast<const float*>(turns.data()),
                                     static_cast<const float*>(norms.data())));
    RopeOutputs got{qkv, Tensor::poisoned(act, shape.rows * stride), Tensor::poisoned(act, arena_elements)};
    const DeviceBuffer q = upload(got.qkv), sink = upload(got.q_sink), arena = upload(got.arena),
                       at = upload(rows.positions), sink_at = upload(rows.sink_positions), to = upload(slots),
                       cos_sin = upload(turns), norm = upload(norms);
    kernels_->rope_kv_write(params(q.data(), sink.data(), arena.as<char>(), at.as<int32_t>(),
                                   sink_at.as<int32_t>(), to.as<int64_t>(), cos_sin.as<float>(),
                                   norm.as<float>()));
    download(q, got.qkv.data()), download(sink, got.q_sink.data()), download(arena, got.arena.data());
    const auto compare = [&](const Tensor& a, const Tensor& b, const char* what) {
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_EQ(std::isnan(a.at(i)), std::isnan(b.at(i))) << what << " " << i << " dim " << shape.dim;
        if (std::isnan(b.at(i))) continue;
        // One rounding to the activations' type on each side, and float32 sums with an approximate root.
        ASSERT_NEAR(a.at(i), b.at(i), 4e-6 + 2.02 * rounding_of(act) * std::abs(b.at(i)))
            << what << " " << i << " dim " << shape.dim;
      }
    };
    compare(got.qkv, wanted.qkv, "qkv");
    compare(got.q_sink, wanted.q_sink, "q_sink_out");
    compare(got.arena, wanted.arena, "arena");
  }
}

TEST_P(CudaRows, MovesEachListsOwnSlots) {
  Random random(12);
  const KvLayout layout{
      .dtype = GetParam(), .num_layers = 3, .num_kv_heads = kKvHeads, .head_dim = 40, .block_tokens = 8};
  const std::vector<int32_t> source_blocks = {4, 1, 3}, target_blocks = {2, 0};
  for (const int32_t heads_per_list : {1, kKvHeads}) {
    const int64_t stride = heads_per_list == 1 ? 11 : 14;
    std::vector<int32_t> slots;
    for (int64_t i = 0; i < 3 * kKvHeads / heads_per_list * stride; ++i)
      slots.push_back(static_cast<int32_t>(random.below(24)));
    std::vector<char> arena(static_cast<size_t>(kBlocks * layout.block_bytes()));
    for (char& c : arena) c = static_cast<char>(random.next());
    std::vector<char> wanted = arena;
    const DeviceBuffer on_device = upload(arena), from = upload(source_blocks), to = upload(target_blocks),
                       at = upload(slots);
    MoveSlotsParams p{.arena = wanted.data(),
                      .layout = layout,
                      .source_blocks = source_blocks.data(),
                      .target_blocks = target_blocks.data(),
                      .source_slots = slots.data(),
                      .source_stride = stride,
                      .heads_per_list = heads_per_list,
                      .count = 11};
    reference().move_slots(p);
    p.arena = on_device.as<char>();
    p.source_blocks = from.as<int32_t>();
    p.target_blocks = to.as<int32_t>();
    p.source_slots = at.as<int32_t>();
    kernels_->move_slots(p);
    download(on_device, arena.data());
    EXPECT_EQ(arena, wanted) << heads_per_list << " heads a list";
  }
}

// Rows that stay, grow by one, are new whole, move, and are nobody's; entries that no row names stay as they were.
TEST_P(CudaRows, BringsAStepsArraysAndItsTablesFromThoseBefore) {
  constexpr int64_t kStride = 300, kTableRows = 6;
  constexpr int32_t kPoison = -7;
  std::vector<int32_t> before(kStride * kTableRows), entries(310), words(1000);
  for (std::vector<int32_t>* values : {&before, &entries, &words})
    for (size_t i = 0; i < values->size(); ++i) (*values)[i] = static_cast<int32_t>(i * 3 + values->size());
  const std::vector<TableRow> rows = {{.from = 4, .kept = 290},
                                      {.from = 1, .kept = 7, .added = 1, .entries = 41},
                                      {.added = 300, .entries = 10},
                                      {.from = 0, .kept = 257, .added = 2, .entries = 5},
                                      {},
                                      {.added = 1, .entries = 3}};
  std::vector<int32_t> wanted(before.size(), kPoison);
  for (size_t r = 0; r < rows.size(); ++r)
    for (int32_t i = 0; i < rows[r].kept + rows[r].added; ++i) {
      const int32_t added = i - rows[r].kept;
      wanted[r * kStride + static_cast<size_t>(i)] =
          added < 0            ? before[static_cast<size_t>(rows[r].from * kStride + i)]
          : rows[r].added == 1 ? rows[r].entries
                               : entries[static_cast<size_t>(rows[r].entries + added)];
    }
  const DeviceBuffer tables = upload(before), after = upload(std::vector<int32_t>(before.size(), kPoison)),
                     records = upload(rows), more = upload(entries), source = upload(words),
                     target = upload(std::vector<int32_t>(words.size(), kPoison));
  const std::vector<int32_t> given = {5, 6, 7}, from = {-1, 2, 0}, sampled = {70, 80, 90};
  const DeviceBuffer ids = upload(std::vector<int32_t>(3, kPoison)), known = upload(given),
                     sources = upload(from), tokens = upload(sampled);
  BringStepParams p{.arrays = {.source = source.data(), .target = target.data(), .bytes = 999 * 4},
                    .ids = {.ids = ids.as<int32_t>(),
                            .given = known.as<int32_t>(),
                            .source = sources.as<int32_t>(),
                            .tokens = tokens.as<int32_t>(),
                            .rows = 3},
                    .rows = records.as<TableRow>(),
                    .entries = more.as<int32_t>(),
                    .before = tables.as<int32_t>(),
                    .after = after.as<int32_t>(),
                    .stride = kStride,
                    .num_rows = kTableRows};
  kernels_->bring_step(p);
  std::vector<int32_t> got(before.size()), copied(words.size());
  download(after, got.data()), download(target, copied.data());
  EXPECT_EQ(got, wanted);
  std::vector<int32_t> taken(3);
  download(ids, taken.data());
  EXPECT_EQ(taken, (std::vector<int32_t>{5, 90, 70}));
  words.back() = kPoison;
  EXPECT_EQ(copied, words);
  p.arrays.bytes = p.ids.rows = 0;
  kernels_->bring_step(p);  // the tables alone
  p.num_rows = 0;
  kernels_->bring_step(p);  // nothing
  download(after, got.data());
  EXPECT_EQ(got, wanted);
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaRows, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         name_of_activations);

}  // namespace
}  // namespace quire
