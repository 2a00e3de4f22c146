// Paged attention of the CPU back end. Method: cpu_test_rig.h; every slot of the pool that belongs to no list
// is NaN. Tolerance: a logit is a float32 sum of head_dim products (4 sqrt(d) roundings of order 1), its
// weight errs by as much, and the output is a mean of values below 1: 2^-24 * (8 sqrt(d) + 16) absolute
// covers logits up to 8 and 1,500 slots; larger logits (q_range) err by as much more. Where weights are rounded
// to bf16 (tile_strip.h) each errs by at most 2^-8 of itself and half of that at the mean, in either direction:
// 2^-9 for the output, which may err by 2^-8 of itself when it is rounded. Nothing else is allowed more.
#include <algorithm>
#include <numeric>

#include "tests/kernel/cpu_test_rig.h"

namespace quire {
namespace {

struct List {
  int32_t rows, length;
};

struct AttentionCase {
  std::vector<List> lists;
  int32_t dim = 64, group = 2, kv_heads = 2, block_tokens = 16, window = 0;
  DType kv = DType::kBF16;
  float soft_cap = 0;
  bool sinks = false, q_sink = false, own_lists = false, side_outputs = false;
  std::vector<int32_t> windows = {};  // of each list's own, 0 = none; empty: not given
  float q_range = 2;                  // logits grow with it
};

// Inputs of one case; lists per head are one slot shorter from head to head.
class Problem {
 public:
  Problem(const AttentionCase& c, DType act, uint64_t seed) : c_(c), random_(seed) {
    layout_ = {.dtype = c.kv,
               .num_layers = 2,
               .num_kv_heads = c.own_lists ? 1 : c.kv_heads,
               .head_dim = c.dim,
               .block_tokens = c.block_tokens};
    query_start_ = {0};
    for (const List& list : c.lists) {
      query_start_.push_back(query_start_.back() + list.rows);
      longest_ = std::max(longest_, list.length);
    }
    lay_out_lists();
    q_ = Tensor::random(random_, act, rows() * c.group * c.kv_heads * c.dim, c.q_range);
    q_sink_ = Tensor::random(random_, act, rows() * c.group * c.kv_heads * c.dim, 2);
    sinks_ = Tensor::random(random_, DType::kF32, c.group * c.kv_heads, 3);
    sink_slots_.assign(c.lists.size(), 5);
  }

  int64_t rows() const { return query_start_.back(); }
  int64_t heads() const { return c_.group * c_.kv_heads; }
  const AttentionCase& attention_case() const { return c_; }
  Tensor& q() { return q_; }

  AttentionParams params() {
    AttentionParams p{.q = q_.data(),
                      .q_stride = heads() * c_.dim,
                      .arena = arena_.bytes() + layout_.layer_stride(),
                      .layout = layout_,
                      .num_q_heads = static_cast<int32_t>(heads()),
                      .num_kv_heads = c_.kv_heads,
                      .head_dim = c_.dim,
                      .scale = 1 / std::sqrt(static_cast<float>(c_.dim)),
                      .soft_cap = c_.soft_cap,
                      .window = c_.window,
                      .num_sequences = static_cast<int32_t>(c_.lists.size()),
                      .rows = rows(),
                      .max_length = longest_,
                      .query_start = query_start_.data(),
                      .lengths = lengths_.data(),
                      .block_table = table_.data(),
                      .table_stride = blocks_ * lists_per_sequence(),
                      .head_table_stride = c_.own_lists ? blocks_ : 0,
                      .length_stride = lists_per_sequence(),
                      .head_length_stride = c_.own_lists ? 1 : 0};
    for (const List& list : c_.lists) p.max_rows = std::max(p.max_rows, list.rows);
    if (c_.sinks) p.sinks = static_cast<const float*>(sinks_.data());
    if (c_.q_sink) p.q_sink = q_sink_.data(), p.sink_slots = sink_slots_.data();
    if (!c_.windows.empty()) p.windows = c_.windows.data();
    return p;
  }

  void make_f32() { q_ = q_.as_f32(), q_sink_ = q_sink_.as_f32(); }

 private:
  int64_t lists_per_sequence() const { return c_.own_lists ? c_.kv_heads : 1; }

  void lay_out_lists() {
    blocks_ = longest_ / c_.block_tokens + 1;
    const int64_t lists = static_cast<int64_t>(c_.lists.size()) * lists_per_sequence();
    table_.resize(static_cast<size_t>(lists * blocks_));
    std::iota(table_.begin(), table_.end(), 0);
    for (size_t i = table_.size(); i > 1; --i) std::swap(table_[i - 1], table_[random_.below(i)]);
    arena_ = Tensor::poisoned(c_.kv,
                              static_cast<int64_t>(table_.size()) * layout_.block_bytes() / bytes_of(c_.kv));
    for (int64_t list = 0; list < lists; ++list) {
      const List& shape = c_.lists[static_cast<size_t>(list / lists_per_sequence())];
      const int32_t shorter = static_cast<int32_t>(list % lists_per_sequence());
      lengths_.push_back(std::max(shape.rows, shape.length - shorter));
      for (int64_t slot = 0; slot < lengths_.back(); ++slot)
        fill_slot(table_[static_cast<size_t>(list * blocks_ + slot / c_.block_tokens)],
                  slot % c_.block_tokens);
    }
  }

  void fill_slot(int64_t block, int64_t offset) {
    const int64_t e = bytes_of(c_.kv);
    for (int64_t tile = 0; tile < 2 * layout_.num_kv_heads; ++tile) {
      const int64_t first = (block * layout_.block_bytes() + layout_.layer_stride() +
                             tile * layout_.head_stride() + offset * layout_.token_bytes()) /
                            e;
      for (int64_t i = 0; i < c_.dim; ++i)
        arena_.set(static_cast<size_t>(first + i), static_cast<float>(random_.uniform() * 2 - 1));
    }
  }

  AttentionCase c_;
  Random random_;
  KvLayout layout_;
  int32_t longest_ = 0;
  int64_t blocks_ = 0;
  std::vector<int32_t> query_start_, lengths_, table_, sink_slots_;
  Tensor q_, q_sink_, sinks_, arena_;
};

struct AttentionRun {
  Tensor out, lse, row_logits, column_sums, partials;
};

constexpr int32_t kSegmentSlots = 50;

AttentionRun attend(Kernels& kernels, Problem& problem) {
  AttentionParams p = problem.params();
  const int64_t heads = problem.heads(), stride = p.max_length + 3;
  AttentionRun run{.out =
                       Tensor::poisoned(kernels.options().activations, problem.rows() * heads * p.head_dim)};
  p.out = run.out.data();
  if (problem.attention_case().side_outputs) {
    run.lse = Tensor::poisoned(DType::kF32, problem.rows() * heads);
    run.row_logits =
        Tensor(DType::kF32, std::vector<float>(static_cast<size_t>(p.num_sequences * heads * stride), -7));
    run.column_sums =
        Tensor(DType::kF32, std::vector<float>(static_cast<size_t>(p.num_sequences * heads * stride), 0.5f));
    p.segment_slots = kSegmentSlots, p.num_segments = p.max_length / kSegmentSlots + 1;
    run.partials = Tensor::poisoned(DType::kF32, problem.rows() * heads * p.num_segments * (p.head_dim + 2));
    p.partials = static_cast<float*>(run.partials.data());
    p.lse = static_cast<float*>(run.lse.data());
    p.row_logits = static_cast<float*>(run.row_logits.data()), p.row_logits_stride = stride;
    p.column_sums = static_cast<float*>(run.column_sums.data()), p.column_sums_stride = stride;
  }
  EXPECT_TRUE(kernels
                  .reserve({.max_rows = p.rows,
                            .max_sequences = p.num_sequences,
                            .max_q_heads = p.num_q_heads,
                            .max_head_dim = p.head_dim,
                            .max_length = p.max_length})
                  .has_value());
  kernels.attention(p);
  return run;
}

void expect_same(const AttentionRun& a, const AttentionRun& b, const std::string& what) {
  EXPECT_EQ(a.out, b.out) << what;
  EXPECT_EQ(a.lse, b.lse) << what;
  EXPECT_EQ(a.row_logits, b.row_logits) << what;
  EXPECT_EQ(a.partials, b.partials) << what;
  EXPECT_EQ(a.column_sums, b.column_sums) << what;
}

bool rounds_weights(const Variant& v, const AttentionCase& c) {
  return v.isa == CpuIsa::kAvx512Bf16 && v.act == DType::kBF16 && c.kv == DType::kBF16 && c.dim % 32 == 0;
}

void check_case(const AttentionCase& c, const std::string& name,
                std::vector<Variant> variants = all_variants()) {
  for (const DType act : {DType::kF32, DType::kBF16}) {
    Problem problem(c, act, 11), exact(c, act, 11);
    exact.make_f32();
    const AttentionRun wanted = attend(reference(), exact);
    for (const Variant& v : variants) {
      if (v.act != act) continue;
      const std::string what = name + ", " + to_string(v);
      const auto kernels = open_kernels(v);
      const AttentionRun got = attend(*kernels, problem);
      const double roundings = 0x1p-24 * (8 * std::sqrt(static_cast<double>(c.dim)) + 16) * c.q_range / 2;
      const double of_weights = rounds_weights(v, c) ? 0x1p-9 : 0;
      expect_near(got.out, wanted.out, roundings + of_weights, what);
      expect_near(got.lse, wanted.lse, 4 * roundings, what + " lse");
      expect_near(got.row_logits, wanted.row_logits, 4 * roundings, what + " row_logits");
      expect_near(got.partials, wanted.partials, kSegmentSlots * 4 * roundings, what + " partials");
      expect_near(got.column_sums, wanted.column_sums, roundings * c.lists[0].rows, what + " column_sums");
      expect_same(got, attend(*kernels, problem), what + ", a second run");
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(CpuAttention, AgreesWithTheReferenceForEveryHeadSize) {
  for (const int32_t dim : {8, 16, 64, 80, 96, 128, 256}) {
    check_case({.lists = {{1, 1}, {1, 67}, {5, 5}, {3, 70}}, .dim = dim}, "dim " + std::to_string(dim));
  }
}

TEST(CpuAttention, AgreesWithTheReferenceForEveryGroupBlockAndKvType) {
  for (int32_t group = 1; group <= 8; ++group) {
    check_case({.lists = {{1, 30}, {2, 65}}, .dim = 32, .group = group, .block_tokens = 8 << (group % 4)},
               "group " + std::to_string(group));
  }
  for (const DType kv : {DType::kF32, DType::kF16})
    check_case({.lists = {{1, 130}, {9, 40}}, .dim = 80, .kv = kv}, "kv type");
  check_case({.lists = {{1, 90}, {2, 7}}, .dim = 16, .group = 100, .kv_heads = 1}, "group 100");
  check_case({.lists = {{1, 700}, {1, 90}}, .dim = 128, .group = 1, .kv_heads = 12}, "12 kv heads");
  // So many lists that a piece has all heads, and only the last of the rows sees the second tile.
  check_case({.lists = std::vector<List>(9, {3, 65})}, "a row of three");
}

TEST(CpuAttention, AgreesWithTheReferenceForEveryOption) {
  const std::vector<List> lists = {{1, 100}, {17, 150}, {1, 3}};
  check_case({.lists = lists, .window = 9}, "window");
  check_case({.lists = lists, .window = 70, .side_outputs = true}, "window, side outputs");
  check_case({.lists = lists, .soft_cap = 2}, "soft cap");
  check_case({.lists = lists, .sinks = true, .side_outputs = true}, "sinks");
  check_case({.lists = lists, .q_sink = true, .side_outputs = true}, "q_sink");
  check_case({.lists = lists, .kv_heads = 3, .own_lists = true, .side_outputs = true}, "lists per head");
  check_case({.lists = lists, .side_outputs = true, .windows = {9, 0, 1}}, "own windows");
  check_case({.lists = lists, .window = 30, .windows = {0, 17, 50}}, "own windows and the layer's");
  check_case(
      {.lists = {{1, 300}, {40, 290}, {1, 3}}, .q_sink = true, .side_outputs = true, .windows = {20, 33, 2}},
      "streams");
  check_case({.lists = lists,
              .window = 20,
              .soft_cap = 3,
              .sinks = true,
              .q_sink = true,
              .own_lists = true,
              .side_outputs = true},
             "all");
}

// Logits of 40 and more: far above what came before, tile after tile, and inside tiles.
TEST(CpuAttention, AgreesWithTheReferenceWhereLogitsRise) {
  check_case(
      {.lists = {{1, 700}, {40, 300}, {3, 70}}, .dim = 128, .group = 4, .side_outputs = true, .q_range = 40},
      "dim 128");
  check_case({.lists = {{1, 300}, {20, 130}}, .dim = 64, .group = 7, .q_range = 40}, "dim 64");
  check_case({.lists = {{1, 90}, {9, 100}}, .dim = 80, .windows = {70, 30}, .q_range = 40},
             "dim 80, windows");
}

TEST(CpuAttention, AgreesWithTheReferenceAcrossSplits) {
  std::vector<Variant> fast;
  for (const Variant& v : all_variants()) {
    if (v.isa != CpuIsa::kPlain || v.act == DType::kF32) fast.push_back(v);
  }
  check_case({.lists = {{1, 1290}, {1, 512}, {1, 513}}, .dim = 32, .side_outputs = true}, "decode", fast);
  check_case({.lists = {{70, 1100}}, .dim = 16, .group = 3, .kv_heads = 1, .side_outputs = true}, "prefill",
             fast);
  check_case({.lists = {{60, 1100}}, .dim = 16, .kv_heads = 1, .window = 400, .side_outputs = true},
             "windowed prefill", fast);
  check_case({.lists = {{1, 1290}, {40, 1100}},
              .dim = 16,
              .kv_heads = 1,
              .q_sink = true,
              .side_outputs = true,
              .windows = {90, 20}},
             "streams", fast);
}

// The rows of one list, attended in chunks of `chunk`, as rows of one output.
AttentionRun attend_in_chunks(Kernels& kernels, const AttentionCase& whole, DType act, int32_t chunk) {
  Problem problem(whole, act, 11);
  AttentionParams p = problem.params();
  const int32_t rows = whole.lists[0].rows, length = whole.lists[0].length;
  const int64_t row_elements = problem.heads() * whole.dim;
  AttentionRun run{.out = Tensor::poisoned(act, rows * row_elements),
                   .lse = Tensor::poisoned(DType::kF32, rows * problem.heads()),
                   .column_sums = Tensor(
                       DType::kF32, std::vector<float>(static_cast<size_t>(problem.heads() * length), 0))};
  for (int32_t first = 0; first < rows; first += chunk) {
    const int32_t count = std::min(chunk, rows - first), seen = length - rows + first + count;
    const std::vector<int32_t> query_start = {0, count}, lengths(static_cast<size_t>(whole.kv_heads), seen);
    p.q = problem.q().bytes() + first * row_elements * bytes_of(act);
    p.out = run.out.bytes() + first * row_elements * bytes_of(act);
    p.lse = static_cast<float*>(run.lse.data()) + first * problem.heads();
    p.column_sums = static_cast<float*>(run.column_sums.data()), p.column_sums_stride = length;
    p.rows = count, p.max_rows = count, p.max_length = seen, p.query_start = query_start.data(),
    p.lengths = lengths.data();
    EXPECT_TRUE(kernels
                    .reserve({.max_rows = count,
                              .max_sequences = 1,
                              .max_q_heads = p.num_q_heads,
                              .max_head_dim = p.head_dim,
                              .max_length = seen})
                    .has_value());
    kernels.attention(p);
  }
  return run;
}

#ifdef __SANITIZE_ADDRESS__
constexpr int32_t kRows = 70, kSlots = 200;  // more than a chunk, which is what is looked at there
#else
constexpr int32_t kRows = 150, kSlots = 700;
#endif

TEST(CpuAttention, GivesARowTheSameBitsInAnyChunk) {
  struct Heads {
    int32_t dim, group, window;
    float q_range = 2;
  };
  // A row alone is few queries, a chunk many; up to 3 queries meet V in one pass at a head size of 128, 4 in two; 5 and more are two
  // register tiles. With a range of 40 what logits are shifted by rises inside tiles too.
  for (const auto& [dim, group, window, q_range] :
       {Heads{80, 3, 0}, {80, 3, 100}, {128, 3, 0}, {128, 4, 0, 40}, {96, 3, 100, 40}, {64, 7, 0, 40}}) {
    const AttentionCase c{.lists = {{kRows, kSlots}},
                          .dim = dim,
                          .group = group,
                          .window = window,
                          .sinks = true,
                          .q_range = q_range};
    for (const Variant& v : all_variants()) {
      if (v.isa == CpuIsa::kPlain) continue;  // one code for all; plain takes seconds
      const auto kernels = open_kernels(v);
      const AttentionRun whole = attend_in_chunks(*kernels, c, v.act, kRows);
      for (const int32_t chunk : {1, 7, 64}) {
        expect_same(whole, attend_in_chunks(*kernels, c, v.act, chunk),
                    to_string(v) + " chunk " + std::to_string(chunk));
      }
    }
  }
}

TEST(CpuAttention, GivesTheSameBitsOnAnyNumberOfThreadsAndBesideOthers) {
  const AttentionCase c{.lists = {{1, 1500}, {20, 600}}, .dim = 64, .group = 4, .side_outputs = true};
  for (Variant v : all_variants()) {
    Problem problem(c, v.act, 11);
    const AttentionRun two = attend(*open_kernels(v), problem);
    v.threads = 1;
    expect_same(two, attend(*open_kernels(v), problem), to_string(v));
    v.threads = 3;
    expect_same(two, attend(*open_kernels(v), problem), to_string(v));
  }
}

TEST(CpuAttention, LeavesZerosWhereARowSeesNothing) {
  AttentionCase c{.lists = {{1, 5}}};
  Problem problem(c, DType::kF32, 1);
  AttentionParams p = problem.params();
  const std::vector<int32_t> nothing = {0};
  Tensor out = Tensor::poisoned(DType::kF32, problem.heads() * c.dim),
         lse = Tensor::poisoned(DType::kF32, problem.heads());
  p.lengths = nothing.data(), p.out = out.data(), p.lse = static_cast<float*>(lse.data());
  const auto kernels = open_kernels({.isa = machine_isa()});
  const ScratchLimits limits{.max_rows = 1,
                             .max_sequences = 1,
                             .max_q_heads = p.num_q_heads,
                             .max_head_dim = p.head_dim,
                             .max_length = 16};
  ASSERT_TRUE(kernels->reserve(limits).has_value());
  kernels->attention(p);
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.at(i), 0);
  EXPECT_EQ(lse.at(0), -std::numeric_limits<float>::infinity());
}

// Logits that are no numbers are seen to be none, under whichever of one list's rows and heads they come, few or many.
TEST(CpuAttention, GivesNoNumberWhereAQueryHasNone) {
  const AttentionCase c{.lists = {{1, 1500}, {20, 600}}, .dim = 64, .group = 4, .side_outputs = true};
  for (const Variant& v : all_variants()) {
    Problem problem(c, v.act, 12);
    for (const int64_t query : {3, 8 * 14 + 6})
      problem.q().set(static_cast<size_t>(query * c.dim + 5), std::numeric_limits<float>::quiet_NaN());
    const AttentionRun run = attend(*open_kernels(v), problem);
    for (int64_t query = 0; query < problem.rows() * problem.heads(); ++query) {
      const bool none = query == 3 || query == 8 * 14 + 6;
      EXPECT_EQ(std::isnan(run.lse.at(static_cast<size_t>(query))), none)
          << to_string(v) << " query " << query;
      for (int64_t i = 0; i < c.dim; ++i)
        ASSERT_EQ(std::isnan(run.out.at(static_cast<size_t>(query * c.dim + i))), none)
            << to_string(v) << " query " << query;
    }
  }
}

TEST(CpuAttention, ReserveTakesWhatScratchBytesSays) {
  const auto kernels = open_kernels({.isa = machine_isa(), .threads = 3});
  const ScratchLimits limits{
      .max_rows = 37, .max_sequences = 9, .max_q_heads = 12, .max_head_dim = 80, .max_length = 999};
  const int64_t before = test_device().allocated_bytes();
  ASSERT_TRUE(kernels->reserve(limits));
  EXPECT_EQ(test_device().allocated_bytes() - before, kernels->scratch_bytes(limits));
}

}  // namespace
}  // namespace quire
