// Attention in the shapes of Llama-3.1-8B (32 query heads, 8 KV heads, head size 128, bf16, blocks of 16):
// time, rate, and the share of the bare read of the same blocks (decode) or of the card's matrix product
// (prefill). Layers are rotated, so no layer's K and V is in the cache; graphs are replayed; medians. Each
// shape's output is checked in float64; a failed check makes the exit status 1.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <optional>

#include "benchmarks/cuda/attention_problem.h"

namespace quire::bench {
namespace {

struct Options {
  RigOptions rig;
  std::vector<std::string> parts = {"decode", "prefill", "cascade", "sides"};
  std::vector<int> q_heads = {8, 32, 64}, head_dims = {128, 64};
  int64_t pool_mib = 48 * 1024;
  std::vector<std::string> only, shared;
  double matmul_tflops = 0;
  int cascade_layers = 4;
  std::string json;
  bool tiny = false;

  // Lines of prefill and cascade by their names; all where none is named.
  bool wants_line(const std::string& name) const {
    return only.empty() || std::find(only.begin(), only.end(), name) != only.end();
  }
  bool wants(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
};

struct Batch {
  int sequences, length;
};

// The shapes that are timed; a few small ones, for machines that only emulate a card.
std::vector<Batch> decode_batches(bool tiny) {
  if (tiny) return {{1, 70}, {3, 33}};
  return {{1, 1024}, {1, 4096}, {1, 32768}, {16, 1024}, {16, 4096}, {64, 1024}, {64, 4096}, {256, 1024}};
}
std::vector<Batch> prefill_batches(bool tiny) {
  if (tiny) return {{1, 50}, {2, 17}};
  return {{1, 512}, {16, 512}, {8, 1024}, {4, 2048}, {1, 2048}, {1, 8192}, {1, 32768}};
}
struct SharedBatch {
  int sequences, prefix, tail;
};
// As a line's name has it: 64x(4096+96).
std::optional<SharedBatch> parse_shared_batch(const std::string& text) {
  SharedBatch s{};
  int end = 0;
  const int read = std::sscanf(text.c_str(), "%dx(%d+%d)%n", &s.sequences, &s.prefix, &s.tail, &end);
  const bool whole = read == 3 && text.c_str()[end] == '\0';
  if (!whole || s.sequences < 2 || s.prefix < 16 || s.prefix % 16 != 0 || s.tail < 1) return {};
  return s;
}
std::vector<SharedBatch> shared_batches(const std::vector<std::string>& asked, bool tiny) {
  std::vector<SharedBatch> batches;
  for (const std::string& text : asked) batches.push_back(*parse_shared_batch(text));
  if (!batches.empty()) return batches;
  if (tiny) return {{3, 32, 20}};
  return {{256, 32768, 256}, {64, 4096, 64}, {256, 1024, 1024}, {16, 8192, 512}, {4, 2048, 128}};
}

AttentionModel model_of(const Options& o, int q_heads, int head_dim) {
  AttentionModel m{.q_heads = q_heads, .head_dim = head_dim};
  if (o.tiny)
    m = {.q_heads = std::max(2, q_heads / 8),
         .kv_heads = std::min(2, q_heads / 8),
         .head_dim = 64,
         .layers = 2};
  m.kv_heads = std::max(1, std::min(m.kv_heads, m.q_heads));
  return m;
}

ProblemShape equal_lists(int sequences, int length, int rows, int shared_slots = 0) {
  return {.lengths = std::vector<int>(static_cast<size_t>(sequences), length),
          .rows = std::vector<int>(static_cast<size_t>(sequences), rows),
          .shared_slots = shared_slots};
}

class AttentionBench {
 public:
  explicit AttentionBench(const Options& o)
      : o_(o),
        rig_(o.rig),
        memory_(rig_.random(o.pool_mib << 19, 1, "KV pool")),
        pool_{.data = memory_.as<char>(), .bytes = memory_.bytes()},
        report_(prepared(), o.json) {}

  bool run() {
    for (const int q_heads : o_.q_heads)
      if (o_.wants("decode")) decode(model_of(o_, q_heads, 128));
    for (const int head_dim : o_.head_dims)
      if (o_.wants("prefill")) prefill(model_of(o_, 32, head_dim));
    if (o_.wants("cascade")) cascade(model_of(o_, 32, 128));
    if (o_.wants("sides")) side_outputs(model_of(o_, 32, 128));
    if (o_.wants("tune")) tune(model_of(o_, 32, 128));
    return report_.finish();
  }

 private:
  Rig& prepared() {
    rig_.measure_memory_ceilings(o_.tiny ? 1 << 20 : int64_t{2} << 30);
    rig_.set_matmul_ceiling(o_.matmul_tflops * 1e12);
    return rig_;
  }

  // Poisoned first: a line is not to be judged by what the one before it left.
  Timing time_calls(const AttentionProblem& problem, int layers, const std::function<void(int)>& call) {
    problem.poison_results();
    return rig_.time(layers, call);
  }
  // With the plan that a step makes once.
  Timing time_attention(const AttentionProblem& problem, int layers, const AttentionChoice& choice = {}) {
    return time_calls(problem, layers, [&](int layer) {
      if (layer == 0) problem.make_plan(problem.params(0), choice);
      rig_.ops().attention(problem.params(layer), choice);
    });
  }

  void decode(const AttentionModel& model) {
    check_ragged(model);
    for (const Batch b : decode_batches(o_.tiny)) {
      const AttentionProblem problem(rig_, pool_, model, equal_lists(b.sequences, b.length, 1));
      if (!problem.fits()) continue;
      Line line{.part = "decode",
                .name = fmt::format("{}x{} {}/{}", b.sequences, b.length, model.q_heads, model.kv_heads)};
      line.roof_us = problem.bare_read_us();
      line.time = time_attention(problem, model.layers);
      line.bytes = problem.kv_bytes();
      line.error = problem.worst_error(model.layers - 1);
      line.more = {{"roof", "bare read"},
                   {"sequences", b.sequences},
                   {"length", b.length},
                   {"q_heads", model.q_heads}};
      report_.add(line);
      plan(problem, line.name);
    }
  }

  // What the plan takes, once a step: part of every line in its share.
  void plan(const AttentionProblem& problem, const std::string& of) {
    Line line{.part = "decode", .name = "plan of " + of};
    line.time = rig_.time(8, [&](int) { rig_.ops().plan_attention(problem.params(0), {}); });
    report_.add(line);
  }

  // Lists of lengths that nobody would choose, short ones together; and those of a batch in service.
  void check_ragged(const AttentionModel& model) {
    std::vector<int> odd, served;
    for (int i = 0; i < (o_.tiny ? 5 : 61); ++i) odd.push_back(1 + i * i * 7 % (o_.tiny ? 90 : 3000));
    for (int i = 0; i < (o_.tiny ? 4 : 64); ++i) served.push_back(100 + i * 1237 % 1800 / (o_.tiny ? 30 : 1));
    ragged(model, "1 to 3000", odd);
    ragged(model, "100 to 1900", served);
    if (!o_.wants("split")) return;
    for (const int cost : {0, 4, 8, 12, 16})
      for (const bool split_first : {false, true}) {
        const AttentionChoice choice{.unit_cost = cost, .split_first = split_first};
        const std::string name = fmt::format("cost {}{}, ", cost, split_first ? " split first" : "");
        ragged(model, name + "1 to 3000", odd, choice);
        ragged(model, name + "100 to 1900", served, choice);
      }
  }

  void ragged(const AttentionModel& model, const std::string& lengths, const std::vector<int>& lists,
              const AttentionChoice& choice = {}) {
    const ProblemShape shape{.lengths = lists, .rows = std::vector<int>(lists.size(), 1), .shared_slots = 0};
    const AttentionProblem problem(rig_, pool_, model, shape);
    if (!problem.fits()) return;
    Line line{
        .part = "decode",
        .name = fmt::format("{} lists of {} {}/{}", lists.size(), lengths, model.q_heads, model.kv_heads)};
    line.time = time_attention(problem, model.layers, choice);
    line.bytes = problem.kv_bytes();
    line.error = problem.worst_error(model.layers - 1);
    report_.add(line);
  }

  void prefill(const AttentionModel& model) {
    for (const Batch b : prefill_batches(o_.tiny))
      prefill_problem(model, fmt::format("{}x{}", b.sequences, b.length),
                      equal_lists(b.sequences, b.length, b.length));
    const int scale = o_.tiny ? 64 : 1;
    prefill_problem(model, fmt::format("chunk {} at {}", 2048 / scale, 16384 / scale),
                    equal_lists(1, 16384 / scale, 2048 / scale));
    prefill_problem(model, fmt::format("chunk {} at {}", 512 / scale, 8192 / scale),
                    equal_lists(1, 8192 / scale, 512 / scale));
    ProblemShape mixed = equal_lists(64 / scale, 1024 / scale, 1);
    mixed.lengths.push_back(2048 / scale);
    mixed.rows.push_back(2048 / scale);
    prefill_problem(model, fmt::format("{} beside {} decodes", 2048 / scale, 64 / scale), mixed);
  }

  // On Hopper's kernel where the card has it, and on the portable one.
  void prefill_problem(const AttentionModel& model, const std::string& name, const ProblemShape& shape) {
    const AttentionProblem problem(rig_, pool_, model, shape);
    if (!problem.fits()) return;
    const int own = rig_.device().facts().kernel_capability;
    const int layers = std::min(model.layers, problem.operations() > 1e12 ? 2 : 8);
    std::vector<int> capabilities{own};
    if (own == 90) capabilities.push_back(80);
    for (const int capability : capabilities) {
      Line line{.part = "prefill",
                .name = fmt::format("{} hd{}{}", name, model.head_dim, capability == own ? "" : " mma.sync")};
      if (!o_.wants_line(line.name)) continue;
      line.time = time_attention(problem, layers, {.compute_capability = capability});
      line.operations = problem.operations();
      line.error = problem.worst_error(layers - 1);
      line.more = {{"kernel", capability == 90 ? "wgmma" : "mma.sync"}, {"head_dim", model.head_dim}};
      report_.add(line);
    }
  }

  void cascade(const AttentionModel& model) {
    for (const SharedBatch s : shared_batches(o_.shared, o_.tiny)) {
      const AttentionProblem problem(rig_, pool_, model,
                                     equal_lists(s.sequences, s.prefix + s.tail, 1, s.prefix));
      if (!problem.fits()) continue;
      const int layers = std::min(o_.cascade_layers, model.layers);
      Line alone{.part = "cascade",
                 .name = fmt::format("{}x({}+{}) one by one", s.sequences, s.prefix, s.tail)};
      if (!o_.wants_line(alone.name)) continue;
      alone.time = time_attention(problem, layers);
      alone.error = problem.worst_error(layers - 1);
      report_.add(alone);
      Line line{.part = "cascade", .name = fmt::format("{}x({}+{})", s.sequences, s.prefix, s.tail)};
      line.time = time_calls(problem, layers, [&](int layer) {
        AttentionParams p = problem.params(layer);
        problem.share(p, rig_.ops());
        if (layer == 0) problem.make_plan(p, {});
        rig_.ops().attention(p, {});
      });
      line.error = problem.worst_error(layers - 1);
      line.more = {{"speedup", alone.time.us / line.time.us}};
      report_.add(line);
    }
  }

  // What each side output costs: the same call without and with it.
  void side_outputs(const AttentionModel& model) {
    side_outputs_of(model, o_.tiny ? equal_lists(2, 40, 1) : equal_lists(16, 1024, 1), "decode");
    side_outputs_of(model, o_.tiny ? equal_lists(1, 40, 40) : equal_lists(1, 2048, 2048), "prefill");
  }

  void side_outputs_of(const AttentionModel& model, const ProblemShape& shape, const char* kind) {
    const AttentionProblem problem(rig_, pool_, model, shape);
    if (!problem.fits()) return;
    const AttentionParams p = problem.params(0);
    const int64_t heads = model.q_heads, by_slot = p.num_sequences * heads * p.max_length * 4;
    const DeviceBuffer lse = rig_.buffer(p.rows * heads * 4, "LSE"),
                       logits = rig_.buffer(by_slot, "row logits"),
                       sums = rig_.buffer(by_slot, "column sums");
    const auto timed = [&](const char* name, const std::function<void(AttentionParams&)>& ask) {
      const int layers = std::min(8, model.layers);
      Line line{.part = "sides",
                .name = fmt::format("{} {}x{}, {}", kind, p.num_sequences, p.max_length, name)};
      line.time = time_calls(problem, layers, [&](int layer) {
        AttentionParams call = problem.params(layer);
        ask(call);
        if (layer == 0) problem.make_plan(call, {});
        rig_.ops().attention(call, {});
      });
      line.error = problem.worst_error(layers - 1);
      report_.add(line);
    };
    timed("none", [](AttentionParams&) {});
    timed("LSE", [&](AttentionParams& a) { a.lse = lse.as<float>(); });
    timed("row logits", [&](AttentionParams& a) {
      a.row_logits = logits.as<float>();
      a.row_logits_stride = p.max_length;
    });
    timed("column sums", [&](AttentionParams& a) {
      a.column_sums = sums.as<float>();
      a.column_sums_stride = p.max_length;
    });
  }

  void tune(const AttentionModel& model) {
    for (const Batch b : decode_batches(o_.tiny)) {
      const AttentionProblem problem(rig_, pool_, model, equal_lists(b.sequences, b.length, 1));
      if (!problem.fits()) continue;
      const bool long_lists = b.sequences * b.length > 16384;  // there every block has more than any least
      for (const AttentionChoice& c : choices(long_lists)) {
        Line line{.part = "tune"};
        line.name = fmt::format("{}x{} w{} s{} m{} b{}{}", b.sequences, b.length, c.warps, c.stages,
                                c.min_tiles, c.blocks_per_multiprocessor, c.aligned ? " aligned" : "");
        line.time = time_attention(problem, model.layers, c);
        line.bytes = problem.kv_bytes();
        report_.add(line);
      }
    }
  }

  std::vector<AttentionChoice> choices(bool long_lists) const {
    std::vector<AttentionChoice> all;
    for (const int warps : {4, 8})
      for (const int stages : {2, 3, 4})
        for (const int min_tiles : {4, 8, 16, 32})
          for (const int blocks : {1, 2})
            for (const bool aligned : {false, true})
              if (min_tiles == 8 || !long_lists)
                all.push_back({.warps = warps,
                               .stages = stages,
                               .min_tiles = min_tiles,
                               .blocks_per_multiprocessor = blocks,
                               .aligned = aligned});
    if (o_.tiny) all.resize(2);
    return all;
  }

  Options o_;
  Rig rig_;
  DeviceBuffer memory_;
  Pool pool_;
  Report report_;
};

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  quire::bench::Options o;
  double pool_gib = 48;
  CLI::App app{
      "Times attention on a card, beside the bare read of the same blocks; checks results in float64."};
  app.add_option("--part", o.parts,
                 "decode,prefill,cascade,sides,tune; split: decode's ways to share out lists")
      ->delimiter(',')
      ->check(CLI::IsMember({"decode", "prefill", "cascade", "sides", "tune", "split"}))
      ->capture_default_str();
  app.add_option("--device", o.rig.device, "cuda | cuda-host (the host shim)")->capture_default_str();
  app.add_option("--pool-gib", pool_gib, "memory of random K and V; shapes that do not fit are left out")
      ->capture_default_str();
  app.add_option("--q-heads", o.q_heads, "query heads of the decode shapes; 8 KV heads")
      ->delimiter(',')
      ->check(CLI::IsMember({8, 16, 32, 64}))
      ->capture_default_str();
  app.add_option("--head-dims", o.head_dims, "head sizes of the prefill shapes")
      ->delimiter(',')
      ->check(CLI::IsMember({64, 80, 96, 128, 256}))
      ->capture_default_str();
  app.add_option("--rounds", o.rig.rounds, "timed replays, after three that warm up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--matmul-tflops", o.matmul_tflops, "the card's matrix product, for prefill's share")
      ->capture_default_str();
  app.add_option("--only", o.only,
                 "prefill and cascade: the lines of these names, such as '1x8192 hd128' and '256x(32768+256) "
                 "one by one'")
      ->delimiter(',');
  app.add_option("--shared", o.shared,
                 "cascade: other shapes than its own, as SEQUENCESx(PREFIX+TAIL); PREFIX a multiple of 16")
      ->delimiter(',')
      ->check([](const std::string& text) {
        return quire::bench::parse_shared_batch(text)
                   ? std::string()
                   : "`" + text + "`; SEQUENCESx(PREFIX+TAIL) is wanted, such as 64x(4096+96)";
      });
  app.add_option("--cascade-layers", o.cascade_layers,
                 "cascade: layers in turn; their prefixes together should be several times L2")
      ->check(CLI::Range(1, 32))
      ->capture_default_str();
  app.add_option("--json", o.json, "file for the figures");
  app.add_flag("--tiny", o.tiny, "small shapes, to run every line where a card is emulated");
  CLI11_PARSE(app, argc, argv);
  o.pool_mib = o.tiny ? 4 : static_cast<int64_t>(pool_gib * 1024);
  return quire::bench::AttentionBench(o).run() ? 0 : 1;
}
