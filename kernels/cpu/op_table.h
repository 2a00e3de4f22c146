// The work of one thread in each op, compiled once per instruction set and chosen at run time. The files
// beside this one cut an op into such pieces; a piece's result does not depend on how the op was cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "src/device/cpu_features.h"

namespace quire::cpu {

inline constexpr int64_t kPanelColumns = 64;  // output features that lie together in a packed weight
inline constexpr int64_t kMatmulRows = 512;   // most rows of x in one matmul piece
inline constexpr int64_t kMaxTileRows = 6;    // most rows of a register tile, over all instruction sets
inline constexpr int64_t kMaxKBlock = 4096;   // most input features between two visits to the row sums
inline constexpr int64_t kMaxHeadDim = 1024;  // a head is rotated on the stack

// One panel of a packed weight times some rows of x.
// A bf16 panel is [k / 2][64][2], zeros after an odd k; an f32 or f16 panel is [k][64]; zeros after the last
// feature.
struct MatmulPiece {
  const void* x = nullptr;  // [rows, k] x_dtype
  DType x_dtype = DType::kF32;
  const char* panel = nullptr;
  DType weight_dtype = DType::kF32;
  int64_t k = 0;
  int64_t rows = 0;             // at most kMatmulRows
  int64_t columns = 0;          // of this panel, 1 to 64
  const float* bias = nullptr;  // [columns] or null
  void* out = nullptr;          // [rows, columns] out_dtype, out_stride elements from row to row
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
  float* sums = nullptr;     // scratch [kMatmulRows, 64]
  float* widened = nullptr;  // scratch [kMaxTileRows, kMaxKBlock]
};

inline constexpr int64_t kTileSlots = 64;    // list slots whose keys are turned at once
inline constexpr int64_t kStripSlots = 16;   // list slots of one block that a few queries meet at once
inline constexpr int64_t kSplitSlots = 512;  // list slots that are summed before they meet the rest
// So few queries of a head, and memory bounds the work: three register tiles of a strip.
inline constexpr int64_t kFewQueries = 12;
inline constexpr int64_t kBlockQueries =
    96;  // (row, query head) pairs that share one reading of K and V, or one row's

// Some rows of one sequence under one kv head, or under neighbours that share a list: then a block's K and V
// of all of them are read in one go. Queries are numbered kv head by kv head, in each (row - first_row) *
// group + head in group.
struct AttentionPiece {
  const AttentionParams* p = nullptr;
  DType activations = DType::kF32;
  int64_t sequence = 0, kv_head = 0, num_kv_heads = 1;
  int64_t first_row = 0, last_row = 0;      // within the sequence
  int64_t first_split = 0, last_split = 0;  // of kSplitSlots list slots each
  float* scratch = nullptr;                 // attention_scratch_floats()
  // [splits from partials_split][queries of all kv heads][head_dim rounded up to 32, + 3], or null; at kv_head
  float* partials = nullptr;
  int64_t partials_split = 0;
  float* log_totals =
      nullptr;  // [rows, num_q_heads]: log of the sum of all weights, for column_sums; or null
};

// The smaller of the layer's window and the sequence's own; 0 = none.
inline int64_t window_of(const AttentionParams& p, int64_t sequence) {
  const int32_t own = p.windows == nullptr ? 0 : p.windows[sequence];
  return p.window == 0 || own == 0 ? std::max(p.window, own) : std::min(p.window, own);
}
inline bool has_sinks(const AttentionParams& p, int64_t sequence) {
  return p.q_sink != nullptr && p.sink_slots[sequence] > 0;
}

inline int64_t padded_dim(int64_t head_dim) {
  return (head_dim + 15) / 16 * 16;
}
inline int64_t turned_dim(int64_t head_dim) {
  return (head_dim + 31) / 32 * 32;
}
inline int64_t partial_floats(int64_t head_dim) {
  return turned_dim(head_dim) + 3;
}
inline int64_t block_queries(int64_t group) {
  return group > kBlockQueries ? group : kBlockQueries / group * group;
}
inline int64_t attention_scratch_floats(int64_t group, int64_t head_dim) {
  const int64_t queries = block_queries(group), dim = turned_dim(head_dim);
  return queries * (4 * dim + 6 + 32 + 2 * kTileSlots) + kTileSlots * dim + dim;
}

struct OpTable {
  void (*embed)(const EmbedParams& p, DType act, int64_t first_row, int64_t last_row);
  void (*add_rms_norm)(const AddRmsNormParams& p, DType act, int64_t first_row, int64_t last_row);
  void (*rope_kv_write)(const RopeKvWriteParams& p, DType act, int64_t first_row, int64_t last_row);
  void (*silu_mul)(const SiluMulParams& p, DType act, int64_t row, int64_t first_column, int64_t last_column);
  void (*matmul)(const MatmulPiece& piece);
  void (*attend)(const AttentionPiece& piece);           // to the output, or to the partials where given
  void (*merge_partials)(const AttentionPiece& piece);   // partials, in the order of the list, to the output
  void (*add_column_sums)(const AttentionPiece& piece);  // all rows of a sequence, the given splits
};

const OpTable& op_table(CpuIsa isa);
const OpTable& plain_ops();
const OpTable& avx2_ops();
const OpTable& avx512_ops();
const OpTable& avx512bf16_ops();

}  // namespace quire::cpu
