// Paged attention of the CPU back end. Decode: one row per sequence over 8k contexts, GB/s of K and V read
// once, as a share of a stream's read and of a bare read of random pieces as large as a block's K, both beside each
// reading (the bandwidth that a virtual machine is granted changes within seconds); layers in turn so that more than 256
// MiB pass between two readings of a block. Prefill: GFLOP/s of both products, causal half only. Last, what a parallel
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

  // `fma_gflop_s`: what the machine reaches.
  void run(double fma_gflop_s) {
    std::printf("%-52s", s_.name);
    const Timing t = s_.rows == 1 && layers_ > 1
                         ? time_beside_reads()
                         : time_of(layers_ > 1 ? 6 : 40, [&] { attend(turn_++ % layers_); });
    const double pairs = s_.rows * (s_.length - (s_.rows - 1) / 2.0) * s_.sequences;
    const double gflop_s = 4.0 * pairs * s_.q_heads * s_.dim * 1e-6 / t.median_ms;
    std::printf("  %9.3f ms (best %9.3f) %6.0f GFLOP/s, %3.0f%% of fma\n", t.median_ms, t.best_ms, gflop_s,
                100 * gflop_s / fma_gflop_s);
  }

 private:
  static constexpr int kRounds = 15;

  // Each round reads a stream, then every layer's K and V, the stream again and random pieces of a block's size: the
  // share of a round is of what the machine gave in its own 30 ms, and the median over the rounds is printed.
  Timing time_beside_reads() {
    const int threads = device_->facts().multiprocessors;
    const int64_t block_bytes = s_.kv_heads * 2ll * layout_.block_tokens * layout_.token_bytes();
    const double gigabytes =
        static_cast<double>(s_.sequences * (s_.length / layout_.block_tokens) * block_bytes) * 1e-9;
    std::vector<double> ms, read, of_stream, of_pieces;
    attend(0);
    for (int round = 0; round < kRounds; ++round) {
      const double before = stream_once(threads);
      const auto start = std::chrono::steady_clock::now();
      for (int64_t layer = 0; layer < layers_; ++layer) attend(layer);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      const double after = stream_once(threads), pieces = pieces_once(threads, block_bytes / 2);
      ms.push_back(took.count() * 1e3 / static_cast<double>(layers_));
      read.push_back(gigabytes * static_cast<double>(layers_) / took.count());
      of_stream.push_back(read.back() * (1 / before + 1 / after) / 2);
      of_pieces.push_back(read.back() / pieces);
    }
    for (auto* figures : {&ms, &read, &of_stream, &of_pieces}) std::sort(figures->begin(), figures->end());
    const size_t middle = kRounds / 2, low = kRounds / 10, high = kRounds - 1 - low;
    std::printf(" %6.1f GB/s, %.2f (%.2f to %.2f) of a stream's read, %.2f of random %lld KiB", read[middle],
                of_stream[middle], of_stream[low], of_stream[high], of_pieces[middle],
                static_cast<long long>(block_bytes / 2 >> 10));
    return {.best_ms = ms.front(), .median_ms = ms[middle]};
  }

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
  int64_t turn_ = 0;
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
        {"prefill 2k, 32/8 heads of 128, f32", 1, 2048, 2048, 32, 8, 128, f32, f32},
        {"prefill 512 of 8k, 32/8 heads of 128, bf16", 1, 512, 8192, 32, 8, 128, bf16, bf16}}) {
    if (std::strstr(shape.name, part) != nullptr) bench::Bench(shape, threads).run(c.fma_gflop_s);
  }
  bench::time_regions(threads);
}
