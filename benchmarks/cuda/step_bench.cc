// Times the ops of a step beside attention, and the card's ceilings.
#include "benchmarks/cuda/step_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "src/base/random.h"

namespace quire::bench {

std::vector<uint16_t> random_host(int64_t count, uint64_t seed, float scale) {
  Random random(seed);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); i += 4) {
    const uint64_t bits = random.next();
    for (size_t k = 0; k < 4 && i + k < values.size(); ++k) {
      const auto level = static_cast<float>((bits >> (16 * k)) & 0xffffu);
      values[i + k] = f32_to_bf16((level - 32768.0f) * scale / 32768.0f);
    }
  }
  return values;
}

std::vector<double> as_doubles(const std::vector<uint16_t>& bf16) {
  std::vector<double> values;
  for (const uint16_t x : bf16) values.push_back(bf16_to_f32(x));
  return values;
}

namespace {

struct Options {
  RigOptions rig;
  std::vector<std::string> parts = {"matmul", "rows", "sampling"};
  std::string json;
  bool tiny = false;
  std::vector<std::string> only;
  int placements = 12;

  bool wants(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
};

bool run(const Options& o) {
  Rig rig(o.rig);
  // Over 8 GiB the same programs read 1626 GB/s of an H100 in a run where they read 3103 over 2 GiB: not understood.
  rig.measure_memory_ceilings(o.tiny ? 1 << 20 : int64_t{2} << 30);
  Report report(rig, o.json);
  bench_matmul_ceiling(rig, report, o.tiny);
  if (o.wants("matmul")) bench_matmul(rig, report, o.tiny);
  if (o.wants("layer")) bench_layer(rig, report, o.tiny, o.only);
  if (o.wants("placement")) bench_placement(rig, report, o.tiny, o.placements);
  if (o.wants("rows")) bench_rows(rig, report, o.tiny);
  if (o.wants("sampling")) bench_sampling(rig, report, o.tiny);
  return report.finish();
}

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  quire::bench::Options o;
  CLI::App app{
      "Times the products, norms, rope, SiLU and sampling of a step on a card; checks results in float64."};
  app.add_option("--part", o.parts, "matmul,layer,rows,sampling,placement; the ceilings are always measured")
      ->delimiter(',')
      ->check(CLI::IsMember({"matmul", "layer", "rows", "sampling", "placement"}))
      ->capture_default_str();
  app.add_option("--device", o.rig.device, "cuda | cuda-host (the host shim)")->capture_default_str();
  app.add_option("--rounds", o.rig.rounds, "timed replays, after three that warm up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--json", o.json, "file for the figures");
  app.add_option("--only", o.only, "layer: the lines of these names, such as 'Llama-3.1-8B at 64 rows'")
      ->delimiter(',');
  app.add_option("--placements", o.placements, "placement: copies of the weights, 2.8 GB each")
      ->check(CLI::Range(1, 24))
      ->capture_default_str();
  app.add_flag("--tiny", o.tiny, "small shapes, to run every line where a card is emulated");
  CLI11_PARSE(app, argc, argv);
  return quire::bench::run(o) ? 0 : 1;
}
