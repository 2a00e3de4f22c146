// exp and tanh for sixteen lanes, and loads and stores of fewer than sixteen elements.
#pragma once

#include <cstdint>

namespace quire::cpu {
namespace {

template <class V, class T>
inline typename V::F load_some(const T* p, int64_t count) {
  if (count >= 16) return V::load(p);
  T whole[16] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
  return V::load(whole);
}

template <class V, class T>
inline void store_some(T* p, typename V::F x, int64_t count) {
  if (count >= 16) return V::store(p, x);
  T whole[16];
  V::store(whole, x);
  for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
}

// Below kExpLowest exp is 0: its true value, under 2.8e-38, would come near the subnormals.
inline constexpr float kExpLowest = -86.5f, kExpHighest = 88.7228f;

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; Taylor to r^7 leaves 5e-9 of the value, so what
// is left is rounding: below 1.5 units in the last place over the whole range (tests/kernel/cpu_math_test.cc).
// NaN stays NaN.
template <class V>
[[gnu::always_inline]] inline typename V::F exp(typename V::F x) {
  using F = typename V::F;
  constexpr float kLn2High = 0.693359375f,
                  kLn2Low = -2.12194440e-4f;  // the high part has few bits: n * high is exact
  const F bounded = V::min(V::set(kExpHighest), V::max(V::set(kExpLowest), x));
  const F n = V::round(V::mul(bounded, V::set(1.44269504f)));
  const F r = V::fma(n, V::set(-kLn2Low), V::fma(n, V::set(-kLn2High), bounded));
  F sum = V::set(1.0f / 5040);
  sum = V::fma(sum, r, V::set(1.0f / 720));
  sum = V::fma(sum, r, V::set(1.0f / 120));
  sum = V::fma(sum, r, V::set(1.0f / 24));
  sum = V::fma(sum, r, V::set(1.0f / 6));
  sum = V::fma(sum, r, V::set(0.5f));
  sum = V::fma(sum, r, V::set(1));
  sum = V::fma(sum, r, V::set(1));
  // In two steps, because 2^128 is not a float.
  const F value = V::times_power(V::add(sum, sum), V::sub(n, V::set(1)));
  const F high = V::if_less(V::set(kExpHighest), x, V::set(__builtin_inff()), value);
  return V::if_less(x, V::set(kExpLowest), V::zero(), high);
}

// Near 0 Lambert's continued fraction to its fifth stage (error below 1e-10 for |x| < 1/2), where
// 1 - 2 / (exp(2x) + 1) would cancel.
template <class V>
inline typename V::F tanh(typename V::F x) {
  using F = typename V::F;
  const F square = V::mul(x, x);
  const F above = V::fma(V::add(square, V::set(105)), square, V::set(945));
  const F below = V::fma(V::fma(V::set(15), square, V::set(420)), square, V::set(945));
  const F small = V::div(V::mul(x, above), below);
  const F e = exp<V>(V::add(x, x));
  const F large = V::sub(V::set(1), V::div(V::set(2), V::add(e, V::set(1))));
  return V::if_less(square, V::set(0.25f), small, large);
}

}  // namespace
}  // namespace quire::cpu
