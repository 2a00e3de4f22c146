// Matmul of the CPU back end on [M, 4096] x [4096, 4096], the weight changed at every call so that more than
// 256 MiB pass between two readings of one. Prints time, GFLOP/s, GB/s of weight, each as a share of the
// ceiling measured in the same run, and the ratio to oneDNN where that is installed.
//   quire_cpu_matmul_bench [threads]         QUIRE_CPU_ISA as for the product
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "benchmarks/cpu/ceilings.h"
#include "kernels/kernels.h"
#include "src/base/random.h"
#include "src/device/cpu_features.h"

#ifdef QUIRE_BENCH_ONEDNN
#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace quire::bench {
namespace {

constexpr int64_t kN = 4096, kK = 4096;
constexpr int64_t kRotated = 288ll << 20;  // bytes of weights in turn

std::vector<uint16_t> random_bf16(int64_t count) {
  Random random(7);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& v : values) v = f32_to_bf16(static_cast<float>(random.uniform() - 0.5));
  return values;
}
std::vector<float> widened(const std::vector<uint16_t>& bits) {
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) values[i] = bf16_to_f32(bits[i]);
  return values;
}

struct Case {
  const char* name;
  DType act, weight;
};

#ifdef QUIRE_BENCH_ONEDNN
// The same product by oneDNN, weights in the layout that it likes best.
class OneDnn {
 public:
  OneDnn(int threads, DType weight, const void* values, int64_t copies) : type_(type_of(weight)) {
    omp_set_num_threads(threads);
    const dnnl::memory plain(describe(kK, kN, tag::ba), engine_, const_cast<void*>(values));
    const auto packed = primitive(64).weights_desc();
    for (int64_t i = 0; i < copies; ++i) {
      weights_.emplace_back(packed, engine_);
      dnnl::reorder(plain, weights_.back())
          .execute(stream_, const_cast<dnnl::memory&>(plain), weights_.back());
    }
    stream_.wait();
  }

  Timing time(int64_t m, const void* x, void* out, int repeats) {
    const auto pd = primitive(m);
    if (pd.weights_desc() != weights_[0].get_desc()) repack(pd.weights_desc());
    const dnnl::matmul op(pd);
    const dnnl::memory source(pd.src_desc(), engine_, const_cast<void*>(x)),
        target(pd.dst_desc(), engine_, out);
    size_t turn = 0;
    return time_of(repeats, [&] {
      op.execute(stream_, {{DNNL_ARG_SRC, source},
                           {DNNL_ARG_WEIGHTS, weights_[turn++ % weights_.size()]},
                           {DNNL_ARG_DST, target}});
      stream_.wait();
    });
  }

 private:
  using tag = dnnl::memory::format_tag;
  static dnnl::memory::data_type type_of(DType t) {
    return t == DType::kF32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
  }
  dnnl::memory::desc describe(int64_t rows, int64_t cols, tag order) const {
    return {{rows, cols}, type_, order};
  }
  dnnl::matmul::primitive_desc primitive(int64_t m) const {
    return {
        dnnl::matmul::desc(describe(m, kK, tag::ab), describe(kK, kN, tag::any), describe(m, kN, tag::ab)),
        engine_};
  }
  void repack(const dnnl::memory::desc& wanted) {
    for (dnnl::memory& weight : weights_) {
      dnnl::memory again(wanted, engine_);
      dnnl::reorder(weight, again).execute(stream_, weight, again);
      stream_.wait();
      weight = again;
    }
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::memory::data_type type_;
  std::vector<dnnl::memory> weights_;
};

// Nothing where oneDNN has no such product on this CPU: bf16 asks for more than AVX2.
std::unique_ptr<OneDnn> open_peer(int threads, DType weight, const void* values, int64_t copies) {
  try {
    return std::make_unique<OneDnn>(threads, weight, values, copies);
  } catch (const dnnl::error& e) {
    if (e.status != dnnl_unimplemented) throw;
    return nullptr;
  }
}
#endif

class Bench {
 public:
  Bench(const Case& c, int threads)
      : case_(c), threads_(threads), device_(std::move(open_cpu_device(threads)).value()) {
    kernels_ = std::move(make_cpu_kernels(*device_, {.activations = c.act, .threads = threads})).value();
    bits_ = random_bf16(kN * kK);
    floats_ = widened(bits_);
    weight_bytes_ = kN * kK * bytes_of(c.weight);
    const HostMatrix part{.data = weight_values(), .dtype = c.weight, .rows = kN, .cols = kK};
    for (int64_t bytes = 0; bytes < kRotated; bytes += weight_bytes_) {
      weights_.push_back(std::move(kernels_->pack({&part, 1})).value());
    }
  }

  void run(const Ceilings& ceilings) {
    std::printf("\n%s\n%6s %9s %9s %9s %7s %7s %7s %10s\n", case_.name, "M", "best ms", "median", "GFLOP/s",
                "peak", "GB/s", "read", "vs oneDNN");
#ifdef QUIRE_BENCH_ONEDNN
    const bool comparable = case_.act == case_.weight;
    std::unique_ptr<OneDnn> peer;
    if (comparable)
      peer = open_peer(threads_, case_.weight, weight_values(), static_cast<int64_t>(weights_.size()));
    if (comparable && !peer) std::printf("(oneDNN has no such product on this CPU)\n");
#endif
    for (const int64_t m : {1, 4, 8, 16, 64, 128, 512}) {
      const int repeats = m <= 16 ? 40 : m <= 128 ? 16 : 6;
      std::vector<float> out(static_cast<size_t>(m * kN));
      const Timing ours = time_ours(m, out.data(), repeats);
      print(m, ours, ceilings);
#ifdef QUIRE_BENCH_ONEDNN
      if (peer) {
        const Timing theirs = peer->time(m, x_values(), out.data(), repeats);
        std::printf(" %9.2fx", theirs.best_ms / ours.best_ms);
      }
#endif
      std::printf("\n");
    }
  }

 private:
  const void* weight_values() const {
    return case_.weight == DType::kF32 ? static_cast<const void*>(floats_.data()) : bits_.data();
  }
  const void* x_values() const {
    return case_.act == DType::kF32 ? static_cast<const void*>(floats_.data()) : bits_.data();
  }

  Timing time_ours(int64_t m, float* out, int repeats) {
    size_t turn = 0;
    return time_of(repeats, [&] {
      kernels_->matmul(
          {.x = x_values(), .weight = weights_[turn++ % weights_.size()].get(), .out = out, .m = m});
    });
  }

  void print(int64_t m, const Timing& t, const Ceilings& c) const {
    const double flops = 2.0 * static_cast<double>(m * kN * kK) * 1e-6 / t.best_ms;
    const double bytes = static_cast<double>(weight_bytes_) * 1e-6 / t.best_ms;
    const double peak = case_.act == DType::kBF16 && case_.weight == DType::kBF16 && c.bf16_gflop_s > 0
                            ? c.bf16_gflop_s
                            : c.fma_gflop_s;
    std::printf("%6ld %9.3f %9.3f %9.0f %6.0f%% %7.1f %6.0f%%", static_cast<long>(m), t.best_ms, t.median_ms,
                flops, 100 * flops / peak, bytes, 100 * bytes / c.read_gb_s);
  }

  Case case_;
  [[maybe_unused]] int threads_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Kernels> kernels_;
  std::vector<uint16_t> bits_;
  std::vector<float> floats_;
  int64_t weight_bytes_ = 0;
  std::vector<std::unique_ptr<MatmulWeight>> weights_;
};

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  using namespace quire;
  const int threads = argc > 1 ? std::atoi(argv[1]) : usable_cores();
  const bench::Ceilings c = bench::measure_ceilings(threads);
  std::printf("%s, %d threads, %s: read %.1f GB/s, f32 fma %.0f GFLOP/s, bf16 dot %.0f GFLOP/s\n",
              cpu_name().c_str(), threads, std::string(name_of(usable_isa())).c_str(), c.read_gb_s,
              c.fma_gflop_s, c.bf16_gflop_s);
  for (const bench::Case& one : {bench::Case{"bf16 activations, bf16 weights", DType::kBF16, DType::kBF16},
                                 {"f32 activations, bf16 weights", DType::kF32, DType::kBF16},
                                 {"f32 activations, f32 weights", DType::kF32, DType::kF32}}) {
    bench::Bench(one, threads).run(c);
  }
}
