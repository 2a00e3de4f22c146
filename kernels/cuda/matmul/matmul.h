// out[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]): which kernel runs for how many rows.
//   1 row                 gemv.cu      weights to registers, x in shared memory where it fits
//   1 or 2 to 16, 16-bit  skinny.cu    tensor cores, weights and x through a ring in shared memory; one row where it is long
//                                      (skinny_suits_one_row) or fits nowhere else
//   17 to 64, 16-bit      tensor cores, shared evenly among multiprocessors: wide_sm90.cu on Hopper, else wide.cu
//   17 to 256, 16-bit     on Hopper broad_sm90.cu, large weights where it is the fastest (broad_sm90_pays)
//   more, 16-bit          cuBLASLt where it can be opened (cublaslt.h), else tile.cu
//   several, f32          tile_f32.cu
// Weights of a step are read once and bound all but the last two; they do not depend on the kernel before, so
// the first of them are fetched before the dependency wait (measured on an H100: 5.17 -> 4.95 ms for an 8B
// model's step at one row).
#pragma once

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/matmul/product.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kMaxSkinnyRows = 16, kMaxWideRows = 64;
inline constexpr int kMostStagedAtOnce = 8192;  // columns of x that a block of gemv brings in one trip

// Choices that a card's measurements make; kernels/cuda/README.md has the runs behind the defaults. 0 = by
// the shape.
struct GemvTuning {
  int blocks_per_multiprocessor = 2;
};
struct SkinnyTuning {
  int step = 0;  // columns of a stage: 256, 512 or 1024
};

// Memory for the sums of tiles that several blocks of threads make (wide_plan.h, broad_plan.h): one product at a time.
inline constexpr int kMostWideTile = 128 * kMaxWideRows;  // sums of a tile; a block leaves those of two
inline constexpr int kMostBroadTile = 128 * 192;          // of a block's tile
struct SharedSums {
  float* partials = nullptr;    // [multiprocessors][2 * kMostWideTile or kMostBroadTile]
  int32_t* arrivals = nullptr;  // [2 * multiprocessors], zero between launches

  static int64_t partial_bytes(const Target& target);
  static int64_t bytes(const Target& target);
  static SharedSums in(const Target& target, void* memory);
};

// Whether the kernel for one row norms so many columns itself. Those for several rows do not: bringing all of
// x before the first product cost 4 us at 8 rows and 8 us at 16, a norm's own kernel less than 3.
bool gemv_norms(const Product& p);

// Whether x fits in shared memory: 57,000 columns on sm_90, 24,576 on sm_86 and sm_89. Longer rows go as several do.
bool gemv_takes(const Target& target, const Product& p);

// Whether one row goes as several do although gemv takes it: its x is more than gemv's blocks bring in one trip, and whole tiles of w
// share out evenly over multiprocessors with room for the long stages (H100: 8B's down takes 1.5 us less of a step, 256 tiles being 0.97 of two
// rounds; 13B's, 320 tiles and 0.81 of three, 1.8 us more).
bool skinny_suits_one_row(const Target& target, const Product& p);

void gemv(const Target& target, const GemvTuning& tuning, const Product& p);
void skinny_gemm(const Target& target, const SkinnyTuning& tuning, const Product& p);
void wide_gemm(const Target& target, const SharedSums& scratch, const Product& p);
void tile_gemm(const Target& target, const Product& p);
void tile_gemm_f32(const Target& target, const Product& p);
void add_bias(const Target& target, const Product& p);  // out += bias, after a library's product

// Hopper's kernels, which the host side does not have.
#if defined(__CUDACC__)
bool wide_sm90_takes(const Target& target, const Product& p);
void wide_gemm_sm90(const Target& target, const Product& p);
bool broad_sm90_takes(const Target& target, const Product& p);
void broad_gemm_sm90(const Target& target, const SharedSums& scratch, const Product& p);
#else
inline bool wide_sm90_takes(const Target&, const Product&) {
  return false;
}
inline void wide_gemm_sm90(const Target&, const Product&) {}
inline bool broad_sm90_takes(const Target&, const Product&) {
  return false;
}
inline void broad_gemm_sm90(const Target&, const SharedSums&, const Product&) {}
#endif

}  // namespace quire::QUIRE_SIDE
