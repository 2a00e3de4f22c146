// What the forward pass reads in one step: device arrays and host counts. Only counts steer host code, so a
// step of given counts can be captured in a CUDA graph and replayed with other contents behind the same
// pointers. A *row* is one token run in the step; rows of a sequence are consecutive and in position order.
#pragma once

#include <cstdint>

namespace quire {

struct StepArrays {
  // Device pointers, owned by whoever built the step; valid until the step has run.
  const int32_t* ids = nullptr;        // [rows] token ids, each in [0, vocab); any valid id for padding rows
  const int32_t* positions = nullptr;  // [rows] true positions, each in [0, max_context_tokens)
  const int64_t* slots =
      nullptr;  // [rows] block * block_tokens + offset; -1 = padding row, nothing is written
  const int32_t* query_start =
      nullptr;  // [num_sequences + 1] first row of each sequence; the last entry is `rows`
  const int32_t* lengths = nullptr;      // [num_sequences] live slots of the list, this step's rows included
  const int32_t* block_table = nullptr;  // [num_sequences, table_stride] physical blocks of each list
  const int32_t* logits_rows =
      nullptr;  // [num_logits_rows] rows whose logits are wanted, in the order of the logits; a row
                // may come more than once. Not read when all_rows_have_logits

  // Host counts.
  int64_t rows = 0;
  int64_t table_stride = 0;  // >= blocks of the longest list
  int64_t num_logits_rows = 0;
  int32_t num_sequences = 0;
  int32_t max_rows = 0;               // most rows of one sequence; 1: a pure decode step
  int32_t max_length = 0;             // longest list; an upper bound is allowed
  bool all_rows_have_logits = false;  // logits row i is row i; num_logits_rows == rows
};

}  // namespace quire
