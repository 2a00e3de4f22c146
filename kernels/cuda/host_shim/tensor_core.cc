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
    for (int j = 0; j < 4; ++j) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint16_t low = kTrans ? rows[8 * j + c][r] : rows[8 * j + r][c];
      const uint16_t high = kTrans ? rows[8 * j + c + 1][r] : rows[8 * j + r][c + 1];
      out[j] = low | uint32_t{high} << 16;
    }
  }
}

template <class T>
void mma(void* const* args) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = of<MmaArgs>(args, lane);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      a[g][t + i] = to_f32(T{half_of(m.a[0], i)});
      a[g + 8][t + i] = to_f32(T{half_of(m.a[1], i)});
      a[g][t + 8 + i] = to_f32(T{half_of(m.a[2], i)});
      a[g + 8][t + 8 + i] = to_f32(T{half_of(m.a[3], i)});
      b[t + i][g] = to_f32(T{half_of(m.b[0], i)});
      b[t + 8 + i][g] = to_f32(T{half_of(m.b[1], i)});
      d[g][t + i] = m.d[i];
      d[g + 8][t + i] = m.d[2 + i];
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) d[row][n] += a[row][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane) {
    float* out = of<MmaArgs>(args, lane).d;
    for (int i = 0; i < 2; ++i) {
      out[i] = d[lane / 4][lane % 4 * 2 + i];
      out[2 + i] = d[lane / 4 + 8][lane % 4 * 2 + i];
    }
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
