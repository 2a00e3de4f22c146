// One row: out[n] = w[n] . x, with what stands before it (RMSNorm of x) and after it (residual, SiLU * up) in
// the same kernel. A warp takes whole rows of w, eight 16-byte loads a lane in flight; x lies in shared
// memory as f32. Where there are few rows, two warps share one. Bound: device memory, bytes = w once. The
// first loads of w are issued before the dependency wait. (Asking for what follows them into L2 cost 0.7 %
// for the next 4 KiB of a warp, 7 % for the next 16.)
#include "kernels/cuda/matmul/epilogue.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLoads = 8;       // of a lane, in flight: 4 KiB a warp
constexpr int kHeldChunks = 4;  // of x, that a thread holds between the norm's two passes

template <class T>
constexpr int kPer16 = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kWarpPiece = kWarp * kPer16<T>;  // elements of a row that one load of a warp covers

template <class T>
__device__ inline float dot16(uint4 w, Shared<float> x, float sum) {
  if constexpr (sizeof(T) == 4) {
    const float4 v = x.as<float4>()[0];
    sum = fmaf(bits_to_f32(w.x), v.x, sum);
    sum = fmaf(bits_to_f32(w.y), v.y, sum);
    sum = fmaf(bits_to_f32(w.z), v.z, sum);
    return fmaf(bits_to_f32(w.w), v.w, sum);
  } else {
    const float4 a = x.as<float4>()[0], b = x.as<float4>()[1];
    const Chunk c = unpack_chunk<T>(w);
    sum = fmaf(c.v[0], a.x, sum);
    sum = fmaf(c.v[1], a.y, sum);
    sum = fmaf(c.v[2], a.z, sum);
    sum = fmaf(c.v[3], a.w, sum);
    sum = fmaf(c.v[4], b.x, sum);
    sum = fmaf(c.v[5], b.y, sum);
    sum = fmaf(c.v[6], b.z, sum);
    return fmaf(c.v[7], b.w, sum);
  }
}

// A thread's chunks of x: every kThreads-th from its own. All their loads are in flight together.
template <class T>
__device__ inline void load_x(const Product& p, int first, Chunk (&held)[kHeldChunks]) {
#pragma unroll
  for (int h = 0; h < kHeldChunks; ++h) {
    const int i = first + h * kThreads * kChunk;
    held[h] = i < p.k ? load_chunk(static_cast<const T*>(p.x) + i) : Chunk{};
  }
}
__device__ inline void put_x(Shared<float> x, int i, const Chunk& c) {
  const Shared<float4> to = (x + i).as<float4>();
  to[0] = make_float4(c.v[0], c.v[1], c.v[2], c.v[3]);
  to[1] = make_float4(c.v[4], c.v[5], c.v[6], c.v[7]);
}

// x as f32, zeros up to `padded`, a multiple of kChunk.
template <class T>
__device__ inline void stage_x(const Product& p, Shared<float> x, int padded) {
  if (p.k % kChunk != 0) {
    for (int i = static_cast<int>(threadIdx.x); i < padded; i += kThreads)
      x[i] = i < p.k ? to_f32(load(static_cast<const T*>(p.x) + i)) : 0.0f;
  } else {
    for (int first = static_cast<int>(threadIdx.x) * kChunk; first < padded;
         first += kHeldChunks * kThreads * kChunk) {
      Chunk held[kHeldChunks];
      load_x<T>(p, first, held);
#pragma unroll
      for (int h = 0; h < kHeldChunks; ++h)
        if (first + h * kThreads * kChunk < padded) put_x(x, first + h * kThreads * kChunk, held[h]);
    }
  }
  sync_threads();
}

// Before the wait: the norm's weights, where x will be. A thread brings those of its own chunks.
__device__ inline void stage_norm_weight(const Product& p, Shared<float> x, int padded) {
  for (int i = static_cast<int>(threadIdx.x) * kChunk; i < padded; i += kThreads * kChunk)
    put_x(x, i, i < p.k ? load_chunk(p.norm_weight + i) : Chunk{});
}

// After it: x / rms(x) * weight, rounded as the norm's own kernel rounds it.
template <class T>
__device__ inline void stage_normed_x(const Product& p, Shared<float> x, Shared<float> partial) {
  const int first = static_cast<int>(threadIdx.x) * kChunk;
  Chunk held[kHeldChunks];
  load_x<T>(p, first, held);
  float squares = 0;
#pragma unroll
  for (int h = 0; h < kHeldChunks; ++h)
#pragma unroll
    for (int j = 0; j < kChunk; ++j) squares += held[h].v[j] * held[h].v[j];
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) partial[static_cast<int>(threadIdx.x / kWarp)] = squares;
  sync_threads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  const float scale = rsqrt_approx(sum / static_cast<float>(p.k) + p.norm_eps);
#pragma unroll
  for (int h = 0; h < kHeldChunks; ++h) {
    const int i = first + h * kThreads * kChunk;
    if (i >= p.k) continue;
    const Shared<float4> at = (x + i).as<float4>();
    const float4 a = at[0], b = at[1];
    const float weight[kChunk] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < kChunk; ++j) held[h].v[j] = rounded<T>(held[h].v[j] * (scale * weight[j]));
    put_x(x, i, held[h]);
  }
  sync_threads();
}

// A warp's way through w. It takes kRows rows at once, kPieces pieces of each: kRows * kPieces loads, so that
// short rows fill the loads too. With kSplit = 2 a warp and the next share a row, each half of its pieces.
// Rows are counted in the order of Product::gated: a gate, then its up row, so that one warp has both.
template <class T, int kPieces, int kSplit>
class WeightStream {
 public:
  static constexpr int kRows = kSplit == 1 ? kLoads / kPieces : 1;
  static constexpr int kHeld = kRows * kPieces;  // loads

  __device__ WeightStream(const Product& p, int pieces)
      : p_(p),
        lane_(threadIdx.x % kWarp),
        pieces_(pieces / kSplit),
        unit_(p.gated && kRows == 1 ? 2 : kRows),
        step_(int64_t{gridDim.x} * (kWarps / kSplit) * unit_) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    row = (int64_t{blockIdx.x} * (kWarps / kSplit) + warp / kSplit) * unit_;
    first_piece_ = warp % kSplit * pieces_;
  }

  int64_t row;    // of those fetched last
  int piece = 0;  // within this warp's part

  __device__ int64_t step() const { return step_; }  // from a row to the next that the warp takes
  __device__ bool at_row_end() const { return piece + kPieces >= pieces_; }
  __device__ int first_column() const { return (first_piece_ + piece) * kWarpPiece<T> + lane_ * kPer16<T>; }

  __device__ void advance() {
    const bool ends = at_row_end();
    piece = ends ? 0 : piece + kPieces;
    if (ends) row = kRows == 1 && unit_ == 2 && row % 2 == 0 ? row + 1 : row - (unit_ - kRows) + step_;
  }

  __device__ void fetch(uint4 (&w)[kHeld]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kPieces; ++u) {
        const int64_t i = first_column() + int64_t{u} * kWarpPiece<T>;
        const bool valid = row + r < p_.n && piece + u < pieces_ && i < p_.w_stride;
        w[r * kPieces + u] = valid ? load_streaming(reinterpret_cast<const uint4*>(row_at(row + r) + i))
                                   : make_uint4(0, 0, 0, 0);
      }
  }

 private:
  __device__ const T* row_at(int64_t r) const {
    return static_cast<const T*>(p_.w) + (p_.gated ? gated_row(r) : r) * p_.w_stride;
  }

  const Product& p_;
  int lane_, pieces_, unit_;
  int64_t step_;
  int first_piece_;
};

// Takes the rows' sums in the order of the stream and writes what becomes of them. What stands in the residual stream
// is asked for once, a lane a row, together with x: no row's end waits for it.
template <class T, int kRows>
class RowSink {
 public:
  static constexpr int kRounds = kWarp / kRows;  // whose rows a warp's lanes hold

  __device__ RowSink(const Product& p, int64_t first_row, int64_t step) : p_(p), step_(step) {
    expect(first_row);
  }

  // By all lanes, in the order of the stream.
  __device__ void take(int64_t row, const float (&sums)[kRows]) {
    float before[kRows] = {};
    if (p_.residual != nullptr) {
      if (round_ == kRounds) expect(row);
#pragma unroll
      for (int r = 0; r < kRows; ++r) before[r] = shfl(held_, round_ * kRows + r);
      ++round_;
    }
    if (threadIdx.x % kWarp == 0) put(row, sums, before);
  }

 private:
  __device__ void expect(int64_t row) {
    round_ = 0;
    if (p_.residual == nullptr) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t mine = row + lane / kRows * step_ + lane % kRows;
    held_ = mine < p_.n ? before_sum<T>(p_, 0, mine) : 0.0f;
  }

  __device__ void put(int64_t row, const float (&sums)[kRows], const float (&before)[kRows]) {
    if constexpr (kRows == 1) {
      if (!p_.gated) return put_one(row, sums[0], before[0]);
      if (row % 2 == 0) {
        gate_ = sums[0];
      } else {
        put_gated<T>(p_, 0, row / 2, gate_, sums[0]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRows; r += 2) {
        if (p_.gated) {
          if (row + r < p_.n) put_gated<T>(p_, 0, (row + r) / 2, sums[r], sums[r + 1]);
        } else {
          put_one(row + r, sums[r], before[r]);
          put_one(row + r + 1, sums[r + 1], before[r + 1]);
        }
      }
    }
  }
  __device__ void put_one(int64_t row, float sum, float before) const {
    if (row < p_.n) put_sum<T>(p_, 0, row, sum, before);
  }

  const Product& p_;
  int64_t step_;
  int round_ = 0;
  float gate_ = 0, held_ = 0;
};

// No third block may find room on a multiprocessor (so more than 80 registers a thread): where one does,
// dependent launches put three blocks on some and one on others, and an 8B step's products took 6.1 ms
// instead of 5.2.
template <class T, int kPieces, int kSplit>
__global__ void __launch_bounds__(kThreads, 2) gemv_rows(Product p, int pieces) {
  using Stream = WeightStream<T, kPieces, kSplit>;
  constexpr int kRows = Stream::kRows;
  const Shared<float> x = dynamic_shared<float>();
  const int padded = pieces * kWarpPiece<T>, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Shared<float> partial = x + padded;
  Stream stream(p, pieces);
  uint4 ahead[Stream::kHeld];
  stream.fetch(ahead);
  if (p.norm_weight != nullptr) stage_norm_weight(p, x, padded);
  wait_for_previous_kernel();
  let_next_kernel_start();
  RowSink<T, kRows> sink(p, stream.row, stream.step());
  p.norm_weight != nullptr ? stage_normed_x<T>(p, x, partial) : stage_x<T>(p, x, padded);

  const int64_t own_row = stream.row;
  float sum[kRows] = {};
  while (stream.row < p.n) {
    uint4 w[Stream::kHeld];
#pragma unroll
    for (int i = 0; i < Stream::kHeld; ++i) w[i] = ahead[i];
    const int column = stream.first_column();
    const bool ends = stream.at_row_end();
    const int64_t row = stream.row;
    stream.advance();
    stream.fetch(ahead);
#pragma unroll
    for (int u = 0; u < kPieces; ++u)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        sum[r] = dot16<T>(w[r * kPieces + u], x + (column + u * kWarpPiece<T>), sum[r]);
    if (!ends) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = warp_sum(sum[r]);
    if constexpr (kSplit == 1) {
      sink.take(row, sum);
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = 0;
    } else {
      break;  // a block's rows are one round
    }
  }
  if constexpr (kSplit == 2) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    sync_threads();
    if (lane == 0) partial[warp] = sum[0];
    sync_threads();
    const float total[1] = {partial[warp] + partial[warp ^ 1]};
    if (warp % 2 == 0 && own_row < p.n) sink.take(own_row, total);
  }
}

template <class T>
int gemv_shared_bytes(int pieces) {
  return (pieces * kWarpPiece<T> + kWarps) * static_cast<int>(sizeof(float));
}
template <class T>
int pieces_of(const Product& p) {
  return ceil_div(static_cast<int>(p.w_stride), kWarpPiece<T>);
}

template <class T, int kPieces, int kSplit>
void launch_gemv(const Target& target, const GemvTuning& tuning, const Product& p) {
  const int pieces = ceil_div(pieces_of<T>(p), kPieces * kSplit) * kPieces * kSplit;
  const int shared_bytes = gemv_shared_bytes<T>(pieces);
  check_at_least("gemv, shared memory less x", target.shared_bytes_per_block - shared_bytes, 0);
  const int64_t wanted =
      int64_t{target.multiprocessors} *
      std::min(tuning.blocks_per_multiprocessor, target.shared_bytes_per_block / shared_bytes);
  const int rows = p.gated ? std::max(2, WeightStream<T, kPieces, kSplit>::kRows)
                           : WeightStream<T, kPieces, kSplit>::kRows;
  const int64_t most = ceil_div<int64_t>(p.n, int64_t{kWarps / kSplit} * rows);
  launch<gemv_rows<T, kPieces, kSplit>>({.grid = as_grid(kSplit == 1 ? std::min(wanted, most) : most),
                                         .block = kThreads,
                                         .shared_bytes = shared_bytes,
                                         .stream = target.stream,
                                         .dependent = true,
                                         .carveout = carveout_of(1)},
                                        p, pieces);
}

}  // namespace

bool gemv_norms(const Product& p) {
  static_assert(kMostStagedAtOnce == kHeldChunks * kThreads * kChunk);
  return p.k % kChunk == 0 && p.k <= kMostStagedAtOnce;
}

bool gemv_takes(const Target& target, const Product& p) {
  bool takes = false;
  with_float_type(target.activations, [&](auto act) {
    using T = decltype(act);
    const int padded = ceil_div(pieces_of<T>(p), kLoads) * kLoads;  // as the widest of the choices below
    takes = gemv_shared_bytes<T>(padded) <= target.shared_bytes_per_block;
  });
  return takes;
}

void gemv(const Target& target, const GemvTuning& tuning, const Product& p) {
  check_fusion(p);
  check(p.norm_weight == nullptr || gemv_norms(p),
        "gemv: this many columns are normed by a kernel of their own");
  with_float_type(target.activations, [&](auto act) {
    using T = decltype(act);
    // The most pieces of a row at once that leave none of the loads without work.
    const int pieces = pieces_of<T>(p);
    // Rows so few that half of the warps would have none: two warps a row.
    const int64_t warps = int64_t{target.multiprocessors} * tuning.blocks_per_multiprocessor * kWarps;
    if (!p.gated && pieces % 2 == 0 && pieces >= 8 && int64_t{p.n} * 2 <= warps) {
      pieces % 12 == 0 ? launch_gemv<T, 6, 2>(target, tuning, p) : launch_gemv<T, 4, 2>(target, tuning, p);
    } else if (pieces % 8 == 0 || pieces > 32) {
      launch_gemv<T, 8, 1>(target, tuning, p);
    } else if (pieces % 4 == 0) {
      launch_gemv<T, 4, 1>(target, tuning, p);
    } else {
      launch_gemv<T, 2, 1>(target, tuning, p);
    }
  });
}

}  // namespace quire::QUIRE_SIDE
