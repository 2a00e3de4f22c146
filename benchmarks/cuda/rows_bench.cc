// The ops that pass over rows once: add + RMSNorm, rope + KV write, SiLU * up, and whole-block copies. All
// are bound by memory; sets of buffers are rotated so that together they are far larger than the cache.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "benchmarks/cuda/step_bench.h"

namespace quire::bench {
namespace {

constexpr int64_t kRotatedBytes = int64_t{512} << 20;
constexpr int kMaxSets = 32;

struct Widths {
  int64_t hidden = 4096, intermediate = 14336;
  int32_t q_heads = 32, kv_heads = 8, head_dim = 128;
};

class RowOps {
 public:
  RowOps(Rig& rig, Report& report, bool tiny) : rig_(rig), report_(report), tiny_(tiny) {
    if (tiny) w_ = {.hidden = 128, .intermediate = 96, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  }

  void run() {
    for (const int64_t rows : tiny_ ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 64, 256, 8192}) {
      norm(rows);
      rope(rows);
      silu(rows);
    }
    block_copies();
  }

 private:
  int sets_for(int64_t bytes) const {
    return tiny_ ? 2 : static_cast<int>(std::clamp<int64_t>(kRotatedBytes / bytes + 1, 3, kMaxSets));
  }
  std::vector<DeviceBuffer> random_sets(int count, int64_t elements, uint32_t seed, const char* what) {
    std::vector<DeviceBuffer> sets;
    for (int i = 0; i < count; ++i)
      sets.push_back(rig_.random(elements, seed + static_cast<uint32_t>(i) * 977, what));
    return sets;
  }
  std::vector<double> row_of(const DeviceBuffer& b, int64_t row, int64_t width) {
    return as_doubles(rig_.download(b.as<uint16_t>() + row * width, static_cast<size_t>(width)));
  }

  void norm(int64_t rows) {
    const int64_t elements = rows * w_.hidden, bytes = 4 * elements * 2;
    const int sets = sets_for(bytes);
    const auto residual = random_sets(sets, elements, 1, "residual"),
               delta = random_sets(sets, elements, 2, "delta"), out = random_sets(sets, elements, 3, "norm");
    const std::vector<float> weight(static_cast<size_t>(w_.hidden), 0.75f);
    const DeviceBuffer weights = rig_.upload(weight, "norm weights");
    const auto call = [&](int i) {
      const auto s = static_cast<size_t>(i);
      rig_.kernels().add_rms_norm({.residual = residual[s].data(),
                                   .delta = delta[s].data(),
                                   .weight = weights.as<float>(),
                                   .out = out[s].data(),
                                   .rows = rows,
                                   .hidden = w_.hidden});
    };
    // The sum of before in float64; the residual is rounded when it is stored, so the norm may be of either.
    std::vector<double> wanted = row_of(residual[0], rows - 1, w_.hidden),
                        added = row_of(delta[0], rows - 1, w_.hidden);
    double squares = 0;
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += added[i], squares += wanted[i] * wanted[i];
    for (double& x : wanted) x *= 0.75 / std::sqrt(squares / static_cast<double>(w_.hidden) + 1e-5);
    call(0);
    Line line{.part = "rows", .name = fmt::format("add + RMSNorm {}x{}", rows, w_.hidden)};
    line.error = relative_error(row_of(out[0], rows - 1, w_.hidden), wanted);
    line.time = rig_.time(sets, call);
    line.bytes = static_cast<double>(bytes + w_.hidden * 4);
    report_.add(line);
  }

  void silu(int64_t rows) {
    const int64_t width = w_.intermediate, bytes = 3 * rows * width * 2;
    const int sets = sets_for(bytes);
    const auto gate_up = random_sets(sets, 2 * rows * width, 4, "gate and up"),
               out = random_sets(sets, rows * width, 5, "SiLU");
    const auto call = [&](int i) {
      const auto s = static_cast<size_t>(i);
      rig_.kernels().silu_mul(
          {.gate_up = gate_up[s].data(), .out = out[s].data(), .rows = rows, .width = width});
    };
    call(0);
    const std::vector<double> in = row_of(gate_up[0], rows - 1, 2 * width);
    std::vector<double> wanted;
    for (int64_t i = 0; i < width; ++i) {
      const double gate = in[static_cast<size_t>(i)], up = in[static_cast<size_t>(width + i)];
      wanted.push_back(gate / (1 + std::exp(-gate)) * up);
    }
    Line line{.part = "rows", .name = fmt::format("SiLU * up {}x{}", rows, width)};
    line.error = relative_error(row_of(out[0], rows - 1, width), wanted);
    line.time = rig_.time(sets, call);
    line.bytes = static_cast<double>(bytes);
    report_.add(line);
  }

  KvLayout layout() const {
    return {.dtype = DType::kBF16,
            .num_layers = 1,
            .num_kv_heads = w_.kv_heads,
            .head_dim = w_.head_dim,
            .block_tokens = 16};
  }

  // Positions from the 97th on take the angles of those before: only the cost is in question.
  DeviceBuffer rope_table(int64_t rows) {
    std::vector<float> table;
    for (int64_t position = 0; position < rows; ++position)
      for (int32_t i = 0; i < w_.head_dim; ++i) {
        const double angle = static_cast<double>(position % 97) *
                             std::pow(10000.0, -2.0 * (i % (w_.head_dim / 2)) / w_.head_dim);
        table.push_back(static_cast<float>(i < w_.head_dim / 2 ? std::cos(angle) : std::sin(angle)));
      }
    return rig_.upload(table, "rotary table");
  }

  void rope(int64_t rows) {
    const int64_t heads = w_.q_heads + 2 * w_.kv_heads, row_elements = heads * w_.head_dim,
                  elements = rows * row_elements;
    // qkv is read, q written in place, k and v written to their blocks.
    const int64_t bytes = elements * 2 * 2;
    const int sets = sets_for(bytes);
    const auto qkv = random_sets(sets, elements, 6, "qkv");
    const DeviceBuffer arena = rig_.random((rows / 16 + 1) * layout().block_bytes() / 2, 7, "blocks"),
                       table = rope_table(rows);
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), 0);
    std::vector<int64_t> slots(positions.begin(), positions.end());
    const DeviceBuffer positions_there = rig_.upload(positions, "positions"),
                       slots_there = rig_.upload(slots, "slots");
    const auto call = [&](int i) {
      rig_.kernels().rope_kv_write({.qkv = qkv[static_cast<size_t>(i)].data(),
                                    .positions = positions_there.as<int32_t>(),
                                    .slots = slots_there.as<int64_t>(),
                                    .cos_sin = table.as<float>(),
                                    .rotary_dim = w_.head_dim,
                                    .arena = arena.as<char>(),
                                    .layout = layout(),
                                    .num_q_heads = w_.q_heads,
                                    .num_kv_heads = w_.kv_heads,
                                    .head_dim = w_.head_dim,
                                    .rows = rows});
    };
    const std::vector<double> before = row_of(qkv[0], rows - 1, row_elements);
    call(0);
    Line line{.part = "rows", .name = fmt::format("rope + KV write {}x{}", rows, row_elements)};
    line.error = relative_error(first_q_and_k(qkv[0], arena, rows), rotated_q_and_k(before, rows - 1));
    line.time = rig_.time(sets, call);
    line.bytes = static_cast<double>(bytes);
    report_.add(line);
  }

  // The last row's first query head as it is now, and its first key head in its block.
  std::vector<double> first_q_and_k(const DeviceBuffer& qkv, const DeviceBuffer& arena, int64_t rows) {
    const int64_t slot = rows - 1, row_elements = (w_.q_heads + 2 * w_.kv_heads) * w_.head_dim;
    const auto head = static_cast<size_t>(w_.head_dim);
    std::vector<double> got = as_doubles(rig_.download(qkv.as<uint16_t>() + slot * row_elements, head));
    const char* key = arena.as<char>() + slot / 16 * layout().block_bytes() + slot % 16 * w_.head_dim * 2;
    for (const double x : as_doubles(rig_.download(reinterpret_cast<const uint16_t*>(key), head)))
      got.push_back(x);
    return got;
  }
  std::vector<double> rotated_q_and_k(const std::vector<double>& row, int64_t position) {
    std::vector<double> wanted;
    const int half = w_.head_dim / 2;
    for (const int64_t first : {int64_t{0}, int64_t{w_.q_heads} * w_.head_dim})
      for (int i = 0; i < w_.head_dim; ++i) {
        const double angle =
            static_cast<double>(position % 97) * std::pow(10000.0, -2.0 * (i % half) / w_.head_dim);
        const double a = row[static_cast<size_t>(first + i % half)],
                     b = row[static_cast<size_t>(first + half + i % half)];
        wanted.push_back(i < half ? a * std::cos(angle) - b * std::sin(angle)
                                  : b * std::cos(angle) + a * std::sin(angle));
      }
    return wanted;
  }

  // Copy-on-write of 64 blocks of Llama-3.1-8B (2 MiB each) at once.
  void block_copies() {
    const int64_t block_bytes = tiny_ ? 4096 : 2 << 20, count = tiny_ ? 3 : 64;
    const DeviceBuffer arena = rig_.random(2 * count * block_bytes / 2, 8, "blocks");
    std::vector<int32_t> pairs;
    for (int32_t i = 0; i < count; ++i)
      pairs.insert(pairs.end(), {i, static_cast<int32_t>(2 * count - 1 - i)});
    const DeviceBuffer pairs_there = rig_.upload(pairs, "pairs");
    Line line{.part = "rows", .name = fmt::format("copies of {} blocks of {} KiB", count, block_bytes >> 10)};
    line.time = rig_.time(3, [&](int) {
      rig_.kernels().copy_blocks({.arena = arena.as<char>(),
                                  .block_bytes = block_bytes,
                                  .pairs = pairs_there.as<int32_t>(),
                                  .count = count});
    });
    line.bytes = 2.0 * static_cast<double>(count * block_bytes);
    const auto all = static_cast<size_t>(block_bytes / 2);
    line.error = rig_.download(arena.as<uint16_t>(), all) ==
                         rig_.download(arena.as<uint16_t>() + (2 * count - 1) * block_bytes / 2, all)
                     ? 0
                     : 1;
    report_.add(line);
  }

  Rig& rig_;
  Report& report_;
  bool tiny_;
  Widths w_;
};

}  // namespace

void bench_rows(Rig& rig, Report& report, bool tiny) {
  RowOps(rig, report, tiny).run();
}

}  // namespace quire::bench
