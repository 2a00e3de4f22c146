// Method: every CUDA attention kernel that the host shim can run, with all of the shim's checks on, against
// the float64 reference, on small odd shapes: each head size, group size, block size, dtype and option at
// least once. Each case runs three times, twice in a random order of blocks and warps: the bits must not
// depend on it.
#include <gtest/gtest.h>

#include <algorithm>
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

Outputs on_shim(
    Case& c, uint64_t order_seed, const std::function<void()>& before = [] {}) {
  AttentionParams p = c.problem();
  OutputRegions out(p, c.shape().dtype);
  out.attach(p);
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
  before();
  cuda_host::attention(context, c.shape().dtype, p);
  for (int64_t i = 0; i < need.num_counters; ++i)
    EXPECT_EQ(context.scratch.counters[i], 0) << "counter " << i;
  return out.take(c.shape().dtype, p.prefixes.num_nodes == 0);
}

void expect_right_after(Case& c, const std::function<void()>& before) {
  EXPECT_EQ(difference(c, on_shim(c, 0, before), c.reference()), "");
}

void expect_right(const Shape& shape) {
  Case c(shape, 7);
  const Outputs got = on_shim(c, 0);
  EXPECT_EQ(difference(c, got, c.reference()), "");
  for (const uint64_t order : {1, 2}) {
    const Outputs again = on_shim(c, order);
    EXPECT_TRUE(same_bits(got.values, again.values))
        << "values depend on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.lse, again.lse)) << "lse depends on the order of blocks, seed " << order;
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
