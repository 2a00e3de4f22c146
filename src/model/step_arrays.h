// What the forward pass reads in one step: device arrays and host counts. Only counts steer host code, so a
// step of given counts can be captured in a CUDA graph and replayed with other contents behind the same
// pointers. A *row* is one token run in the step; rows of a sequence are consecutive and in position order.
#pragma once

#include <cstdint>

#include "kernels/shared_prefixes.h"

namespace quire {

struct StepArrays {
  // Device pointers, owned by whoever built the step; valid until the step has run.
  const int32_t* ids = nullptr;        // [rows] token ids, each in [0, vocab); any valid id for padding rows
  const int32_t* positions = nullptr;  // [rows] true positions, each in [0, max_context_tokens)
  const int64_t* slots =
      // [rows] block * block_tokens + offset; -1 = padding row, nothing is written. Where layers or heads lie in different
      // slots: [num_layers, rows, num_kv_heads], see slot_stride
      nullptr;
  const int32_t* query_start =
      nullptr;  // [num_sequences + 1] first row of each sequence; the last entry is `rows`
  const int32_t* lengths = nullptr;      // [num_sequences] live slots of the list, this step's rows included
  const int32_t* block_table = nullptr;  // [num_sequences, table_stride] physical blocks of each list
  const int32_t* logits_rows =
      nullptr;  // [num_logits_rows] rows whose logits are wanted, in the order of the logits; a row
                // may come more than once. Not read when all_rows_have_logits

  // What windows need (src/policy/README.md); null where no sequence has one.
  // [num_sequences] tokens that a row sees, itself included; 0 = all
  const int32_t* windows = nullptr;
  const int32_t* sink_slots = nullptr;      // [num_sequences] first slots that every row sees, 0 = none
  const int32_t* sink_positions = nullptr;  // [rows] at which q is rotated for them; with sink_slots

  // Blocks that several of the step's sequences share; num_nodes = 0 where none do, or nothing is gained.
  SharedPrefixes prefixes;

  // Side outputs of every layer's attention, valid until the next layer's; null where no sequence needs them (AttentionParams).
  float* lse = nullptr;
  float* row_logits = nullptr;
  const int64_t* row_logits_start =
      nullptr;  // [num_sequences] in the place of side_stride, so of column_sums
  const int64_t* column_sums_start = nullptr;
  float* column_sums = nullptr;  // zeroed by whoever reads them
  // floats of a (sequence, query head) of row_logits and column_sums; >= max_length
  int64_t side_stride = 0;

  // Host counts.
  int64_t slot_stride = 1;        // slots of a row: 1, or num_kv_heads where heads differ
  int64_t slot_layer_stride = 0;  // from a layer's slots to the next's; 0: the same for all layers
  bool overwrites = false;        // some row takes a slot that an earlier step filled
  int64_t rows = 0;
  int64_t table_stride = 0;  // >= blocks of the longest list
  int64_t num_logits_rows = 0;
  int32_t num_sequences = 0;
  int32_t max_rows = 0;               // most rows of one sequence; 1: a pure decode step
  int32_t max_length = 0;             // longest list; an upper bound is allowed
  bool all_rows_have_logits = false;  // logits row i is row i; num_logits_rows == rows
};

}  // namespace quire
