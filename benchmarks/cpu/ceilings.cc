#include "benchmarks/cpu/ceilings.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <thread>

#include "src/base/random.h"
#include "src/device/cpu_features.h"

namespace quire::bench {
namespace {

constexpr int64_t kReadBytes = 512ll << 20;
constexpr int64_t kSteps = 1'000'000;
constexpr int kSums = 12;  // enough to hide the latency of either instruction

volatile float kept;  // so that no loop is dropped

__attribute__((target("avx2,fma"))) void fma_avx2() {
  __m256 sum[kSums], x = _mm256_set1_ps(1);
  for (auto& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 12
    for (auto& s : sum) s = _mm256_fmadd_ps(x, x, s);
  }
  for (const auto& s : sum) kept = _mm256_cvtss_f32(s);
}

__attribute__((target("avx512f"))) void fma_avx512() {
  __m512 sum[kSums], x = _mm512_set1_ps(1);
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (auto& s : sum) s = _mm512_fmadd_ps(x, x, s);
  }
  for (const auto& s : sum) kept = _mm512_cvtss_f32(s);
}

__attribute__((target("avx512f,avx512bf16"))) void dot_avx512() {
  __m512 sum[kSums];
  __m512i x = _mm512_set1_epi32(0x3f803f80);
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (auto& s : sum) s = _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)x);
  }
  for (const auto& s : sum) kept = _mm512_cvtss_f32(s);
}

// Asking 8 KiB ahead, over pages of 2 MiB: the fastest of the ways to read that were tried. Without either, a
// sum over memory takes 15 to 25 % longer here, and a kernel could seem to read faster than the machine.
__attribute__((target("avx2"))) void read(const char* data, int64_t bytes) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
    _mm_prefetch(data + i + 8192, _MM_HINT_T0);
    _mm_prefetch(data + i + 8192 + 64, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] =
          _mm256_xor_si256(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
  kept = static_cast<float>(_mm256_extract_epi8(
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3])), 0));
}

// The best of some repetitions.
template <class Body>
double best_seconds(int threads, Body body, int repeats = 6, int warm_up = 2) {
  return time_of(
             repeats,
             [&] {
               std::vector<std::jthread> all;
               for (int t = 0; t < threads; ++t) all.emplace_back([&, t] { body(t); });
             },
             warm_up)
             .best_ms *
         1e-3;
}

__attribute__((target("avx2"))) void read_pieces(const char* data, std::span<const int32_t> order,
                                                 int64_t piece_bytes) {
  __m256i sum[2] = {};
  for (size_t n = 0; n < order.size(); ++n) {
    const char* piece = data + order[n] * piece_bytes;
    const char* next = data + order[n + 1 < order.size() ? n + 1 : n] * piece_bytes;
    for (int64_t i = 0; i < piece_bytes; i += 64) {
      _mm_prefetch(next + i, _MM_HINT_T0);
      for (int j = 0; j < 2; ++j)
        sum[j] =
            _mm256_xor_si256(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(piece + i + 32 * j)));
    }
  }
  kept = static_cast<float>(_mm256_extract_epi8(_mm256_xor_si256(sum[0], sum[1]), 0));
}

std::unique_ptr<char, void (*)(void*)> touched_memory() {
  std::unique_ptr<char, void (*)(void*)> data(static_cast<char*>(std::aligned_alloc(2 << 20, kReadBytes)),
                                              std::free);
  madvise(data.get(), kReadBytes, MADV_HUGEPAGE);
  for (int64_t i = 0; i < kReadBytes; i += 4096) data.get()[i] = 1;
  return data;
}

double read_rate(int threads, int repeats, int warm_up) {
  static const auto data = touched_memory();
  const int64_t share = kReadBytes / threads / 128 * 128;
  const auto body = [&](int t) { read(data.get() + t * share, share); };
  return static_cast<double>(share * threads) * 1e-9 / best_seconds(threads, body, repeats, warm_up);
}

double rate(int threads, double flop_per_step, void (*loop)()) {
  return threads * kSteps * kSums * flop_per_step * 1e-9 / best_seconds(threads, [&](int) { loop(); });
}

}  // namespace

Ceilings measure_ceilings(int threads) {
  const CpuIsa isa = machine_isa();
  Ceilings c;
  if (isa < CpuIsa::kAvx2) return c;
  c.read_gb_s = read_rate(threads, 6, 2);
  c.fma_gflop_s = isa < CpuIsa::kAvx512 ? rate(threads, 16, fma_avx2) : rate(threads, 32, fma_avx512);
  if (isa == CpuIsa::kAvx512Bf16) c.bf16_gflop_s = rate(threads, 64, dot_avx512);
  return c;
}

double measure_read(int threads) {
  return machine_isa() < CpuIsa::kAvx2 ? 0 : read_rate(threads, 6, 2);
}

double stream_once(int threads) {
  return machine_isa() < CpuIsa::kAvx2 ? 0 : read_rate(threads, 1, 0);
}

double pieces_once(int threads, int64_t piece_bytes) {
  if (machine_isa() < CpuIsa::kAvx2) return 0;
  static const auto data = touched_memory();
  std::vector<int32_t> order(static_cast<size_t>(kReadBytes / piece_bytes));
  std::iota(order.begin(), order.end(), 0);
  Random random(11);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  const size_t share = order.size() / static_cast<size_t>(threads);
  const auto body = [&](int t) {
    read_pieces(data.get(), std::span(order).subspan(static_cast<size_t>(t) * share, share), piece_bytes);
  };
  return static_cast<double>(share) * threads * static_cast<double>(piece_bytes) * 1e-9 /
         best_seconds(threads, body, 1, 0);
}

}  // namespace quire::bench
