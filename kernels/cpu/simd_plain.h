// Sixteen float lanes in plain C++. The widths of the three simd_*.h are one, so the layouts of weights and
// scratch and every order of summation are the same for all of them; only plain rounds the product of a fused
// multiply-add. Included inside a translation unit of one instruction set (see isa_plain.cc).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/element.h"

namespace quire::cpu {
namespace {

struct PlainVec {
  struct F {
    float lane[16];
  };
  using Pairs = std::array<uint32_t, 16>;  // 16 pairs of bf16, the even element in the low half

  static constexpr bool kHasDot = false;       // a product of bf16 pairs in one instruction
  static constexpr bool kReadsStrips = false;  // a few queries wait for arithmetic, not for memory
  static constexpr int kTileRows = 2;          // accumulators of a matmul tile: rows x vectors
  static constexpr int tile_vectors(int) { return 1; }

  template <class Op>
  static F each(Op op) {
    F r;
    for (int i = 0; i < 16; ++i) r.lane[i] = op(i);
    return r;
  }

  static F zero() { return set(0); }
  static F set(float x) {
    return each([=](int) { return x; });
  }
  static F load(const float* p) {
    return each([=](int i) { return p[i]; });
  }
  static F load(const Bf16* p) {
    return each([=](int i) { return bf16_to_f32(p[i].bits); });
  }
  static F load(const F16* p) {
    return each([=](int i) { return f16_to_f32(p[i].bits); });
  }
  static void store(float* p, const F& x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static void store(Bf16* p, const F& x) {
    for (int i = 0; i < 16; ++i) p[i].bits = f32_to_bf16(x.lane[i]);
  }
  static void store(F16* p, const F& x) {
    for (int i = 0; i < 16; ++i) p[i].bits = f32_to_f16(x.lane[i]);
  }
  static Pairs load_pairs(const void* p) {
    Pairs r;
    std::memcpy(r.data(), p, sizeof r);
    return r;
  }
  static F even(const Pairs& w) {
    return each([&](int i) { return std::bit_cast<float>(w[i] << 16); });
  }
  static F odd(const Pairs& w) {
    return each([&](int i) { return std::bit_cast<float>(w[i] & 0xffff0000u); });
  }

  static F add(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // Of a NaN and a number the second operand, as in x86.
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static F round(const F& a) {
    return each([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  // a < b ? x : y, lane by lane
  static F if_less(const F& a, const F& b, const F& x, const F& y) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
  }
  // x * 2^n for whole n in [-126, 127]
  static F times_power(const F& x, const F& n) {
    return each([&](int i) {
      return x.lane[i] * std::bit_cast<float>((static_cast<int32_t>(n.lane[i]) + 127) << 23);
    });
  }

  // Halves onto halves: lane i + 8, then 4, 2, 1.
  static float sum(F x) {
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];
    }
    return x.lane[0];
  }
  static float highest(const F& x) { return *std::max_element(x.lane, x.lane + 16); }
  static bool any_above(const F& x, float limit) {
    return std::any_of(x.lane, x.lane + 16, [&](float lane) { return lane > limit; });
  }

  static void transpose(F rows[16]) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < i; ++j) std::swap(rows[i].lane[j], rows[j].lane[i]);
    }
  }
  static void transpose(Pairs rows[16]) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < i; ++j) std::swap(rows[i][j], rows[j][i]);
    }
  }
};

}  // namespace
}  // namespace quire::cpu
