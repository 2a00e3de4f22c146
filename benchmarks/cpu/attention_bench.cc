// Paged attention of the CPU back end. Decode: one row per sequence over 8k contexts, GB/s of K and V read
// once, as a share of the read ceiling measured in the same run and of a bare read of pieces as large as one
// head's K of a block, in random order, measured beside each line; layers in turn so that more than 256 MiB
// pass between two readings. Prefill: GFLOP/s of both products, causal half only. Last, what a parallel
// region costs.
//   quire_cpu_attention_bench [threads] [part of a line's name]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "benchmarks/cpu/ceilings.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "src/base/check.h"
#include "src/base/random.h"
#include "src/device/cpu_features.h"

namespace quire::bench {
namespace {

struct Shape {
  const char* name;
  int32_t sequences, rows, length, q_heads, kv_heads, dim;
  DType act, kv;
};

class Bench {
 public:
  Bench(const Shape& s, int threads) : s_(s), device_(std::move(open_cpu_device(threads)).value()) {
    kernels_ = std::move(make_cpu_kernels(*device_, {.activations = s.act, .threads = threads})).value();
    layout_ = {
        .dtype = s.kv, .num_layers = 1, .num_kv_heads = s.kv_heads, .head_dim = s.dim, .block_tokens = 16};
    const int64_t blocks = (s.length + 15) / 16 * s.sequences;
    layers_ = s.length < 1000 ? 1 : std::max<int64_t>(1, (288ll << 20) / (blocks * layout_.block_bytes()));
    layout_.num_layers = static_cast<int32_t>(layers_);
    arena_ = std::move(device_->allocate(blocks * layout_.block_bytes(), "arena")).value();
    fill(arena_, s.kv);
    q_ = std::move(device_->allocate(rows() * s.q_heads * s.dim * 4, "q")).value();
    fill(q_, s.act);
    out_ = std::move(device_->allocate(rows() * s.q_heads * s.dim * 4, "out")).value();
    shuffle_blocks(blocks);
    for (int32_t i = 0; i <= s.sequences; ++i) query_start_.push_back(i * s.rows);
    lengths_.assign(static_cast<size_t>(s.sequences), s.length);
    if (!kernels_->reserve({.max_rows = rows(),
                            .max_sequences = s.sequences,
                            .max_q_heads = s.q_heads,
                            .max_head_dim = s.dim,
                            .max_length = s.length}))
      std::abort();
  }

  void run(const Ceilings& c) {
    int64_t turn = 0;
    const Timing t = time_of(s_.rows == 1 ? 40 : 6, [&] { attend(turn++ % layers_); });
    const double gb_s =
        static_cast<double>(2ll * s_.sequences * s_.length * s_.kv_heads * layout_.token_bytes()) * 1e-6 /
        t.best_ms;
    const double pairs = s_.rows * (s_.length - (s_.rows - 1) / 2.0) * s_.sequences;
    const double gflop_s = 4.0 * pairs * s_.q_heads * s_.dim * 1e-6 / t.best_ms;
    std::printf("%-52s %9.3f ms (median %9.3f) %6.1f GB/s %4.0f%% of read", s_.name, t.best_ms, t.median_ms,
                gb_s, 100 * gb_s / c.read_gb_s);
    if (s_.rows == 1) {
      const int64_t piece = int64_t{layout_.block_tokens} * layout_.token_bytes();
      const double pieces_gb_s = measure_piece_read(device_->facts().multiprocessors, piece);
      std::printf(" %4.0f%% of a bare read of %lld byte pieces (%.1f GB/s)", 100 * gb_s / pieces_gb_s,
                  static_cast<long long>(piece), pieces_gb_s);
    }
    std::printf(" %6.0f GFLOP/s %4.0f%% of fma\n", gflop_s, 100 * gflop_s / c.fma_gflop_s);
  }

 private:
  int64_t rows() const { return static_cast<int64_t>(s_.sequences) * s_.rows; }

  static void fill(DeviceBuffer& buffer, DType dtype) {
    Random random(3);
    const int64_t count = buffer.bytes() / bytes_of(dtype);
    for (int64_t i = 0; i < count; ++i) {
      const float value =
          static_cast<float>(static_cast<int64_t>(random.next() >> 40) - (1 << 23)) * 0x1p-23f;
      if (dtype == DType::kF32)
        buffer.as<float>()[i] = value;
      else
        buffer.as<uint16_t>()[i] = f32_to_bf16(value);
    }
  }

  void shuffle_blocks(int64_t blocks) {
    table_.resize(static_cast<size_t>(blocks));
    std::iota(table_.begin(), table_.end(), 0);
    Random random(5);
    for (size_t i = table_.size(); i > 1; --i) std::swap(table_[i - 1], table_[random.below(i)]);
  }

  void attend(int64_t layer) {
    kernels_->attention({.q = q_.data(),
                         .q_stride = static_cast<int64_t>(s_.q_heads) * s_.dim,
                         .out = out_.data(),
                         .arena = arena_.as<char>() + layer * layout_.layer_stride(),
                         .layout = layout_,
                         .num_q_heads = s_.q_heads,
                         .num_kv_heads = s_.kv_heads,
                         .head_dim = s_.dim,
                         .scale = 1 / std::sqrt(static_cast<float>(s_.dim)),
                         .num_sequences = s_.sequences,
                         .rows = rows(),
                         .max_rows = s_.rows,
                         .max_length = s_.length,
                         .query_start = query_start_.data(),
                         .lengths = lengths_.data(),
                         .block_table = table_.data(),
                         .table_stride = (s_.length + 15) / 16});
  }

  Shape s_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Kernels> kernels_;
  KvLayout layout_;
  int64_t layers_ = 1;
  DeviceBuffer arena_, q_, out_;
  std::vector<int32_t> table_, query_start_, lengths_;
};

void time_regions(int threads) {
  cpu::ThreadPool pool(threads);
  check(pool.start().has_value(), "the threads start");
  constexpr int kRegions = 2000;
  // Every unit waits until all have begun, so a region lasts until the last worker has come.
  const Timing t = time_of(20, [&] {
    for (int i = 0; i < kRegions; ++i) {
      std::atomic<int> begun = 0;
      pool.run(threads, [&](int64_t, int) {
        ++begun;
        while (begun < threads) __builtin_ia32_pause();
      });
    }
  });
  std::printf("parallel region, %d threads: %.2f us (median %.2f)\n", threads, t.best_ms * 1e3 / kRegions,
              t.median_ms * 1e3 / kRegions);
}

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  using namespace quire;
  const int threads = argc > 1 ? std::atoi(argv[1]) : usable_cores();
  const char* part = argc > 2 ? argv[2] : "";
  const bench::Ceilings c = bench::measure_ceilings(threads);
  std::printf("%s, %d threads, %s: read %.1f GB/s, f32 fma %.0f GFLOP/s\n", cpu_name().c_str(), threads,
              std::string(name_of(usable_isa())).c_str(), c.read_gb_s, c.fma_gflop_s);
  const DType f32 = DType::kF32, bf16 = DType::kBF16;
  for (const bench::Shape& shape :
       {bench::Shape{"hot 1 x 512, 8/2 heads of 128, bf16", 1, 1, 512, 8, 2, 128, bf16, bf16},
        {"decode 1 x 8k, 32/8 heads of 128, bf16", 1, 1, 8192, 32, 8, 128, bf16, bf16},
        {"decode 1 x 8k, 32/8 heads of 128, f32 act, bf16 kv", 1, 1, 8192, 32, 8, 128, f32, bf16},
        {"decode 4 x 8k, 32/8 heads of 128, bf16", 4, 1, 8192, 32, 8, 128, bf16, bf16},
        {"decode 1 x 8k, 16/16 heads of 128 (MHA), bf16", 1, 1, 8192, 16, 16, 128, bf16, bf16},
        {"decode 1 x 8k, 14/2 heads of 64 (group 7), bf16", 1, 1, 8192, 14, 2, 64, bf16, bf16},
        {"decode 1 x 8k, 32/4 heads of 128 (group 8), bf16", 1, 1, 8192, 32, 4, 128, bf16, bf16},
        {"decode 1 x 8k, 32/8 heads of 128, f32", 1, 1, 8192, 32, 8, 128, f32, f32},
        {"prefill 2k, 32/8 heads of 128, bf16", 1, 2048, 2048, 32, 8, 128, bf16, bf16},
        {"prefill 512 of 8k, 32/8 heads of 128, bf16", 1, 512, 8192, 32, 8, 128, bf16, bf16}}) {
    if (std::strstr(shape.name, part) != nullptr) bench::Bench(shape, threads).run(c);
  }
  bench::time_regions(threads);
}
