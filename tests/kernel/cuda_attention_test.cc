// Method: every CUDA attention kernel that the host shim can run, with all of the shim's checks on, against
// the float64 reference, on small odd shapes: each head size, group size, block size, dtype and option at
// least once. Each case runs three times, twice in a random order of blocks and warps: the bits must not
// depend on it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "kernels/cuda/attention/attention.h"
#include "tests/kernel/cuda_attention_case.h"
#include "tests/kernel/cuda_attention_shapes.h"

namespace quire::attention_test {
namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// What a step has between attention's plan and the first attention: a kernel, in whose place the plan is not read before it is whole.
__global__ void stand_between(int) {
  cuda_host::wait_for_previous_kernel();
}

enum class Plan { kOfTheCall, kOfTheStep };

// Runs p, a problem of c with its outputs attached, on the shim.
void run_on_shim(
    Case& c, AttentionParams p, uint64_t order_seed, const std::function<void()>& before = [] {},
    Plan plan = Plan::kOfTheCall) {
  cuda_host::AttentionContext context;
  context.machine.multiprocessors = c.shape().multiprocessors;
  context.decode = {.warps = c.shape().warps,
                    .stages = c.shape().stages,
                    .min_tiles = c.shape().min_tiles,
                    .aligned = c.shape().aligned};
  const auto need = cuda_host::attention_scratch_need(context.machine, context.decode, p.rows,
                                                      p.num_sequences, p.num_q_heads, p.head_dim);
  Region scratch(need.bytes());
  context.scratch = need.place(scratch.data());
  std::fill_n(context.scratch.counters, need.num_counters, 0);
  p.prefixes.num_splits = cuda_host::prefix_splits(context, c.shape().dtype, c.prefix_counts(), p.num_q_heads,
                                                   p.num_kv_heads, p.head_dim);
  shim::set_shim_options({.checking = true, .order_seed = order_seed});
  Region planned(
      cuda_host::attention_plan_bytes(context.machine, context.decode, p.num_sequences, p.num_q_heads));
  if (plan == Plan::kOfTheStep) {
    p.plan = planned.data();
    cuda_host::plan_attention(context, c.shape().dtype, p);
    cuda_host::launch<stand_between>({.dependent = true}, 0);
  }
  before();
  cuda_host::attention(context, c.shape().dtype, p);
  for (int64_t i = 0; i < need.num_counters; ++i)
    EXPECT_EQ(context.scratch.counters[i], 0) << "counter " << i;
}

Outputs on_shim(
    Case& c, uint64_t order_seed, const std::function<void()>& before = [] {}, Plan plan = Plan::kOfTheCall) {
  AttentionParams p = c.problem();
  OutputRegions out(p, c.shape().dtype);
  out.attach(p);
  run_on_shim(c, p, order_seed, before, plan);
  return out.take(c.shape().dtype, p.prefixes.num_nodes == 0);
}

void expect_right_after(Case& c, const std::function<void()>& before) {
  for (const Plan plan : {Plan::kOfTheCall, Plan::kOfTheStep})
    EXPECT_EQ(difference(c, on_shim(c, 0, before, plan), c.reference()), "");
}

// A call that asks for nothing beside the values runs another kernel, which gives the same bits.
void expect_the_same_values_alone(Case& c, const Outputs& wanted) {
  AttentionParams p = c.problem();
  OutputRegions out(p, c.shape().dtype);
  p.out = out.values.data();
  run_on_shim(c, p, 0, [] {}, Plan::kOfTheStep);
  EXPECT_TRUE(same_bits(out.take(c.shape().dtype, false).values, wanted.values))
      << "values differ where nothing else is asked for";
}

void expect_right(const Shape& shape) {
  Case c(shape, 7);
  const Outputs got = on_shim(c, 0);
  EXPECT_EQ(difference(c, got, c.reference()), "");
  expect_the_same_values_alone(c, got);
  for (const uint64_t order : {1, 2}) {
    const Outputs again = on_shim(c, order, [] {}, order == 1 ? Plan::kOfTheStep : Plan::kOfTheCall);
    EXPECT_TRUE(same_bits(got.values, again.values))
        << "values depend on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.lse, again.lse)) << "lse depends on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.partials, again.partials))
        << "partials depend on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.column_sums, again.column_sums))
        << "column sums depend on the order of blocks, seed " << order;
  }
}

class Attention : public testing::TestWithParam<Shape> {};
TEST_P(Attention, EqualsTheReferenceInAnyOrder) {
  expect_right(GetParam());
}

const auto name_of_case = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Decode, Attention, testing::ValuesIn(decode_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Prefill, Attention, testing::ValuesIn(prefill_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Plain, Attention, testing::ValuesIn(plain_shapes()), name_of_case);

INSTANTIATE_TEST_SUITE_P(Cascade, Attention, testing::ValuesIn(cascade_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(EveryHeadSize, Attention, testing::ValuesIn(shapes_of_every_head_size()),
                         name_of_case);

// Side outputs that lie one after another, each of its list's length, instead of at a stride; nobody wants those of sequence 1.
void expect_side_outputs_at_starts(const Shape& shape) {
  Case c(shape, 7);
  const Outputs wanted = on_shim(c, 0);
  AttentionParams p = c.problem();
  OutputRegions out(p, shape.dtype);
  out.attach(p);
  std::vector<int64_t> starts;
  int64_t floats = 0;
  for (size_t s = 0; s < shape.lengths.size(); ++s) {
    starts.push_back(s == 1 ? -1 : floats);
    if (s != 1) floats += int64_t{p.num_q_heads} * shape.lengths[s];
  }
  Region at(static_cast<int64_t>(starts.size()) * 8), logits(floats * 4), sums(floats * 4, 0);
  std::copy(starts.begin(), starts.end(), at.as<int64_t>());
  p.row_logits = logits.as<float>();
  p.column_sums = sums.as<float>();
  p.row_logits_stride = p.column_sums_stride = 0;
  p.row_logits_start = p.column_sums_start = at.as<int64_t>();
  run_on_shim(c, p, 0);
  for (size_t s = 0; s < shape.lengths.size(); ++s)
    for (int64_t h = 0; h < p.num_q_heads && starts[s] >= 0; ++h)
      for (int64_t slot = 0; slot < shape.lengths[s]; ++slot) {
        const auto from =
            static_cast<size_t>((static_cast<int64_t>(s) * p.num_q_heads + h) * p.max_length + slot);
        const int64_t to = starts[s] + h * shape.lengths[s] + slot;
        const float logit = wanted.row_logits[from];
        ASSERT_TRUE(std::isnan(logit) || logits.as<float>()[to] == logit)
            << shape.name << " logit of " << s << " " << h << " " << slot;
        ASSERT_EQ(sums.as<float>()[to], wanted.column_sums[from])
            << shape.name << " sum of " << s << " " << h << " " << slot;
      }
}

int32_t splits_on_an_h100(int32_t members, int32_t slots, int32_t nodes = 1) {
  cuda_host::AttentionContext context;
  context.machine.multiprocessors = 132;
  const auto need = cuda_host::attention_scratch_need(context.machine, context.decode, 2048, 256, 32, 128);
  context.scratch.prefix_floats = need.prefix_floats;
  const PrefixCounts counts{
      .num_nodes = nodes, .num_members = members, .member_room = members, .max_slots = slots};
  return cuda_host::prefix_splits(context, DType::kBF16, counts, 32, 8, 128);
}

// us measured on an H100 in 2, 4 and 8 parts (README.md beside the kernels).
TEST(PrefixSplits, AreAsManyAsTakeLeastTime) {
  EXPECT_EQ(splits_on_an_h100(64, 4096), 8) << "4: 36.6, 8: 35.7";
  EXPECT_EQ(splits_on_an_h100(128, 4096), 4) << "2: 62.9, 4: 55.3, 8: 66.4";
  EXPECT_EQ(splits_on_an_h100(256, 4096), 2) << "2: 132.1, 4: 142.2, 8: 146.3";
  EXPECT_EQ(splits_on_an_h100(256, 32768), 2) << "2: 295.6, 4: 304.4, 8: 328.3";
  EXPECT_EQ(splits_on_an_h100(16, 8192), 8) << "4: 46.6, 8: 39.2";
  EXPECT_EQ(splits_on_an_h100(4, 2048), 8) << "4: 17.0, 8: 15.3";
}

TEST(PrefixSplits, LeaveNoPartShorterThanIsWorthALaunchAndFitTheScratch) {
  EXPECT_EQ(splits_on_an_h100(8, 511), 1);
  EXPECT_EQ(splits_on_an_h100(8, 512), 2);
  EXPECT_EQ(splits_on_an_h100(8, 1300), 4);
  EXPECT_EQ(splits_on_an_h100(512, 4096, 200), 1) << "tiles enough without";
}

TEST(SideOutputs, AreTheSameWhereTheyHaveStarts) {
  expect_side_outputs_at_starts({.name = "one_row", .lengths = {33, 20, 70, 1}});
  expect_side_outputs_at_starts(
      {.name = "rows", .head_dim = 128, .kv_heads = 1, .lengths = {33, 20, 70}, .rows = {20, 3, 1}});
  expect_side_outputs_at_starts(
      {.name = "plain", .dtype = DType::kF32, .head_dim = 8, .lengths = {33, 20, 40}, .rows = {20, 1, 1}});
}

// The kernel before attention in a step: writes this step's slots, here with the bytes that they have
// already. Whatever attention fetches of them before its wait is stale on a card; the shim stops it.
__global__ void write_last_slots(AttentionParams p, int64_t block_bytes, int64_t head_bytes,
                                 int64_t v_offset) {
  cuda_host::wait_for_previous_kernel();
  const int sequence = cuda_host::blockIdx.x, slot = p.lengths[sequence] - 1, row_bytes = p.head_dim * 2;
  char* block = const_cast<char*>(p.arena) +
                p.block_table[sequence * p.table_stride + slot / p.layout.block_tokens] * block_bytes;
  for (int head = 0; head < p.num_kv_heads; ++head)
    for (const int64_t tile : {int64_t{0}, v_offset}) {
      char* byte = block + head * head_bytes + tile + slot % p.layout.block_tokens * row_bytes +
                   cuda_host::threadIdx.x;
      cuda_host::store(byte, cuda_host::load(byte));
    }
}

TEST(AttentionAfterTheWrite, FetchesNoSlotOfThisStepEarly) {
  Case c({.name = "after_write", .lengths = {33, 70, 16, 1}}, 7);
  AttentionParams p = c.problem();
  const KvLayout& l = p.layout;
  expect_right_after(c, [&] {
    cuda_host::launch<write_last_slots>(
        {.grid = {4}, .block = {static_cast<unsigned>(p.head_dim * 2)}, .dependent = true}, p,
        l.block_bytes(), l.head_stride(), l.kv_stride());
  });
}

}  // namespace
}  // namespace quire::attention_test
