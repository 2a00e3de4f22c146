// What the flash kernels share, whatever multiplies their matrices: which rows and slots a block of threads
// works on, and the softmax, masks and epilogue of one tile, on accumulators laid out as mma.m16n8 and
// wgmma.m64n8 both lay them: a thread holds rows g and g + 8 of each 16, columns 2t and 2t + 1 of each 8.
//
// The query rows of a group are packed: packed row i of a kv head is query row i / group, head i % group. So
// K and V are read once for the whole group, and a few rows fill a tile.
#pragma once

#include "kernels/cuda/attention/paged_kv.h"
#include "kernels/cuda/attention/prefix_partials.h"

namespace quire::QUIRE_SIDE {

struct FlashParams {
  AttentionView view;
  // Cascade's first phase: rows are the members of shared prefixes instead of a sequence's own; null in
  // prefill.
  const int32_t* node_sequence_start = nullptr;  // [num_nodes + 1]
  const int32_t* node_sequences = nullptr;
  const int32_t* node_slots = nullptr;  // [num_nodes][2]: first slot and end, multiples of block_tokens
  float* partials = nullptr;            // as PrefixPartials::rows
  int32_t num_nodes = 0, splits = 1;
  bool early_fetch =
      false;  // cascade: nothing that the tiles are found by, and no slot of a node, is of this step
};

// One block's rows, and the slots they may see.
struct FlashTask {
  int sequence;       // whose list is read
  int head;           // kv head
  int rows;           // packed rows of the sequence (or node)
  int first_row;      // packed, of this tile
  int query_row;      // row of q of the sequence's first row
  int members;        // index into node_sequences of the node's first member (cascade)
  int length;         // live slots that may be read
  int index_of_row0;  // list index at which row 0 stands
  int begin, end;     // slots that this block goes through
};

template <int kRows, bool kCascade>
__device__ inline int flash_tiles(const FlashParams& a, int entry) {
  const int32_t* start = kCascade ? a.node_sequence_start : a.view.query_start;
  const int rows = load(start + entry + 1) - load(start + entry);
  if (!kCascade && rows <= 1) return 0;  // decode attention's
  return (rows * a.view.group + kRows - 1) / kRows;
}

// The first slot in the window of the tile's first row; asked again rather than kept in a register.
__device__ inline int first_in_window(const AttentionView& v, const FlashTask& task) {
  const int window = window_of(v, computed_here(task.sequence));
  return window > 0 ? max(0, task.index_of_row0 + task.first_row / v.group + 1 - window) : 0;
}

// Tile `tile` of the rows of an entry: a sequence, or a node of the cascade.
template <int kRows, bool kCascade>
__device__ inline FlashTask make_task(const FlashParams& a, int entry, int tile, int head, int split) {
  const AttentionView& v = a.view;
  const int32_t* rows_start = kCascade ? a.node_sequence_start : v.query_start;
  FlashTask task;
  task.members = task.query_row = load(rows_start + entry);
  const int rows = load(rows_start + entry + 1) - task.query_row;
  task.rows = rows * v.group;
  task.head = head;
  task.first_row = tile * kRows;
  if constexpr (kCascade) {
    task.sequence = load(a.node_sequences + task.members);
    const int from = load(a.node_slots + 2 * entry), to = load(a.node_slots + 2 * entry + 1);
    const int unit = 1 << v.block_shift, blocks = (to - from) >> v.block_shift;
    task.begin = from + blocks * split / a.splits * unit;
    task.end = task.length = from + blocks * (split + 1) / a.splits * unit;
    task.index_of_row0 = task.end - 1;
  } else {
    task.sequence = entry;
    task.length = length_of(v, task.sequence, head);
    task.index_of_row0 = task.length - rows;
    const int last_row = (min(task.first_row + kRows, task.rows) - 1) / v.group;
    task.end = task.index_of_row0 + last_row + 1;
    task.begin = first_in_window(v, task);
  }
  return task;
}

// Where a packed row's query, and its result, lie.
template <bool kCascade>
__device__ inline int64_t query_row_of(const FlashParams& a, const FlashTask& task, int packed) {
  const int row = packed / a.view.group;
  if constexpr (kCascade) return load(a.view.query_start + load(a.node_sequences + task.members + row));
  return task.query_row + row;
}

// The window of the phase that ends at `end`: none for the sinks. Asked where a mask is needed; a register would be held throughout.
template <bool kCascade>
__device__ inline int window_of_phase(const AttentionView& v, const FlashTask& task, int end) {
  const int sequence = computed_here(task.sequence);
  return kCascade || end <= sinks_of(v, sequence) ? 0 : window_of(v, sequence);
}

// The state of the rows that a thread holds: kTiles of 16 rows, rows g and g + 8 of each.
template <int kTiles>
struct FlashRows {
  float largest[kTiles][2], sum[kTiles][2];  // of the dot products, unscaled; sums of this thread's columns

  __device__ void reset() {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      largest[m][0] = largest[m][1] = kNegativeInfinity, sum[m][0] = sum[m][1] = 0;
  }
};

// The last slot that a packed row sees. Recomputed where a mask is needed: masked tiles are few, registers
// fewer.
template <bool kCascade>
__device__ inline int last_slot_of(const FlashParams& a, const FlashTask& task, int packed) {
  return kCascade ? task.end - 1 : task.index_of_row0 + min(packed, task.rows - 1) / a.view.group;
}

// Dot products with a soft cap become what they must have been for a plain scale: cap * tanh(dot * scale /
// cap) / scale.
__device__ inline float capped_dot(const AttentionView& v, float dot) {
  return v.soft_cap * tanh_from_exp2(dot * v.scale / v.soft_cap) / v.scale;
}

// One tile of dot products, slots [slot, slot + 8 * kColumns), within the slots [begin, end) of the running
// phase.
template <int kTiles, int kColumns>
struct FlashScores {
  float s[kTiles][kColumns][4];

  __device__ void cap(const AttentionView& v) {
    if (v.soft_cap <= 0) return;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = capped_dot(v, s[m][n][i]);
  }

  template <bool kCascade>
  __device__ void mask(const FlashParams& a, const FlashTask& task, int first_row, int slot, int begin,
                       int end) {
    const int column = slot + threadIdx.x % 4 * 2;
    const auto row_of = [&](int m, int i) {
      return first_row + m * 16 + i / 2 * 8 + static_cast<int>(threadIdx.x % kWarp / 4);
    };
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int last = min(last_slot_of<kCascade>(a, task, row_of(m, i)), end - 1);
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
          if (column + n * 8 + i % 2 > last) s[m][n][i] = kNegativeInfinity;
      }
    if (slot >= begin && !has_windows(a.view)) return;
    // A pass of its own: with both ends of a row at once registers do not suffice on sm_80.
    const int window = window_of_phase<kCascade>(a.view, task, end);
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int seen = last_slot_of<kCascade>(a, task, row_of(m, i));
        const int first = window > 0 ? max(begin, seen + 1 - window) : begin;
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
          if (column + n * 8 + i % 2 < first) s[m][n][i] = kNegativeInfinity;
      }
  }

  // s becomes probabilities relative to `largest`; factor is what earlier values must be multiplied by, 1
  // mostly: the largest is only moved when a logit passes it by 2^8, so a warp whose rows stay calm skips the
  // rescaling (returns false).
  __device__ bool softmax(float scale_log2, FlashRows<kTiles>& rows, float (&factor)[kTiles][2]) {
    constexpr float kSlack = 8.0f;
    float most[kTiles][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = kNegativeInfinity;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) x = fmaxf(x, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        most[m][i] = x;
        grows = grows || (x - rows.largest[m][i]) * scale_log2 > kSlack;
      }
    const bool rescales = any(grows);
    if (rescales) move_largest(scale_log2, rows, most, factor);
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) exponentiate(scale_log2, rows, m, i);
    return rescales;
  }

 private:
  __device__ void move_largest(float scale_log2, FlashRows<kTiles>& rows, const float (&most)[kTiles][2],
                               float (&factor)[kTiles][2]) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = fmaxf(most[m][i], shfl_xor(most[m][i], 1));
        x = fmaxf(x, shfl_xor(x, 2));
        x = fmaxf(x, rows.largest[m][i]);
        const float old = rows.largest[m][i];
        factor[m][i] = old == kNegativeInfinity ? 0.0f : exp2_approx((old - x) * scale_log2);
        rows.largest[m][i] = x;
        rows.sum[m][i] *= factor[m][i];
      }
  }

  __device__ void exponentiate(float scale_log2, FlashRows<kTiles>& rows, int m, int i) {
    // A row that has seen nothing yet has -inf everywhere: against 0 it gives zeros, against itself NaN.
    const float shift = rows.largest[m][i] == kNegativeInfinity ? 0.0f : rows.largest[m][i] * scale_log2;
    float total = 0;
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int j = 2 * i; j < 2 * i + 2; ++j) {
        s[m][n][j] = exp2_approx(s[m][n][j] * scale_log2 - shift);
        total += s[m][n][j];
      }
    rows.sum[m][i] += total;
  }
};

// The A fragment of columns [16k, 16k + 16) from probabilities in accumulator layout.
template <class T, int kColumns>
__device__ inline void probabilities_as_a(const float (&s)[kColumns][4], int k, uint32_t (&a)[4]) {
  a[0] = pack2<T>(s[2 * k][0], s[2 * k][1]);
  a[1] = pack2<T>(s[2 * k][2], s[2 * k][3]);
  a[2] = pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
  a[3] = pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
}

// Writes 16 rows of values, held by one warp: normalised, through `staging` (this warp's, 16 rows in
// TileLayout) to 16-byte stores; or, in the cascade, as they are with their largest logit (log2 units) and
// sum.
template <class T, int kDim, bool kCascade>
struct FlashEpilogue {
  using Layout = TileLayout<kDim>;
  const FlashParams& a;
  const FlashTask& task;
  int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;

  __device__ void write(int first_row, const float (&largest)[2], const float (&sum)[2],
                        const float (&values)[kDim / 8][4], int split, Shared<char> staging) {
    SoftmaxState state[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = sum[i];
      total += shfl_xor(total, 1);
      total += shfl_xor(total, 2);
      state[i] = {largest[i] * a.view.scale * kLog2e, total};
    }
    if constexpr (kCascade) {
      write_partials(first_row, state, values, split);
    } else {
      write_rows(first_row, state, values, staging);
    }
  }

 private:
  __device__ void write_rows(int first_row, const SoftmaxState (&state)[2],
                             const float (&values)[kDim / 8][4], Shared<char> staging) {
    const AttentionView& v = a.view;
    // Of row lane % 16: its row of the output, -1 past the last. Divided once here; for every chunk it would be longer than
    // the rest.
    const int packed = first_row + lane % 16, in_group = packed % v.group;
    const int64_t mine = packed < task.rows ? output_row(packed / v.group, in_group) : -1;
    float norm[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      norm[i] = normaliser(v, state[i], task.head * v.group + shfl(in_group, g + i * 8));
      const int64_t row = shfl(mine, g + i * 8);
      if (v.lse != nullptr && t == 0 && row >= 0) store(v.lse + row, lse_of(state[i]));
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      (staging + Layout::offset(g, n) + 4 * t).template as<uint32_t>()[0] =
          pack2<T>(values[n][0] * norm[0], values[n][1] * norm[0]);
      (staging + Layout::offset(g + 8, n) + 4 * t).template as<uint32_t>()[0] =
          pack2<T>(values[n][2] * norm[1], values[n][3] * norm[1]);
    }
    sync_warp();
    for (int chunk = lane; chunk < 16 * Layout::kChunks; chunk += kWarp) {
      const int row = chunk / Layout::kChunks, column = chunk % Layout::kChunks;
      const int64_t to = shfl(mine, row);
      if (to < 0) continue;
      const uint4 x = (staging + Layout::offset(row, column)).template as<uint4>()[0];
      store(static_cast<uint4*>(v.out) + to * Layout::kChunks + column, x);
    }
  }
  __device__ int64_t output_row(int row, int in_group) const {
    return int64_t{task.query_row + row} * a.view.num_q_heads + task.head * a.view.group + in_group;
  }

  __device__ void write_partials(int first_row, const SoftmaxState (&state)[2],
                                 const float (&values)[kDim / 8][4], int split) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int packed = first_row + g + i * 8;
      if (packed >= task.rows) continue;
      const int64_t member = task.members + packed / a.view.group;
      const int q_head = task.head * a.view.group + packed % a.view.group;
      float* row =
          a.partials + ((member * a.splits + split) * a.view.num_q_heads + q_head) * prefix_row_floats(kDim);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        store(reinterpret_cast<float2*>(row + n * 8 + 2 * t),
              make_float2(values[n][2 * i], values[n][2 * i + 1]));
      store(reinterpret_cast<float2*>(row + kDim + 2 * t),
            t == 0 ? make_float2(state[i].largest, state[i].sum) : make_float2(0, 0));
    }
  }
};

}  // namespace quire::QUIRE_SIDE
