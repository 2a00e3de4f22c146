// ldmatrix, movmatrix, mma and votes for a whole warp at once, with the fragment layouts of the PTX manual.
// A product of two 16-bit floats is exact in float32; the 16 products of an element are added to the
// accumulator one by one in the order of k, each sum rounded. (A card adds several at a time and truncates:
// results differ in the last bits.)
#include "kernels/cuda/host_shim/host_side.h"

namespace quire::cuda_host {
namespace {

template <class T>
const T& of(void* const* args, int lane) {
  return *static_cast<const T*>(args[lane]);
}

uint16_t half_of(uint32_t word, int i) {
  return static_cast<uint16_t>(word >> (16 * i));
}

template <bool kTrans>
void ldmatrix(void* const* args) {
  uint16_t rows[32][8];  // rows 8j to 8j + 7 are matrix j
  for (int lane = 0; lane < 32; ++lane) {
    const auto& a = of<LdmatrixArgs>(args, lane);
    if (a.row % 16 != 0) shim::fault("ldmatrix row is not aligned to 16 bytes");
    if (hot.checking) shim::check_shared_read_by(a.row, 16, a.thread);
    std::memcpy(rows[lane], hot.shared + a.row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* out = of<LdmatrixArgs>(args, lane).out;
    const int r = lane / 4, c = lane % 4 * 2;
    for (int j = 0; j < 4; ++j) {
      if constexpr (kTrans) {
        out[j] = rows[8 * j + c][r] | uint32_t{rows[8 * j + c + 1][r]} << 16;
      } else {
        std::memcpy(&out[j], &rows[8 * j + r][c], sizeof(uint32_t));
      }
    }
  }
}

// A 16-bit float by its bits; the same as to_f32, without a branch or a call, so that a loop over it is one over vectors.
template <class T>
inline float widened(uint32_t bits) {
  if constexpr (std::is_same_v<T, bf16>) return std::bit_cast<float>(bits << 16);
  const uint32_t magnitude = bits & 0x7fffu;
  // The exponent's bias goes from 15 to 127; what was below the normal numbers becomes normal by the same product.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t infinite = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | infinite | (bits & 0x8000u) << 16);
}

// Rows of eight: a and b have two of k in a word.
struct Operands {
  alignas(32) uint32_t a[16 * 8], b[8 * 8];
  alignas(32) float d[16 * 8];
};

template <class T>
[[gnu::always_inline]] inline void multiply_rows(Operands& o) {
  alignas(32) float a[2][16 * 8], b[2][8 * 8];  // the lower of each two, and the higher
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 16 * 8; ++i) a[half][i] = widened<T>(o.a[i] >> (16 * half) & 0xffffu);
    for (int i = 0; i < 8 * 8; ++i) b[half][i] = widened<T>(o.b[i] >> (16 * half) & 0xffffu);
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) o.d[row * 8 + n] += a[k % 2][row * 8 + k / 2] * b[k % 2][k / 2 * 8 + n];
}
template <class T>
void multiply(Operands& o) {
  multiply_rows<T>(o);
}
#if defined(__x86_64__)
const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
template <class T>
[[gnu::target("avx2")]] void multiply_avx2(Operands& o) {
  multiply_rows<T>(o);
}
#endif

template <class T>
void mma(void* const* args) {
  Operands o;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = of<MmaArgs>(args, lane);
    const int g = lane / 4, t = lane % 4;
    o.a[g * 8 + t] = m.a[0];
    o.a[(g + 8) * 8 + t] = m.a[1];
    o.a[g * 8 + t + 4] = m.a[2];
    o.a[(g + 8) * 8 + t + 4] = m.a[3];
    o.b[t * 8 + g] = m.b[0];
    o.b[(t + 4) * 8 + g] = m.b[1];
    std::memcpy(&o.d[g * 8 + 2 * t], m.d, 2 * sizeof(float));
    std::memcpy(&o.d[(g + 8) * 8 + 2 * t], m.d + 2, 2 * sizeof(float));
  }
#if defined(__x86_64__)
  if (has_avx2) [[likely]]
    multiply_avx2<T>(o);
  else
#endif
    multiply<T>(o);
  for (int lane = 0; lane < 32; ++lane) {
    float* out = of<MmaArgs>(args, lane).d;
    const int g = lane / 4, t = lane % 4;
    std::memcpy(out, &o.d[g * 8 + 2 * t], 2 * sizeof(float));
    std::memcpy(out + 2, &o.d[(g + 8) * 8 + 2 * t], 2 * sizeof(float));
  }
}

}  // namespace

void execute_ldmatrix(void* const* args) {
  ldmatrix<false>(args);
}
void execute_ldmatrix_trans(void* const* args) {
  ldmatrix<true>(args);
}
void execute_mma_bf16(void* const* args) {
  mma<bf16>(args);
}
void execute_mma_f16(void* const* args) {
  mma<f16>(args);
}

void execute_movmatrix(void* const* args) {
  uint16_t m[8][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 2; ++i) m[lane / 4][lane % 4 * 2 + i] = half_of(of<MovmatrixArgs>(args, lane).in, i);
  for (int lane = 0; lane < 32; ++lane) {
    const int r = lane / 4, c = lane % 4 * 2;
    static_cast<MovmatrixArgs*>(args[lane])->out = m[c][r] | uint32_t{m[c + 1][r]} << 16;
  }
}

void execute_vote(void* const* args) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= uint32_t{of<VoteArgs>(args, lane).in} << lane;
  for (int lane = 0; lane < 32; ++lane) static_cast<VoteArgs*>(args[lane])->out = votes;
}

}  // namespace quire::cuda_host
