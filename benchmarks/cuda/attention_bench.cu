// Attention on a card, in the shapes of Llama-3.1-8B (32 or 64 query heads, 8 KV heads, head size 128, bf16,
// blocks of 16): time, rate, and the share of the bare read of the same blocks (decode) or of the tensor
// cores (prefill). Layers are rotated, so no layer's K and V is in the cache; graphs are replayed; medians.
// Each shape's output is checked in float64 first; a failed check makes the exit status 1.
//
// usage: quire_cuda_attention_bench [--part decode,prefill,cascade,tune] [--pool-gib 48] [--rounds 9] [--json
// FILE]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "benchmarks/cuda/attention_bench_rig.h"

namespace quire::attention_bench {
namespace {

constexpr double kMaxError = 1e-2;  // relative, of one row: bf16 probabilities and result

class Report {
 public:
  explicit Report(const char* path) : file_(path == nullptr ? nullptr : std::fopen(path, "w")) {
    if (file_ != nullptr) std::fprintf(file_, "[\n");
  }
  ~Report() {
    if (file_ == nullptr) return;
    std::fprintf(file_, "\n]\n");
    std::fclose(file_);
  }
  void line(const std::string& json) {
    if (file_ == nullptr) return;
    std::fprintf(file_, "%s%s", first_ ? "" : ",\n", json.c_str());
    std::fflush(file_);
    first_ = false;
  }
  bool right = true;

  // Says so where an output is wrong.
  const char* judge(double error) {
    if (error < kMaxError) return "";
    right = false;
    return "  WRONG";
  }

 private:
  std::FILE* file_;
  bool first_ = true;
};

template <class... Args>
std::string text(const char* format, Args... args) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

std::vector<int> times(int n, int value) {
  return std::vector<int>(static_cast<size_t>(n), value);
}

struct Batch {
  int sequences, length;
};
constexpr Batch kDecodeBatches[] = {{1, 1024},  {1, 4096},  {1, 32768}, {16, 1024},
                                    {16, 4096}, {64, 1024}, {64, 4096}, {256, 1024}};
constexpr Batch kPrefillBatches[] = {{1, 512}, {16, 512}, {8, 1024}, {4, 2048}, {1, 8192}, {1, 32768}};

Timing time_decode(Rig& rig, const Problem& problem, const cuda::DecodeTuning& tuning, int layers) {
  cuda::AttentionContext context = rig.context();
  context.decode = tuning;
  return rig.time(layers, [&](int layer) { cuda::attention(context, DType::kBF16, problem.params(layer)); });
}

// Lists of lengths that nobody would choose.
void check_ragged(Rig& rig, const Model& model, Report& report) {
  std::vector<int> lengths;
  for (int i = 0; i < 61; ++i) lengths.push_back(1 + i * i * 7 % 3000);
  const Problem problem(rig, model, lengths, times(61, 1));
  time_decode(rig, problem, rig.context().decode, model.layers);
  const double error = problem.worst_error(model.layers - 1);
  std::printf("ragged lists, 1 to 3000 slots: error %.1e%s\n", error, report.judge(error));
}

void bench_decode(Rig& rig, Report& report) {
  for (const int q_heads : {8, 32, 64}) {
    const Model model{.q_heads = q_heads};
    check_ragged(rig, model, report);
    std::printf("decode, %d/%d heads       us a layer (least-most)    TB/s   bare read us   share   error\n",
                q_heads, model.kv_heads);
    for (const Batch b : kDecodeBatches) {
      const Problem problem(rig, model, times(b.sequences, b.length), times(b.sequences, 1));
      if (!problem.fits()) continue;
      const Timing bare = problem.bare_read(rig),
                   t = time_decode(rig, problem, rig.context().decode, model.layers);
      const double error = problem.worst_error(model.layers - 1), rate = problem.kv_bytes() / t.us * 1e-6;
      std::printf("  %4d x %-6d %10.2f (%.2f-%.2f) %8.3f %10.2f %10.3f   %.1e%s\n", b.sequences, b.length,
                  t.us, t.least_us, t.most_us, rate, bare.us, bare.us / t.us, error, report.judge(error));
      std::fflush(stdout);
      report.line(text(
          R"({"what":"decode","q_heads":%d,"kv_heads":%d,"sequences":%d,"length":%d,"us":%.3f,"least_us":%.3f,"most_us":%.3f,"tbs":%.4f,"bare_us":%.3f,"share":%.4f,"error":%.2e})",
          q_heads, model.kv_heads, b.sequences, b.length, t.us, t.least_us, t.most_us, rate, bare.us,
          bare.us / t.us, error));
    }
  }
}

void tune_decode(Rig& rig, Report& report) {
  const Model model;
  std::printf(
      "decode tuning, 32/8 heads: the best four of each shape (warps stages min_tiles blocks aligned: us)\n");
  for (const Batch b : kDecodeBatches) {
    const Problem problem(rig, model, times(b.sequences, b.length), times(b.sequences, 1));
    if (!problem.fits()) continue;
    std::vector<std::pair<double, cuda::DecodeTuning>> results;
    for (const int warps : {4, 8})
      for (const int stages : {2, 3, 4})
        for (const int min_tiles : {4, 8, 16, 32})
          for (const int blocks : {1, 2})
            for (const bool aligned : {false, true}) {
              if (min_tiles != 8 && b.sequences * b.length > 16384) continue;  // there every block has more
              const cuda::DecodeTuning tuning{.warps = warps,
                                              .stages = stages,
                                              .min_tiles = min_tiles,
                                              .aligned = aligned,
                                              .blocks_per_multiprocessor = blocks};
              results.emplace_back(time_decode(rig, problem, tuning, model.layers).us, tuning);
            }
    std::sort(results.begin(), results.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
    std::printf("  %4d x %-6d", b.sequences, b.length);
    for (int i = 0; i < 4; ++i) {
      const auto& [us, t] = results[static_cast<size_t>(i)];
      std::printf("   %d %d %2d %d %d: %.2f", t.warps, t.stages, t.min_tiles, t.blocks_per_multiprocessor,
                  t.aligned, us);
    }
    std::printf("\n");
    std::fflush(stdout);
    for (const auto& [us, t] : results)
      report.line(text(
          R"({"what":"decode_tuning","sequences":%d,"length":%d,"warps":%d,"stages":%d,"min_tiles":%d,"blocks":%d,"aligned":%d,"us":%.3f})",
          b.sequences, b.length, t.warps, t.stages, t.min_tiles, t.blocks_per_multiprocessor, t.aligned, us));
  }
}

// One prefill problem on Hopper's kernel where the card has it, and on the portable one.
void bench_prefill_problem(Rig& rig, Report& report, const Model& model, const std::string& name,
                           const std::vector<int>& lengths, const std::vector<int>& rows) {
  const Problem problem(rig, model, lengths, rows);
  if (!problem.fits()) return;
  const int own = rig.context().machine.compute_capability, layers = problem.operations() > 1e12 ? 2 : 8;
  std::printf("  %-22s", name.c_str());
  for (const int capability : {own, 80}) {
    if (capability != own && own != 90) continue;
    cuda::AttentionContext context = rig.context();
    context.machine.compute_capability = capability;
    const Timing t =
        rig.time(layers, [&](int layer) { cuda::attention(context, DType::kBF16, problem.params(layer)); });
    const double error = problem.worst_error(layers - 1), rate = problem.operations() / t.us * 1e-6;
    std::printf("   %s %9.1f us %6.1f TFLOP/s  error %.1e%s", capability == 90 ? "wgmma" : "mma.sync", t.us,
                rate, error, report.judge(error));
    report.line(text(
        R"({"what":"prefill","name":"%s","head_dim":%d,"kernel":"%s","us":%.3f,"least_us":%.3f,"most_us":%.3f,"tflops":%.2f,"error":%.2e})",
        name.c_str(), model.head_dim, capability == 90 ? "wgmma" : "mma.sync", t.us, t.least_us, t.most_us,
        rate, error));
  }
  std::printf("\n");
  std::fflush(stdout);
}

void bench_prefill(Rig& rig, Report& report) {
  for (const int head_dim : {128, 64}) {
    const Model model{.head_dim = head_dim};
    std::printf("prefill, causal, %d/%d heads x %d\n", model.q_heads, model.kv_heads, head_dim);
    for (const Batch b : kPrefillBatches)
      bench_prefill_problem(rig, report, model, text("%d x %d", b.sequences, b.length),
                            times(b.sequences, b.length), times(b.sequences, b.length));
    bench_prefill_problem(rig, report, model, "chunk 2048 at 16384", {16384}, {2048});
    bench_prefill_problem(rig, report, model, "chunk 512 at 8192", {8192}, {512});
    std::vector<int> lengths = times(64, 1024), rows = times(64, 1);
    lengths.push_back(2048);
    rows.push_back(2048);
    bench_prefill_problem(rig, report, model, "2048 beside 64 decodes", lengths, rows);
  }
}

void bench_cascade(Rig& rig, Report& report) {
  struct Shape {
    int sequences, prefix, tail;
  };
  const Model model;
  std::printf("shared prefix, 32/8 heads: us a layer, lists read one by one; cascade\n");
  for (const Shape s : {Shape{256, 32768, 256}, Shape{64, 4096, 64}, Shape{256, 1024, 1024},
                        Shape{16, 8192, 512}, Shape{4, 2048, 128}}) {
    const Problem problem(rig, model, times(s.sequences, s.prefix + s.tail), times(s.sequences, 1), s.prefix);
    if (!problem.fits()) continue;
    constexpr int kLayers = 4;
    const Timing alone = rig.time(
        kLayers, [&](int layer) { cuda::attention(rig.context(), DType::kBF16, problem.params(layer)); });
    const double alone_error = problem.worst_error(kLayers - 1);
    const Timing cascade = rig.time(kLayers, [&](int layer) {
      AttentionParams p = problem.params(layer);
      problem.share(p);
      cuda::attention(rig.context(), DType::kBF16, p);
    });
    const double error = problem.worst_error(kLayers - 1);
    std::printf("  %4d x (%d + %d)   %10.1f   %8.1f   %.1fx   errors %.1e%s %.1e%s\n", s.sequences, s.prefix,
                s.tail, alone.us, cascade.us, alone.us / cascade.us, alone_error, report.judge(alone_error),
                error, report.judge(error));
    std::fflush(stdout);
    report.line(text(
        R"({"what":"cascade","sequences":%d,"prefix":%d,"tail":%d,"alone_us":%.3f,"cascade_us":%.3f,"error":%.2e})",
        s.sequences, s.prefix, s.tail, alone.us, cascade.us, error));
  }
}

int run(int argc, char** argv) {
  std::string parts = "decode,prefill,cascade";
  long pool_gib = 48;
  int rounds = 9;
  const char* json = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--part") == 0) parts = argv[i + 1];
    if (std::strcmp(argv[i], "--pool-gib") == 0) pool_gib = std::atol(argv[i + 1]);
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
  }
  Rig rig(int64_t{pool_gib} << 30, rounds);
  Report report(json);
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver));
  const double read = rig.read_ceiling();
  std::printf("%s, %d multiprocessors, driver %d; read ceiling %.3f TB/s; pool %ld GiB; %d rounds\n",
              rig.properties().name, rig.properties().multiProcessorCount, driver, read * 1e-12, pool_gib,
              rounds);
  report.line(text(R"({"what":"card","name":"%s","driver":%d,"read_tbs":%.4f})", rig.properties().name,
                   driver, read * 1e-12));
  if (parts.find("decode") != std::string::npos) bench_decode(rig, report);
  if (parts.find("tune") != std::string::npos) tune_decode(rig, report);
  if (parts.find("prefill") != std::string::npos) bench_prefill(rig, report);
  if (parts.find("cascade") != std::string::npos) bench_cascade(rig, report);
  std::printf(report.right ? "all checks passed\n" : "A CHECK FAILED\n");
  return report.right ? 0 : 1;
}

}  // namespace
}  // namespace quire::attention_bench

int main(int argc, char** argv) {
  return quire::attention_bench::run(argc, argv);
}
