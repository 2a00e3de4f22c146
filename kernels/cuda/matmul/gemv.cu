// One row: out[n] = w[n] . x. A warp takes whole rows of w, eight 16-byte loads a lane in flight; x lies in
// shared memory as f32. Bound: device memory, bytes = w once. The first loads of w are issued before the
// dependency wait.
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLoads = 8;  // of a lane, in flight: 4 KiB a warp

template <class T>
constexpr int kPer16 = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kWarpPiece = kWarp* kPer16<T>;  // elements of a row that one load of a warp covers

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

// kRows rows of w at once, kPieces pieces of each: kRows * kPieces = kLoads, so that short rows fill the
// loads too.
template <class T, int kPieces>
class WeightStream {
 public:
  static constexpr int kRows = kLoads / kPieces;

  __device__ WeightStream(const Product& p) : p_(p), lane_(threadIdx.x % kWarp) {}

  __device__ void fetch(uint4 (&w)[kLoads], int64_t row, int piece) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kPieces; ++u) {
        const int64_t i = int64_t{piece + u} * kWarpPiece<T> + lane_ * kPer16<T>;
        const bool valid = row + r < p_.n && i < p_.w_stride;
        w[r * kPieces + u] = valid ? load_streaming(reinterpret_cast<const uint4*>(
                                         static_cast<const T*>(p_.w) + (row + r) * p_.w_stride + i))
                                   : make_uint4(0, 0, 0, 0);
      }
  }

 private:
  const Product& p_;
  int lane_;
};

// x as f32, zeros up to a whole number of load groups.
template <class T>
__device__ inline void stage_x(const Product& p, Shared<float> x, int padded) {
  const auto* source = static_cast<const T*>(p.x);
  for (int i = static_cast<int>(threadIdx.x); i < padded; i += kThreads)
    x[i] = i < p.k ? to_f32(load(source + i)) : 0.0f;
  sync_threads();
}

template <class T>
__device__ inline void write_out(const Product& p, int64_t n, float sum) {
  if (p.bias != nullptr) sum += load(p.bias + n);
  if (p.out_f32) {
    store(static_cast<float*>(p.out) + n, sum);
  } else {
    store(static_cast<T*>(p.out) + n, from_f32<T>(sum));
  }
}

template <class T, int kPieces>
__global__ void __launch_bounds__(kThreads) gemv_rows(Product p, int pieces) {
  using Stream = WeightStream<T, kPieces>;
  const Shared<float> x = dynamic_shared<float>();
  const Stream stream(p);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t step = int64_t{gridDim.x} * kWarps * Stream::kRows;
  int64_t row = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * Stream::kRows;
  uint4 ahead[kLoads];
  stream.fetch(ahead, row, 0);
  wait_for_previous_kernel();
  let_next_kernel_start();
  stage_x<T>(p, x, pieces * kWarpPiece<T>);

  float sum[Stream::kRows] = {};
  for (int piece = 0; row < p.n;) {
    uint4 w[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) w[i] = ahead[i];
    const bool ends = piece + kPieces >= pieces;
    const int64_t next_row = ends ? row + step : row;
    const int next_piece = ends ? 0 : piece + kPieces;
    stream.fetch(ahead, next_row, next_piece);
#pragma unroll
    for (int u = 0; u < kPieces; ++u)
#pragma unroll
      for (int r = 0; r < Stream::kRows; ++r)
        sum[r] = dot16<T>(w[r * kPieces + u], x + ((piece + u) * kWarpPiece<T> + lane * kPer16<T>), sum[r]);
    if (ends) {
#pragma unroll
      for (int r = 0; r < Stream::kRows; ++r) {
        const float total = warp_sum(sum[r]);
        if (lane == 0 && row + r < p.n) write_out<T>(p, row + r, total);
        sum[r] = 0;
      }
    }
    row = next_row;
    piece = next_piece;
  }
}

template <class T, int kPieces>
void launch_gemv(const Target& target, const GemvTuning& tuning, const Product& p) {
  const int pieces = ceil_div(ceil_div(static_cast<int>(p.w_stride), kWarpPiece<T>), kPieces) * kPieces;
  const int shared_bytes = pieces * kWarpPiece<T> * static_cast<int>(sizeof(float));
  check_at_least("gemv, shared memory less x", target.shared_bytes_per_block - shared_bytes, 0);
  const int64_t wanted =
      int64_t{target.multiprocessors} *
      std::min(tuning.blocks_per_multiprocessor, target.shared_bytes_per_block / shared_bytes);
  const int64_t most = ceil_div<int64_t>(p.n, int64_t{kWarps} * WeightStream<T, kPieces>::kRows);
  launch<gemv_rows<T, kPieces>>({.grid = as_grid(std::min(wanted, most)),
                                 .block = kThreads,
                                 .shared_bytes = shared_bytes,
                                 .stream = target.stream,
                                 .dependent = true},
                                p, pieces);
}

}  // namespace

void gemv(const Target& target, const GemvTuning& tuning, const Product& p) {
  with_float_type(target.activations, [&](auto act) {
    using T = decltype(act);
    // The most pieces of a row at once that leave none of the loads without work.
    const int pieces = ceil_div(static_cast<int>(p.w_stride), kWarpPiece<T>);
    if (pieces % 8 == 0 || pieces > 32) {
      launch_gemv<T, 8>(target, tuning, p);
    } else if (pieces % 4 == 0) {
      launch_gemv<T, 4>(target, tuning, p);
    } else {
      launch_gemv<T, 2>(target, tuning, p);
    }
  });
}

}  // namespace quire::QUIRE_SIDE
