// Retention by attention scores (TOVA, H2O) where the device decides: who lies in which slot of every layer
// and head, the scores, the cut after a prompt and each step's victim stay in device memory, so no step waits
// for the host. The decisions are those of src/policy/retention.h, which says them on the host: victims are
// the lowest scores, of equal ones the older token.
//
// A list belongs to a (sequence, layer) or a (sequence, layer, kv head); all lists of a sequence are of one
// length, which the host knows. While its prompt runs a list lies in order: slot = position. The cut, after
// each layer of the prompt's last chunk, writes the positions of the kept tokens in order; the host moves
// their K and V (Kernels::move_slots, positions as source_slots) before the next row. From then on a row
// takes the next slot, or once the list is full the last victim's.
#pragma once

#include <cstdint>

namespace quire {

enum class RetentionPhase : int32_t {
  kSum,     // a chunk of a prompt whose columns are summed (H2O)
  kCut,     // the prompt's last chunk
  kDecode,  // one row behind the prompt
};

// One sequence of a step, in device memory. Pointers are to the sequence's own state, [num_layers, lists, ...] each.
struct RetentionItem {
  int32_t* positions = nullptr;  // [.., room] of the token in each slot, from the cut on
  // [.., room] sums of what a slot was given, from the cut on; null: the last row alone decides (TOVA)
  float* scores = nullptr;
  float* prompt_sums =
      nullptr;  // [.., prompt_room] with scores: the same while the prompt runs; zero at its start
  int32_t* free_slots = nullptr;  // [..] slot of the last victim; -1: nobody was dropped yet
  RetentionPhase phase = RetentionPhase::kSum;
  int32_t sequence = 0;  // of the step
  int32_t row = 0;       // of the step; the sequence's last
  int32_t lists = 1;     // of a layer: 1, or num_kv_heads; 0: padding
  int32_t room = 0;      // capacity + 1
  int32_t prompt_room = 0;
  int32_t capacity = 0;    // tokens that a list keeps
  int32_t recent = 0;      // of these the newest, never victims
  int32_t length = 0;      // slots of each list, this step's rows included
  int32_t position = 0;    // of the row
  int32_t overwrites = 0;  // kDecode: 1 = the row takes the last victim's slot, 0 = the next one
};

// After a layer's attention, while its side outputs stand. They are AttentionParams' row_logits and
// column_sums, in the layouts with starts.
struct RetentionScoresParams {
  const RetentionItem* items = nullptr;  // [num_items] device memory
  int32_t num_items = 0;
  int32_t layer = 0;
  int32_t num_q_heads = 0, num_kv_heads = 0;
  const float* lse = nullptr;                  // [rows, num_q_heads]
  float* row_logits = nullptr;                 // read and overwritten
  const int64_t* row_logits_start = nullptr;   // [num_sequences]
  float* column_sums = nullptr;                // read and set back to zero
  const int64_t* column_sums_start = nullptr;  // [num_sequences]
};

// Before the forward pass: where each layer and head writes each row.
struct RetentionSlotsParams {
  const RetentionItem* items = nullptr;  // [num_items] device memory
  const int32_t* item_of_row = nullptr;  // [rows] index into items, or -1
  // [rows] for rows of no item in phase kDecode: one slot for all layers and heads
  const int64_t* row_slots = nullptr;
  int64_t* slots = nullptr;              // [num_layers, rows, num_kv_heads] out
  const int32_t* block_table = nullptr;  // [num_sequences, table_stride]
  int64_t table_stride = 0;
  int64_t rows = 0;
  int32_t num_layers = 0, num_kv_heads = 0, block_tokens = 0;
};

}  // namespace quire
