// Whether the products of one row take longer where their weights lie elsewhere in memory. Several copies of a step's weights stay
// allocated in one process and are timed in turn: what comes back in every round belongs to the place, what all copies share in one
// round to the time, what all of a process share to the process, so run several (`--placements 2`). Beside the products the bare read
// of the same bytes.
#include <fmt/format.h>

#include <algorithm>

#include "benchmarks/cuda/step_bench.h"
#include "kernels/cuda/matmul/product.h"

namespace quire::bench {
namespace {

constexpr int kLayers = 4, kPlacementRounds = 5;

int64_t bytes_of_shape(const ProductShape& s) {
  return s.elements() * 2;
}

struct Placement {
  std::string name;
  std::vector<StoredWeight> layers;  // kLayers times the products of one, in a step's order
  StoredWeight head;
  std::vector<double> layer_us, head_us, read_gb_s;
  double step_us(size_t round) const { return kModelLayers * layer_us[round] + head_us[round]; }
};

class Placements {
 public:
  Placements(Rig& rig, Report& report, bool tiny, int placements)
      : rig_(rig),
        report_(report),
        layer_(layer_products(tiny)),
        head_(head_product(tiny)),
        x_(rig.random(16384, 3, "a row")) {
    out_ = rig.buffer(head_.n * 4, "results of a product");
    for (int i = 0; i < placements; ++i) all_.push_back(make(i));
  }

  void run() {
    for (int round = 0; round < kPlacementRounds; ++round)
      for (Placement& p : all_) time(p);
    for (const Placement& p : all_) report(p);
  }

 private:
  StoredWeight make_weight(const ProductShape& shape) {
    StoredWeight w;
    w.rows = shape.n, w.cols = shape.k, w.row_elements = stored_row_elements(shape.k);
    w.data = rig_.random(w.rows * w.row_elements, static_cast<uint32_t>(shape.n), "weights");
    return w;
  }
  Placement make(int index) {
    Placement p;
    for (int layer = 0; layer < kLayers; ++layer)
      for (const ProductShape& s : layer_) p.layers.push_back(make_weight(s));
    p.head = make_weight(head_);
    p.name = fmt::format("{} from {}", index, p.layers[0].data.data());
    return p;
  }
  void multiply(const StoredWeight& w, bool head) {
    rig_.kernels().matmul({.x = x_.data(), .weight = &w, .out = out_.data(), .out_f32 = head, .m = 1});
  }
  void time(Placement& p) {
    const size_t each = layer_.size();
    const Timing layer = rig_.time(2 * kLayers, [&](int i) {
      for (size_t k = 0; k < each; ++k)
        multiply(p.layers[static_cast<size_t>(i) % kLayers * each + k], false);
    });
    const Timing head = rig_.time(2, [&](int) { multiply(p.head, true); });
    int64_t bytes = 0;
    for (const StoredWeight& w : p.layers) bytes += w.data.bytes();
    const Timing read = rig_.time(1, [&](int) {
      for (const StoredWeight& w : p.layers) rig_.ops().read_all(w.data.data(), w.data.bytes());
    });
    p.layer_us.push_back(layer.us), p.head_us.push_back(head.us);
    p.read_gb_s.push_back(static_cast<double>(bytes) / read.us * 1e-3);
  }

  void report(const Placement& p) {
    Line line{.part = "placement", .name = p.name};
    for (size_t round = 0; round < p.layer_us.size(); ++round)
      line.time.rounds_us.push_back(p.step_us(round));
    std::vector<double> sorted = line.time.rounds_us;
    std::sort(sorted.begin(), sorted.end());
    line.time.us = sorted[sorted.size() / 2];
    line.time.least_us = sorted.front(), line.time.most_us = sorted.back();
    line.bytes = static_cast<double>(head_.elements()) * 2;
    for (const ProductShape& s : layer_) line.bytes += kModelLayers * static_cast<double>(bytes_of_shape(s));
    line.more = {{"layer_us", p.layer_us}, {"head_us", p.head_us}, {"read_gb_per_s", p.read_gb_s}};
    report_.add(line);
  }

  Rig& rig_;
  Report& report_;
  const std::span<const ProductShape> layer_;
  const ProductShape& head_;
  DeviceBuffer x_, out_;
  std::vector<Placement> all_;
};

}  // namespace

void bench_placement(Rig& rig, Report& report, bool tiny, int placements) {
  Placements(rig, report, tiny, placements).run();
}

}  // namespace quire::bench
