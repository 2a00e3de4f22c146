// Method: every CUDA attention kernel that the host shim can run, with all of the shim's checks on, against the float64
// reference, on small odd shapes: each head size, group size, block size, dtype and option at least once. Each case runs three
// times, twice in a random order of blocks and warps: the bits must not depend on it.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/kernel/cuda_attention_case.h"

namespace quire::attention_test {
namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void expect_right(const Shape& shape, const std::vector<SharedPrefixShape>& prefixes = {}) {
  SCOPED_TRACE(shape.name);
  Case c(shape, 7, prefixes);
  const Outputs got = c.on_shim();
  EXPECT_EQ(difference(c, got, prefixes.empty() ? c.reference() : [&] {
              Outputs wanted = c.reference();
              wanted.row_logits.clear();  // not given by a cascade
              wanted.column_sums.clear();
              return wanted;
            }()), "");
  for (const uint64_t order : {1, 2}) {
    const Outputs again = c.on_shim(order);
    EXPECT_TRUE(same_bits(got.values, again.values)) << "values depend on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.lse, again.lse)) << "lse depends on the order of blocks, seed " << order;
    EXPECT_TRUE(same_bits(got.column_sums, again.column_sums)) << "column sums depend on the order of blocks, seed " << order;
  }
}

class Attention : public testing::TestWithParam<Shape> {};
TEST_P(Attention, EqualsTheReferenceInAnyOrder) { expect_right(GetParam()); }

const std::vector<int> kRagged = {1, 15, 16, 17, 33, 100, 70};

std::vector<Shape> decode_shapes() {
  return {
      {.name = "decode64", .head_dim = 64, .lengths = kRagged},
      {.name = "decode80", .head_dim = 80, .kv_heads = 1, .group = 8, .lengths = {17, 64, 90}},
      {.name = "decode96", .head_dim = 96, .kv_heads = 1, .group = 3, .lengths = {5, 50, 77}},
      {.name = "decode128", .head_dim = 128, .lengths = {130, 31, 64}, .multiprocessors = 7},
      {.name = "decode256", .head_dim = 256, .kv_heads = 1, .group = 2, .lengths = {40, 61}},
      {.name = "decode256_group9", .head_dim = 256, .kv_heads = 1, .group = 9, .lengths = {40, 20}},
      {.name = "group1", .kv_heads = 4, .group = 1, .lengths = {50, 20, 90}},
      {.name = "group9", .kv_heads = 1, .group = 9, .lengths = {50, 20}},
      {.name = "group16", .head_dim = 128, .kv_heads = 1, .group = 16, .lengths = {50, 20}},
      {.name = "group20", .kv_heads = 1, .group = 20, .lengths = {50, 40}},
      {.name = "f16", .dtype = DType::kF16, .head_dim = 128, .lengths = {65, 18}},
      {.name = "block8", .block_tokens = 8, .lengths = {1, 8, 9, 23, 41, 64}},
      {.name = "block32", .block_tokens = 32, .lengths = {31, 33, 90}},
      {.name = "block64", .block_tokens = 64, .lengths = {63, 65, 130}},
      {.name = "window", .lengths = {10, 40, 100, 67}, .window = 37},
      {.name = "soft_cap", .lengths = {44, 91}, .soft_cap = 3.0f},
      {.name = "sinks", .lengths = {1, 44, 91}, .sinks = true},
      {.name = "sink_query", .lengths = {3, 44, 91}, .sink_slots = 5},
      {.name = "sink_query_over_a_tile", .lengths = {44, 91}, .sink_slots = 21},
      {.name = "lists_per_head", .kv_heads = 3, .group = 2, .lengths = {33, 70, 12}, .lists_per_head = true},
      {.name = "padding", .lengths = {0, 33, 0, 0, 48, 0}},
      {.name = "no_early_fetch", .lengths = {33, 70}, .early_fetch = false},
      {.name = "one_block_of_threads", .lengths = kRagged, .multiprocessors = 1},
      {.name = "more_blocks_than_tiles", .lengths = {20, 3}, .multiprocessors = 40, .min_tiles = 1},
      {.name = "one_list_over_many_blocks", .kv_heads = 1, .lengths = {500}, .multiprocessors = 37, .min_tiles = 1},
      {.name = "four_warps", .lengths = kRagged, .warps = 4, .stages = 2},
      {.name = "four_stages", .lengths = {200, 150}, .multiprocessors = 2, .warps = 4, .stages = 4},
      {.name = "many_sequences", .kv_heads = 1, .group = 1, .lengths = std::vector<int>(300, 20), .multiprocessors = 3},
  };
}

std::vector<Shape> prefill_shapes() {
  return {
      {.name = "prefill64", .head_dim = 64, .lengths = {40, 17, 70}, .rows = {40, 2, 33}},
      {.name = "prefill80", .head_dim = 80, .kv_heads = 1, .group = 2, .lengths = {70, 9}, .rows = {70, 3}},
      {.name = "prefill96", .head_dim = 96, .kv_heads = 1, .group = 3, .lengths = {55}, .rows = {55}},
      {.name = "prefill128", .head_dim = 128, .kv_heads = 1, .lengths = {100, 33}, .rows = {37, 33}},
      {.name = "prefill256", .head_dim = 256, .kv_heads = 1, .group = 2, .lengths = {45}, .rows = {40}},
      {.name = "prefill_group1", .kv_heads = 2, .group = 1, .lengths = {150, 64}, .rows = {140, 64}},
      {.name = "prefill_f16", .dtype = DType::kF16, .lengths = {50, 20}, .rows = {33, 20}},
      {.name = "prefill_block8", .block_tokens = 8, .lengths = {41, 23}, .rows = {41, 9}},
      {.name = "prefill_block64", .block_tokens = 64, .lengths = {130}, .rows = {40}},
      {.name = "mixed", .lengths = {40, 50, 33, 64, 0, 90}, .rows = {1, 20, 1, 64, 0, 1}},
      {.name = "prefill_window", .lengths = {100, 30}, .rows = {60, 30}, .window = 21},
      {.name = "prefill_soft_cap", .lengths = {60}, .rows = {50}, .soft_cap = 3.0f},
      {.name = "prefill_sinks", .lengths = {60, 20}, .rows = {50, 20}, .sinks = true},
      {.name = "prefill_sink_query", .lengths = {90, 20}, .rows = {50, 20}, .sink_slots = 5},
      {.name = "prefill_sink_query_over_a_tile", .lengths = {120}, .rows = {50}, .sink_slots = 70},
      {.name = "prefill_lists_per_head", .kv_heads = 3, .group = 2, .lengths = {50, 30}, .rows = {20, 30}, .lists_per_head = true},
  };
}

// float32 and head sizes without a tensor-core kernel.
std::vector<Shape> plain_shapes() {
  return {
      {.name = "plain_f32", .dtype = DType::kF32, .lengths = {40, 33, 1, 64}, .rows = {40, 1, 1, 7}},
      {.name = "plain_f32_options", .dtype = DType::kF32, .head_dim = 32, .lengths = {70, 33}, .rows = {20, 1}, .window = 40, .soft_cap = 5.0f,
       .sinks = true},
      {.name = "plain_f32_sink_query", .dtype = DType::kF32, .lengths = {70, 33}, .rows = {20, 1}, .sink_slots = 9},
      {.name = "plain_head112", .head_dim = 112, .kv_heads = 1, .lengths = {33, 20}, .rows = {5, 1}},
      {.name = "plain_f16_head40", .dtype = DType::kF16, .head_dim = 40, .block_tokens = 8, .lengths = {33, 20}, .rows = {5, 1},
       .lists_per_head = true},
  };
}

const auto name_of_case = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Decode, Attention, testing::ValuesIn(decode_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Prefill, Attention, testing::ValuesIn(prefill_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Plain, Attention, testing::ValuesIn(plain_shapes()), name_of_case);

TEST(CascadeAttention, EqualsTheReferenceWithOnePrefixOfAll) {
  expect_right({.name = "one_prefix", .lengths = {80, 70, 65, 100}}, {{0, 64, {0, 1, 2, 3}}});
}
TEST(CascadeAttention, EqualsTheReferenceOverATreeOfPrefixes) {
  expect_right({.name = "tree", .head_dim = 128, .kv_heads = 1, .group = 2, .lengths = {90, 70, 55, 100, 20, 3}},
               {{0, 32, {0, 1, 2, 3}}, {32, 48, {0, 3}}, {32, 64, {1}}, {0, 16, {4}}});
}
TEST(CascadeAttention, EqualsTheReferenceWhenPrefixesAreSplit) {
  expect_right({.name = "split", .kv_heads = 1, .lengths = {1100, 1050}, .multiprocessors = 9}, {{0, 1040, {0, 1}}});
}
TEST(CascadeAttention, LeavesRowsOfOtherSequencesAlone) {
  expect_right({.name = "mixed_steps", .lengths = {80, 70, 65, 33}, .rows = {1, 1, 30, 1}, .sinks = true}, {{0, 48, {0, 1}}});
}

}  // namespace
}  // namespace quire::attention_test
