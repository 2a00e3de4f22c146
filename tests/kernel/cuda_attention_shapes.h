// The problems of the attention tests: each head size, group size, block size, dtype and option at least
// once, small and odd.
#pragma once

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernel/cuda_attention_case.h"

namespace quire::attention_test {

inline void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.name;
}

inline const std::vector<int> kRagged = {1, 15, 16, 17, 33, 100, 70};

inline std::vector<Shape> decode_shapes() {
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
      {.name = "f16_head80_group5",
       .dtype = DType::kF16,
       .head_dim = 80,
       .kv_heads = 1,
       .group = 5,
       .lengths = {17, 50}},
      {.name = "f16_head96_group6",
       .dtype = DType::kF16,
       .head_dim = 96,
       .kv_heads = 1,
       .group = 6,
       .lengths = {5, 50}},
      {.name = "f16_head256_group7",
       .dtype = DType::kF16,
       .head_dim = 256,
       .kv_heads = 1,
       .group = 7,
       .lengths = {40, 21}},
      {.name = "block8", .block_tokens = 8, .lengths = {1, 8, 9, 23, 41, 64}},
      {.name = "block32", .block_tokens = 32, .lengths = {31, 33, 90}},
      {.name = "block64", .block_tokens = 64, .lengths = {63, 65, 130}},
      {.name = "window", .lengths = {10, 40, 100, 67}, .window = 37},
      {.name = "soft_cap", .lengths = {44, 91}, .soft_cap = 3.0f},
      {.name = "sinks", .lengths = {1, 44, 91}, .sinks = true},
      {.name = "sink_query", .lengths = {3, 44, 91}, .sink_slots = 5},
      {.name = "sink_query_over_a_tile", .lengths = {44, 91}, .sink_slots = 21},
      {.name = "own_windows", .lengths = {10, 40, 100, 67, 64}, .windows = {3, 40, 37, 0, 1}},
      {.name = "own_windows_and_the_layers", .lengths = {40, 100, 67}, .window = 30, .windows = {0, 17, 50}},
      {.name = "streams", .lengths = {3, 44, 91, 140, 20}, .sink_slots = 5, .windows = {7, 9, 30, 20, 0}},
      {.name = "stream_sinks_over_a_tile",
       .head_dim = 128,
       .lengths = {44, 150},
       .sink_slots = 21,
       .windows = {16, 33}},
      {.name = "lists_per_head", .kv_heads = 3, .group = 2, .lengths = {33, 70, 12}, .lists_per_head = true},
      {.name = "padding", .lengths = {0, 33, 0, 0, 48, 0}},
      {.name = "no_early_fetch", .lengths = {33, 70}, .early_fetch = false},
      {.name = "one_block_of_threads", .lengths = kRagged, .multiprocessors = 1},
      {.name = "more_blocks_than_tiles", .lengths = {20, 3}, .multiprocessors = 40, .min_tiles = 1},
      {.name = "more_blocks_than_ranges",
       .lengths = {20, 3},
       .multiprocessors = 40,
       .min_tiles = 8,
       .aligned = false},
      {.name = "one_list_over_many_blocks",
       .kv_heads = 1,
       .lengths = {500},
       .multiprocessors = 37,
       .min_tiles = 1},
      {.name = "four_warps", .lengths = kRagged, .warps = 4, .stages = 2},
      {.name = "four_stages", .lengths = {200, 150}, .multiprocessors = 2, .warps = 4, .stages = 4},
      {.name = "equal_lists_split", .lengths = {150, 145}, .multiprocessors = 13},
      {.name = "equal_lists_not_aligned", .lengths = {150, 145}, .multiprocessors = 13, .aligned = false},
      {.name = "equal_lists_whole", .kv_heads = 3, .lengths = {40, 0, 33, 48, 41}, .multiprocessors = 5},
      {.name = "equal_lists_mostly_idle", .kv_heads = 1, .lengths = {640, 639, 638}, .multiprocessors = 5},
      {.name = "units_shared_with_the_next_block",
       .kv_heads = 4,
       .lengths = {400},
       .multiprocessors = 3,
       .aligned = false},
      {.name = "many_sequences",
       .kv_heads = 1,
       .group = 1,
       .lengths = std::vector<int>(300, 20),
       .multiprocessors = 3},
  };
}

inline std::vector<Shape> prefill_shapes() {
  return {
      {.name = "prefill64", .head_dim = 64, .lengths = {40, 17, 70}, .rows = {40, 2, 33}},
      {.name = "prefill80", .head_dim = 80, .kv_heads = 1, .group = 2, .lengths = {70, 9}, .rows = {70, 3}},
      {.name = "prefill96", .head_dim = 96, .kv_heads = 1, .group = 3, .lengths = {55}, .rows = {55}},
      {.name = "prefill128", .head_dim = 128, .kv_heads = 1, .lengths = {100, 33}, .rows = {37, 33}},
      {.name = "prefill256", .head_dim = 256, .kv_heads = 1, .group = 2, .lengths = {45}, .rows = {40}},
      {.name = "prefill_group1", .kv_heads = 2, .group = 1, .lengths = {150, 64}, .rows = {140, 64}},
      {.name = "prefill_f16", .dtype = DType::kF16, .lengths = {50, 20}, .rows = {33, 20}},
      {.name = "prefill_f16_head80_group5",
       .dtype = DType::kF16,
       .head_dim = 80,
       .kv_heads = 1,
       .group = 5,
       .lengths = {40},
       .rows = {33}},
      {.name = "prefill_f16_head96_group6",
       .dtype = DType::kF16,
       .head_dim = 96,
       .kv_heads = 1,
       .group = 6,
       .lengths = {35},
       .rows = {30}},
      {.name = "prefill_f16_head256_group7",
       .dtype = DType::kF16,
       .head_dim = 256,
       .kv_heads = 1,
       .group = 7,
       .lengths = {40},
       .rows = {20}},
      {.name = "prefill_block8", .block_tokens = 8, .lengths = {41, 23}, .rows = {41, 9}},
      {.name = "prefill_block32", .block_tokens = 32, .lengths = {70, 33}, .rows = {45, 33}},
      {.name = "prefill_block64", .block_tokens = 64, .lengths = {130}, .rows = {40}},
      {.name = "mixed", .lengths = {40, 50, 33, 64, 0, 90}, .rows = {1, 20, 1, 64, 0, 1}},
      {.name = "prefill_window", .lengths = {100, 30}, .rows = {60, 30}, .window = 21},
      {.name = "prefill_soft_cap", .lengths = {60}, .rows = {50}, .soft_cap = 3.0f},
      {.name = "prefill_sinks", .lengths = {60, 20}, .rows = {50, 20}, .sinks = true},
      {.name = "prefill_sink_query", .lengths = {90, 20}, .rows = {50, 20}, .sink_slots = 5},
      {.name = "prefill_sink_query_over_a_tile", .lengths = {120}, .rows = {50}, .sink_slots = 70},
      {.name = "prefill_own_windows", .lengths = {100, 30, 70}, .rows = {60, 30, 70}, .windows = {21, 0, 1}},
      {.name = "prefill_streams",
       .lengths = {150, 40, 20},
       .rows = {100, 40, 1},
       .sink_slots = 5,
       .windows = {17, 8, 6}},
      {.name = "prefill_stream_sinks_over_a_tile",
       .head_dim = 128,
       .lengths = {200},
       .rows = {150},
       .sink_slots = 70,
       .windows = {33}},
      {.name = "prefill_lists_per_head",
       .kv_heads = 3,
       .group = 2,
       .lengths = {50, 30},
       .rows = {20, 30},
       .lists_per_head = true},
  };
}

// float32 and head sizes without a tensor-core kernel.
inline std::vector<Shape> plain_shapes() {
  return {
      {.name = "plain_f32", .dtype = DType::kF32, .lengths = {40, 33, 1, 64}, .rows = {40, 1, 1, 7}},
      {.name = "plain_f32_options",
       .dtype = DType::kF32,
       .head_dim = 32,
       .lengths = {70, 33},
       .rows = {20, 1},
       .window = 40,
       .soft_cap = 5.0f,
       .sinks = true},
      {.name = "plain_f32_sink_query",
       .dtype = DType::kF32,
       .lengths = {70, 33},
       .rows = {20, 1},
       .sink_slots = 9},
      {.name = "plain_f32_streams",
       .dtype = DType::kF32,
       .lengths = {90, 70},
       .rows = {30, 1},
       .sink_slots = 9,
       .windows = {13, 40}},
      {.name = "plain_head112", .head_dim = 112, .kv_heads = 1, .lengths = {33, 20}, .rows = {5, 1}},
      {.name = "plain_f16_head40",
       .dtype = DType::kF16,
       .head_dim = 40,
       .block_tokens = 8,
       .lengths = {33, 20},
       .rows = {5, 1},
       .lists_per_head = true},
  };
}

// Prefixes that members share: of all, a tree with a node under a node, one long enough to be split, and
// beside other rows.
inline std::vector<Shape> cascade_shapes() {
  return {
      {.name = "one_prefix", .lengths = {80, 70, 65, 100}, .prefixes = {{0, 64, {0, 1, 2, 3}}}},
      {.name = "many_tails",  // so many that decode runs as kTailTuning says
       .head_dim = 128,
       .lengths = {80, 70, 65, 100, 210, 96},
       .multiprocessors = 2,
       .prefixes = {{0, 64, {0, 1, 2, 3, 4, 5}}, {64, 80, {3, 4}}}},
      {.name = "tree",
       .head_dim = 128,
       .kv_heads = 1,
       .group = 2,
       .lengths = {90, 70, 55, 100, 20, 3},
       .prefixes = {{0, 32, {0, 1, 2, 3}}, {32, 48, {0, 3}}, {32, 64, {1}}, {0, 16, {4}}}},
      {.name = "split",
       .kv_heads = 1,
       .lengths = {1100, 1050},
       .multiprocessors = 9,
       .prefixes = {{0, 1040, {0, 1}}}},
      {.name = "mixed_steps",
       .lengths = {80, 70, 65, 33},
       .rows = {1, 1, 30, 1},
       .sinks = true,
       .prefixes = {{0, 48, {0, 1}}}},
      {.name = "cascade_f16_block8",
       .dtype = DType::kF16,
       .block_tokens = 8,
       .lengths = {50, 30, 41},
       .prefixes = {{0, 24, {2, 0}}, {24, 40, {2}}}},
      {.name = "short_node_beside_one_that_is_split",
       .kv_heads = 1,
       .lengths = {1100, 1050, 40, 30},
       .multiprocessors = 9,
       .prefixes = {{0, 1040, {0, 1}}, {0, 16, {2, 3}}}},
      {.name = "beside_lists_with_windows",
       .lengths = {80, 70, 65, 100},
       .windows = {0, 0, 20, 50},
       .prefixes = {{0, 48, {0, 1}}}},
      {.name = "beside_lists_with_windows_and_more_rows",
       .lengths = {80, 70, 65, 100},
       .rows = {1, 1, 7, 1},
       .windows = {0, 0, 20, 50},
       .prefixes = {{0, 48, {0, 1}}}},
  };
}

// What shares code but is compiled for each dtype and head size: lists alone, a shared prefix, more query heads than a tile has rows
// in steps of one and of many rows, and every option at once, over blocks of other sizes than 16.
inline std::vector<Shape> shapes_of_every_head_size() {
  std::vector<Shape> all;
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const int head_dim : {64, 80, 96, 128, 256}) {
      const Shape base{.dtype = dtype, .head_dim = head_dim, .kv_heads = 1};
      const auto add = [&](const char* what, Shape shape) {
        shape.name = std::string(dtype == DType::kF16 ? "f16_" : "bf16_") + std::to_string(head_dim) + what;
        all.push_back(std::move(shape));
      };
      Shape cascade = base, prefill = base, options = base;
      cascade.block_tokens = 32;
      cascade.lengths = {80, 65, 100};
      cascade.prefixes = {{0, 64, {0, 1, 2}}};
      add("_cascade_block32", cascade);
      for (const int group : {1, 12}) {
        cascade.group = group;
        add(("_cascade_block32_group" + std::to_string(group)).c_str(), cascade);
      }
      Shape decode = base;
      decode.lengths = {33, 70};
      add("_decode", decode);
      decode.group = 12;
      add("_decode_group12", decode);
      decode.window = 21;
      decode.soft_cap = 3.0f;
      decode.sinks = true;
      add("_decode_group12_options", decode);
      prefill.block_tokens = 8;
      prefill.group = 9;
      prefill.lengths = {30, 20};
      prefill.rows = {17, 3};
      add("_prefill_group9_block8", prefill);
      options.block_tokens = 64;
      options.lengths = {70, 33};
      options.window = 21;
      options.soft_cap = 3.0f;
      options.sinks = true;
      add("_decode_options_block64", options);
      options.rows = {20, 9};
      add("_prefill_options_block64", options);
    }
  return all;
}

// Too slow for the shim: many tiles of rows and slots, more work than a card's multiprocessors.
inline std::vector<Shape> large_shapes() {
  return {
      {.name = "large_decode",
       .head_dim = 128,
       .kv_heads = 8,
       .lengths = {3000, 1, 700, 16, 1025, 2047, 33, 900}},
      {.name = "large_prefill", .head_dim = 128, .lengths = {700, 300, 129}, .rows = {450, 300, 128}},
      {.name = "large_prefill64", .head_dim = 64, .lengths = {700, 300, 129}, .rows = {450, 300, 128}},
      {.name = "large_prefill_group1",
       .head_dim = 128,
       .kv_heads = 2,
       .group = 1,
       .lengths = {600, 513},
       .rows = {600, 257}},
      {.name = "large_prefill_block8",
       .head_dim = 128,
       .kv_heads = 1,
       .block_tokens = 8,
       .lengths = {555},
       .rows = {300}},
      {.name = "large_prefill_block64",
       .head_dim = 128,
       .kv_heads = 1,
       .block_tokens = 64,
       .lengths = {555},
       .rows = {300}},
      {.name = "large_prefill_window",
       .head_dim = 128,
       .kv_heads = 1,
       .lengths = {700},
       .rows = {500},
       .window = 200},
      {.name = "large_prefill_f16",
       .dtype = DType::kF16,
       .head_dim = 128,
       .kv_heads = 1,
       .lengths = {400},
       .rows = {400}},
      {.name = "large_cascade",
       .head_dim = 128,
       .kv_heads = 2,
       .lengths = std::vector<int>(40, 700),
       .prefixes = {{0, 640,
                     [] {
                       std::vector<int> all(40);
                       for (int i = 0; i < 40; ++i) all[i] = i;
                       return all;
                     }()}}},
  };
}

}  // namespace quire::attention_test
