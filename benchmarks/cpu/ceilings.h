// What this machine can do at most, measured by loops that do nothing else, in the run that quotes them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace quire::bench {

struct Ceilings {
  double read_gb_s = 0;     // DRAM, one stream per thread over 512 MiB
  double fma_gflop_s = 0;   // float32 fused multiply-adds in registers
  double bf16_gflop_s = 0;  // bf16 dot instructions; 0 without AVX512_BF16
};
Ceilings measure_ceilings(int threads);
// Its read_gb_s alone, in 0.1 s after a first call that fills the memory; 0 without AVX2.
double measure_read(int threads);

// GB/s of one such pass: to stand beside a kernel's time of the same moment, where the bandwidth changes meanwhile.
// 0 without AVX2.
double stream_once(int threads);

// GB/s of a bare read of `piece_bytes` at a time in random order, the next piece asked for while one is read:
// what paged attention could reach at most that asks no further ahead, since a block's K and V lie together and blocks
// lie anywhere. Once.
double pieces_once(int threads, int64_t piece_bytes);

struct Timing {
  double best_ms = 0, median_ms = 0;
};

// Runs `body` `warm_up + repeats` times.
template <class Body>
Timing time_of(int repeats, Body&& body, int warm_up = 2) {
  std::vector<double> ms;
  for (int i = 0; i < warm_up + repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    if (i >= warm_up) ms.push_back(took.count());
  }
  std::sort(ms.begin(), ms.end());
  return {.best_ms = ms.front(), .median_ms = ms[ms.size() / 2]};
}

}  // namespace quire::bench
