// A panel of a packed weight times rows of x, in register tiles. Each output is one accumulator that meets k
// in rising order with the same instructions whatever the tile, so it does not depend on the number of rows.
// Sums that wait for the next block of k stay in float32 in memory, which changes nothing.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {
namespace {

// sum[r][n] += x[r] * w[n] for one step of k. Each kind says what x and a step of the panel are.
template <class V, class Weight>
struct FloatProduct {  // weights f32 or f16, one k per step
  using X = float;
  static constexpr int kStep = 1;
  static constexpr int64_t kVectorBytes = 16 * sizeof(Weight);

  template <int R, int N>
  [[gnu::always_inline]] static void add(const X* x, int64_t x_stride, const char* w,
                                         typename V::F (&sum)[R][N]) {
    typename V::F weight[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weight[n] = V::load(reinterpret_cast<const Weight*>(w) + 16 * n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename V::F value = V::set(x[r * x_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::fma(value, weight[n], sum[r][n]);
    }
  }
};

// Pairs of bf16 weights widened, x in f32: two fused multiply-adds per pair. Splitting x into two bf16 for
// two dot instructions would take as long (they run at the same rate here) and lose 8 bits of x.
template <class V>
struct PairProduct {
  using X = float;
  static constexpr int kStep = 2;
  static constexpr int64_t kVectorBytes = 64;

  template <int R, int N>
  [[gnu::always_inline]] static void add(const X* x, int64_t x_stride, const char* w,
                                         typename V::F (&sum)[R][N]) {
    typename V::F weight[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weight[n] = V::even(V::load_pairs(w + kVectorBytes * n));
    add_half(x, x_stride, weight, sum);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weight[n] = V::odd(V::load_pairs(w + kVectorBytes * n));
    add_half(x + 1, x_stride, weight, sum);
  }

  template <int R, int N>
  [[gnu::always_inline]] static void add_half(const X* x, int64_t x_stride, const typename V::F (&weight)[N],
                                              typename V::F (&sum)[R][N]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename V::F value = V::set(x[r * x_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::fma(value, weight[n], sum[r][n]);
    }
  }
};

// Pairs of bf16 weights and of bf16 x: one dot instruction per pair.
template <class V>
struct DotProduct {
  using X = Bf16;
  static constexpr int kStep = 2;
  static constexpr int64_t kVectorBytes = 64;

  template <int R, int N>
  [[gnu::always_inline]] static void add(const X* x, int64_t x_stride, const char* w,
                                         typename V::F (&sum)[R][N]) {
    typename V::Pairs weight[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weight[n] = V::load_pairs(w + kVectorBytes * n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename V::Pairs value = V::set_pair(x + r * x_stride);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::dot(sum[r][n], value, weight[n]);
    }
  }
};

struct DoNothing {
  void operator()() const {}
};

// sum[r] += x[r] * w over k. `between` runs between the steps: a place to ask for memory that comes next.
template <class V, class Product, int R, int N, class Between = DoNothing>
[[gnu::always_inline]] inline void add_products(const typename Product::X* x, int64_t x_stride, const char* w,
                                                int64_t w_stride_bytes, int64_t k, typename V::F (&sum)[R][N],
                                                Between between = {}) {
  int64_t i = 0;
  for (; i + Product::kStep <= k; i += Product::kStep, w += w_stride_bytes) {
    between();
    Product::template add<R, N>(x + i, x_stride, w, sum);
  }
  if (i == k) return;
  typename Product::X last[R][2] = {};  // an odd k: its pair is zero, in the panel too
  for (int r = 0; r < R; ++r) last[r][0] = x[r * x_stride + i];
  Product::template add<R, N>(&last[0][0], 2, w, sum);
}

// Calls f with std::integral_constant-like R for a tile of `rows` rows.
template <int Most, class Function>
inline void with_rows(int64_t rows, Function&& f) {
  if constexpr (Most > 1) {
    if (rows < Most) return with_rows<Most - 1>(rows, f);
  }
  f(std::integral_constant<int, Most>{});
}

// Cuts `rows` into tiles of at most Most, as even as can be, and calls f(first, R).
template <int Most, class Function>
inline void for_row_tiles(int64_t rows, Function&& f) {
  const int64_t tiles = (rows + Most - 1) / Most;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    with_rows<Most>(last - first, [&](auto r) { f(first, r); });
  }
}

template <class V>
void write_sums(const MatmulPiece& p, int64_t row, int64_t column, typename V::F sum) {
  const int64_t count = std::min<int64_t>(16, p.columns - column);
  if (count <= 0) return;
  if (p.bias != nullptr) sum = V::add(sum, load_some<V>(p.bias + column, count));
  const int64_t at = row * p.out_stride + column;
  if (p.out_dtype == DType::kF32) return store_some<V>(static_cast<float*>(p.out) + at, sum, count);
  store_some<V>(static_cast<Bf16*>(p.out) + at, sum, count);
}

// x of one tile as the product wants it: where it lies, or widened to f32.
template <class V, class X>
const X* tile_x(const MatmulPiece& p, int64_t first_row, int64_t rows, int64_t k0, int64_t k1,
                int64_t* stride) {
  *stride = p.k;
  if constexpr (std::is_same_v<X, float>) {
    if (p.x_dtype == DType::kBF16) {
      for (int64_t r = 0; r < rows; ++r) {
        const Bf16* x = static_cast<const Bf16*>(p.x) + (first_row + r) * p.k;
        for (int64_t i = k0; i < k1; i += 16) {
          store_some<V>(p.widened + r * kMaxKBlock + i - k0, load_some<V>(x + i, k1 - i), k1 - i);
        }
      }
      *stride = kMaxKBlock;
      return p.widened;
    }
  }
  return static_cast<const X*>(p.x) + first_row * p.k + k0;
}

// Asks for the memory of a panel that comes some way after what is read now, some lines a step. The machine's
// own prefetcher stops at every 4 KiB, and rests while tiles after the first read the block from the cache.
struct PanelAsker {
  const char* next = nullptr;  // null: does nothing
  int64_t step_bytes = 0;
  int lines = 0;

  [[gnu::always_inline]] void operator()() {
    if (next == nullptr) return;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(next + 64 * i, 0, 2);
    next += step_bytes;
  }
};

template <class V, class Product, int R, int N>
void multiply_tile(const MatmulPiece& p, const typename Product::X* x, int64_t x_stride, int64_t row,
                   int64_t column, int64_t k0, int64_t k1, PanelAsker asker) {
  constexpr int64_t kStepBytes = Product::kVectorBytes * (kPanelColumns / 16);
  typename V::F sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[r][n] = k0 == 0 ? V::zero() : V::load(p.sums + (row + r) * kPanelColumns + column + 16 * n);
    }
  }
  const char* w = p.panel + k0 / Product::kStep * kStepBytes + column / 16 * Product::kVectorBytes;
  add_products<V, Product, R, N>(x, x_stride, w, kStepBytes, k1 - k0, sum,
                                 [&]() __attribute__((always_inline)) { asker(); });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (k1 == p.k) {
        write_sums<V>(p, row + r, column + 16 * n, sum[r][n]);
      } else {
        V::store(p.sums + (row + r) * kPanelColumns + column + 16 * n, sum[r][n]);
      }
    }
  }
}

// How many k pass before the next tile of rows takes its turn. One tile: all of them. A few tiles: so few
// that the block of the panel (32 KiB in bf16) is still in the first cache when the next tile reads it. Many:
// half of the second.
template <class V>
int64_t k_block(const MatmulPiece& p, bool widens) {
  if (p.rows <= V::kTileRows) return widens ? kMaxKBlock : p.k;
  return p.rows <= 4 * V::kTileRows ? 256 : kMaxKBlock;
}

// Where few rows share a panel, memory is what is waited for. One tile asks for what it reads 8 KiB later (4
// to 16 KiB measured alike, less is slower); a few tiles share the lines of the next block of k.
template <class V, class Product>
PanelAsker panel_asker(const MatmulPiece& p, int64_t k0, int64_t block, int64_t tile) {
  constexpr int64_t kStepBytes = Product::kVectorBytes * (kPanelColumns / 16);
  const int64_t tiles = (p.rows + V::kTileRows - 1) / V::kTileRows;
  if (tiles > 4) return {};
  const auto lines = static_cast<int>((kStepBytes / 64 + tiles - 1) / tiles);
  const int64_t ahead = tiles == 1 ? 8 << 10 : block / Product::kStep * kStepBytes;
  const char* now = p.panel + k0 / Product::kStep * kStepBytes;
  return {.next = now + ahead + tile * lines * 64, .step_bytes = kStepBytes, .lines = lines};
}

template <class V, class Product>
void multiply_panel(const MatmulPiece& p) {
  const bool widens = std::is_same_v<typename Product::X, float> && p.x_dtype == DType::kBF16;
  const int64_t block = k_block<V>(p, widens);
  for (int64_t k0 = 0; k0 < p.k; k0 += block) {
    const int64_t k1 = std::min(p.k, k0 + block);
    int64_t tile = 0;
    for_row_tiles<V::kTileRows>(p.rows, [&](int64_t row, auto tile_rows) {
      const PanelAsker asker = panel_asker<V, Product>(p, k0, block, tile++);
      constexpr int R = tile_rows;
      constexpr int N = V::tile_vectors(R);
      int64_t stride = 0;
      const auto* x = tile_x<V, typename Product::X>(p, row, R, k0, k1, &stride);
      for (int64_t column = 0; column < p.columns; column += 16 * N) {
        multiply_tile<V, Product, R, N>(p, x, stride, row, column, k0, k1, asker);
      }
    });
  }
}

template <class V>
void matmul(const MatmulPiece& p) {
  if (p.weight_dtype == DType::kF32) return multiply_panel<V, FloatProduct<V, float>>(p);
  if (p.weight_dtype == DType::kF16) return multiply_panel<V, FloatProduct<V, F16>>(p);
  if constexpr (V::kHasDot) {
    if (p.x_dtype == DType::kBF16) return multiply_panel<V, DotProduct<V>>(p);
  }
  multiply_panel<V, PairProduct<V>>(p);
}

}  // namespace
}  // namespace quire::cpu
