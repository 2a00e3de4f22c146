// The matrix products of a Llama-3.1-8B decode step, one after another in one graph as the step runs them,
// over several layers' weights so that none is found in the cache.
#include <fmt/format.h>

#include <cmath>

#include "benchmarks/cuda/step_bench.h"
#include "src/base/random.h"

namespace quire::bench {
namespace {

using Shape = ProductShape;
constexpr Shape kLayer[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
constexpr Shape kHead = {"head", 128256, 4096};
constexpr Shape kTinyLayer[] = {{"qkv", 96, 64}, {"o", 64, 64}, {"gate_up", 192, 64}, {"down", 64, 96}};
constexpr Shape kTinyHead = {"head", 200, 64};
constexpr int kCopies = 4, kSamples = 24;

// A weight on the device, several times over, and the host's copy.
struct Weight {
  Shape shape;
  std::vector<uint16_t> host;
  std::vector<std::unique_ptr<MatmulWeight>> copies;
};

Weight make_weight(Rig& rig, const Shape& shape, int copies) {
  Weight w{.shape = shape,
           .host = random_host(shape.elements(), static_cast<uint64_t>(shape.n),
                               1.0f / std::sqrt(static_cast<float>(shape.k))),
           .copies = {}};
  const HostMatrix matrix{.data = w.host.data(), .dtype = DType::kBF16, .rows = shape.n, .cols = shape.k};
  for (int i = 0; i < copies; ++i) w.copies.push_back(value_or_exit(rig.kernels().pack({&matrix, 1})));
  return w;
}

// Memory for the rows of any product.
struct Rows {
  std::vector<uint16_t> host;  // x
  DeviceBuffer x, out;
};

class Products {
 public:
  Products(Rig& rig, Report& report, bool tiny) : rig_(rig), report_(report), tiny_(tiny) {
    for (const Shape& s : layer_products(tiny)) layer_.push_back(make_weight(rig, s, kCopies));
    head_ = make_weight(rig, head_product(tiny), 1);
    tune();
  }

  void run() {
    for (const int rows : {1, 2, 4, 8, 16, 24, 32, 64, 80, 96, 128, 192, 256, 2048}) {
      if (tiny_ && rows > 64) continue;
      step(rows);
      if (rows == 1 || rows == 8 || rows == 16 || rows == 64 || rows == 128 || rows == 256) singly(rows);
    }
  }

 private:
  // As an engine does at its start.
  void tune() {
    std::vector<const MatmulWeight*> weights;
    for (int copy = 0; copy < kCopies; ++copy)
      for (const Weight& w : layer_) weights.push_back(w.copies[static_cast<size_t>(copy)].get());
    rig_.kernels().tune({.weights = weights,
                         .output = head_.copies[0].get(),
                         .max_rows = 2048,
                         .max_output_rows = 2048,
                         .budget_ms = tiny_ ? 0 : 2000});
    rig_.rest();
  }
  void multiply(const Weight& w, int copy, const Rows& r, int64_t m) {
    rig_.kernels().matmul({.x = r.x.data(),
                           .weight = w.copies[static_cast<size_t>(copy) % w.copies.size()].get(),
                           .out = r.out.data(),
                           .out_f32 = w.shape.n == head_.shape.n,
                           .m = m});
  }

  Rows make_rows(int64_t m) {
    int64_t widest = head_.shape.n * 2, deepest = 0;  // logits are f32
    for (const Weight& w : layer_)
      widest = std::max(widest, w.shape.n), deepest = std::max(deepest, w.shape.k);
    Rows r;
    r.host = random_host(m * deepest, 5, 1.0f);
    r.x = rig_.upload(r.host, "rows");
    r.out = rig_.buffer(m * widest * 2, "results of a product");
    return r;
  }

  // All products of a step: 32 layers and the head.
  void step(int64_t m) {
    const Rows rows = make_rows(m);
    const Timing layer = rig_.time(2 * kCopies, [&](int i) {
      for (const Weight& w : layer_) multiply(w, i, rows, m);
    });
    const Timing head = rig_.time(2, [&](int i) { multiply(head_, i, rows, m); });
    Line line{.part = "matmul", .name = fmt::format("step at {} rows", m)};
    line.time = added(layer, head);
    double elements = static_cast<double>(head_.shape.elements());
    for (const Weight& w : layer_) elements += kModelLayers * static_cast<double>(w.shape.elements());
    line.bytes = elements * 2;
    if (m > 64) line.operations = elements * 2 * static_cast<double>(m);
    line.error = error_of(head_, rows, m);  // the last product's result is still there
    line.more = {{"rows", m}, {"layer_us", layer.us}, {"head_us", head.us}};
    report_.add(line);
  }

  static Timing added(const Timing& layer, const Timing& head) {
    Timing t{.us = kModelLayers * layer.us + head.us,
             .least_us = kModelLayers * layer.least_us + head.least_us,
             .most_us = kModelLayers * layer.most_us + head.most_us,
             .rounds_us = {}};
    for (size_t i = 0; i < layer.rounds_us.size(); ++i)
      t.rounds_us.push_back(kModelLayers * layer.rounds_us[i] + head.rounds_us[i]);
    return t;
  }

  void singly(int64_t m) {
    const Rows rows = make_rows(m);
    for (const Weight& w : layer_) {
      Line line{.part = "matmul",
                .name = fmt::format("{} {}x{} at {}", w.shape.name, w.shape.n, w.shape.k, m)};
      line.time = rig_.time(2 * kCopies, [&](int i) { multiply(w, i, rows, m); });
      line.bytes = static_cast<double>(w.shape.elements()) * 2;
      line.error = error_of(w, rows, m);
      report_.add(line);
    }
  }

  // Some elements of the result against sums in float64.
  double error_of(const Weight& w, const Rows& rows, int64_t m) {
    Random random(9);
    std::vector<double> got, wanted;
    for (int i = 0; i < kSamples; ++i) {
      const int64_t row = random.between(0, m - 1), n = random.between(0, w.shape.n - 1);
      got.push_back(result(w, rows, row * w.shape.n + n));
      double sum = 0;
      for (int64_t k = 0; k < w.shape.k; ++k)
        sum += double{bf16_to_f32(rows.host[static_cast<size_t>(row * w.shape.k + k)])} *
               bf16_to_f32(w.host[static_cast<size_t>(n * w.shape.k + k)]);
      wanted.push_back(sum);
    }
    return relative_error(got, wanted);
  }

  double result(const Weight& w, const Rows& rows, int64_t at) {
    if (w.shape.n == head_.shape.n) return rig_.download(rows.out.as<float>() + at, 1)[0];
    return bf16_to_f32(rig_.download(rows.out.as<uint16_t>() + at, 1)[0]);
  }

  Rig& rig_;
  Report& report_;
  bool tiny_;
  std::vector<Weight> layer_;
  Weight head_;
};

}  // namespace

std::span<const ProductShape> layer_products(bool tiny) {
  return tiny ? std::span<const ProductShape>(kTinyLayer) : kLayer;
}
const ProductShape& head_product(bool tiny) {
  return tiny ? kTinyHead : kHead;
}

void bench_matmul(Rig& rig, Report& report, bool tiny) {
  Products(rig, report, tiny).run();
}

void bench_matmul_ceiling(Rig& rig, Report& report, bool tiny) {
  const int64_t size = tiny ? 64 : 8192;
  const Weight w = make_weight(rig, {"square", size, size}, 1);
  const DeviceBuffer x = rig.upload(random_host(size * size, 3, 1.0f), "rows"),
                     out = rig.buffer(size * size * 2, "result");
  Line line{.part = "ceiling", .name = fmt::format("product of {0} x {0} x {0}", size)};
  line.time = rig.time(2, [&](int) {
    rig.kernels().matmul({.x = x.data(), .weight = w.copies[0].get(), .out = out.data(), .m = size});
  });
  line.operations = 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  rig.set_matmul_ceiling(line.operations / line.time.us * 1e6);
  report.add(line);
}

}  // namespace quire::bench
