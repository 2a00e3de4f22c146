// The golden micro-vectors through the engine's own attention: 32 tokens, of them a prompt of 24, 4 query and 2 KV heads of 8, inputs from a
// linear congruential generator; what comes out was computed by a plain float64 program from the papers' rules. Method: one layer as the
// forward pass runs it (rope_kv_write, attention, RetentionRunner) over plans written here, in blocks of 8 and several chunkings. Decisions
// must be equal, numbers within 1e-5.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/kernels.h"
#include "src/execute/host_step.h"
#include "src/execute/retention_runner.h"
#include "src/model/rope_table.h"

namespace quire {
namespace {

constexpr int32_t kTokens = 32, kPrompt = 24, kDim = 8, kQHeads = 4, kKvHeads = 2, kBlockTokens = 8,
                  kBlocks = 16;
constexpr int64_t kWidth = (kQHeads + 2 * kKvHeads) * kDim;
constexpr SequenceId kSequence{1};

std::vector<float> generate(uint64_t seed, double scale) {
  std::vector<float> values;
  for (uint64_t x = seed, i = 0; i < uint64_t{kTokens} * kDim; ++i) {
    x = (1103515245ull * x + 12345ull) % (1ull << 31);
    values.push_back(
        static_cast<float>(scale * (2.0 * static_cast<double>(x) / static_cast<double>(1ull << 31) - 1.0)));
  }
  return values;
}

// q | k | v of every token, not rotated yet.
std::vector<float> all_rows() {
  std::vector<float> rows(static_cast<size_t>(kTokens * kWidth));
  const auto place = [&](int64_t head, const std::vector<float>& values) {
    for (int64_t t = 0; t < kTokens; ++t)
      std::copy_n(values.begin() + t * kDim, kDim, rows.begin() + t * kWidth + head * kDim);
  };
  for (int64_t h = 0; h < kQHeads; ++h) place(h, generate(101 + static_cast<uint64_t>(h), 8.0));
  for (int64_t h = 0; h < kKvHeads; ++h) {
    place(kQHeads + h, generate(201 + static_cast<uint64_t>(h), 1.0));
    place(kQHeads + kKvHeads + h, generate(301 + static_cast<uint64_t>(h), 1.0));
  }
  return rows;
}

std::vector<BlockId> blocks(std::initializer_list<int32_t> ids) {
  std::vector<BlockId> list;
  for (const int32_t id : ids) list.push_back(BlockId{id});
  return list;
}

// One sequence through one layer.
class Layer {
 public:
  explicit Layer(const char* policy)
      : policy_(*parse_policy(policy)),
        runner_(*kernels_, layout_, arena_.data(), kQHeads),
        step_({.max_rows = kTokens,
               .max_sequences = 1,
               .max_context_tokens = 40,
               .block_tokens = kBlockTokens,
               .num_blocks = kBlocks,
               .vocab_size = 2}),
        rope_(40 * kDim) {
    fill_rope_table(RopeSpec{}, kDim, 40, rope_);
    check(kernels_
              ->reserve({.max_rows = kTokens,
                         .max_sequences = 1,
                         .max_q_heads = kQHeads,
                         .max_head_dim = kDim,
                         .max_length = 40})
              .has_value(),
          "a toy's scratch is there");
  }

  // Tokens [first, first + count) over a list that has `before` slots.
  void run(int32_t first, int32_t count, int32_t before, std::vector<BlockId> table,
           std::vector<BlockId> cut_source = {}, bool overwrites = false) {
    BatchPlan plan;
    plan.sequences.push_back({.sequence = kSequence,
                              .first_position = first,
                              .tokens = std::vector<TokenId>(static_cast<size_t>(count), 0),
                              .list_length_before = before,
                              .block_table = std::move(table),
                              .policy = policy_,
                              .num_prompt_tokens = kPrompt,
                              .overwrites = overwrites,
                              .cut_source = std::move(cut_source),
                              .dump_kv = true});
    ASSERT_TRUE(step_.build(plan));
    const Status begun = runner_.begin(plan, step_);
    ASSERT_TRUE(begun) << begun.error().message;
    arrays_ = step_.arrays();
    if (runner_.wants_scores()) runner_.attach(arrays_);
    attend(first, count);
    add_first_slots_share();
    if (runner_.wants_scores()) runner_.after_layer(0);
    result_ = {};
    runner_.end(plan, result_);
  }
  void run_prompt(int32_t chunk) {
    for (int32_t first = 0; first < kPrompt; first += chunk)
      run(first, std::min(chunk, kPrompt - first), first, blocks({5, 2, 9}));
  }
  // The decodes after the prompt, as the scheduler plans them where the list is cut to `kept`.
  void run_cut_decodes(int32_t kept) {
    const std::vector<BlockId> fresh = blocks({11, 3});
    run(kPrompt, 1, kept, fresh, blocks({5, 2, 9}));
    for (int32_t t = kPrompt + 1; t < kTokens; ++t) run(t, 1, kept + 1, fresh, {}, true);
  }

  const std::vector<std::vector<int32_t>>& kept() const { return result_.kv_dumps.at(0).positions.at(0); }
  const float* output_of_last_row(int32_t head) const {
    return out_.data() + (arrays_.rows - 1) * kQHeads * kDim + head * kDim;
  }
  double share_of_first_slot(int32_t kv_head) const { return share_[static_cast<size_t>(kv_head)]; }

 private:
  void attend(int32_t first, int32_t count) {
    const std::vector<float> all = all_rows();
    qkv_.assign(all.begin() + first * kWidth, all.begin() + (first + count) * kWidth);
    q_sink_.assign(qkv_.size(), 0.0f);
    out_.assign(static_cast<size_t>(count * kQHeads * kDim), 0.0f);
    kernels_->rope_kv_write({.qkv = qkv_.data(),
                             .q_sink_out = arrays_.sink_slots == nullptr ? nullptr : q_sink_.data(),
                             .sink_positions = arrays_.sink_positions,
                             .positions = arrays_.positions,
                             .slots = arrays_.slots,
                             .slot_stride = arrays_.slot_stride,
                             .cos_sin = rope_.data(),
                             .rotary_dim = kDim,
                             .arena = arena_.data(),
                             .layout = layout_,
                             .num_q_heads = kQHeads,
                             .num_kv_heads = kKvHeads,
                             .head_dim = kDim,
                             .rows = arrays_.rows});
    kernels_->attention({.q = qkv_.data(),
                         .q_stride = kWidth,
                         .out = out_.data(),
                         .arena = arena_.data(),
                         .layout = layout_,
                         .num_q_heads = kQHeads,
                         .num_kv_heads = kKvHeads,
                         .head_dim = kDim,
                         .scale = 1.0f / std::sqrt(static_cast<float>(kDim)),
                         .windows = arrays_.windows,
                         .num_sequences = 1,
                         .rows = arrays_.rows,
                         .max_rows = arrays_.max_rows,
                         .max_length = arrays_.max_length,
                         .query_start = arrays_.query_start,
                         .lengths = arrays_.lengths,
                         .block_table = arrays_.block_table,
                         .table_stride = arrays_.table_stride,
                         .q_sink = arrays_.sink_slots == nullptr ? nullptr : q_sink_.data(),
                         .sink_slots = arrays_.sink_slots,
                         .lse = arrays_.lse,
                         .row_logits = arrays_.row_logits,
                         .row_logits_stride = arrays_.side_stride,
                         .column_sums = arrays_.column_sums,
                         .column_sums_stride = arrays_.side_stride});
  }
  // What attention gave the first slot so far, summed over a KV head's query heads: H2O's score of it.
  void add_first_slots_share() {
    if (policy_.kind != RetentionKind::kH2o) return;
    for (int32_t h = 0; h < kQHeads; ++h) {
      const int64_t at = h * arrays_.side_stride;
      share_[static_cast<size_t>(h / (kQHeads / kKvHeads))] +=
          arrays_.column_sums != nullptr
              ? arrays_.column_sums[at]
              : std::exp(arrays_.row_logits[at] - arrays_.lse[(arrays_.rows - 1) * kQHeads + h]);
    }
  }

  const KvLayout layout_{.dtype = DType::kF32,
                         .num_layers = 1,
                         .num_kv_heads = kKvHeads,
                         .head_dim = kDim,
                         .block_tokens = kBlockTokens};
  const std::unique_ptr<Device> device_ = std::move(open_cpu_device(1)).value();
  const std::unique_ptr<Kernels> kernels_ =
      std::move(make_cpu_kernels(*device_, {.activations = DType::kF32, .threads = 1})).value();
  std::vector<char> arena_ = std::vector<char>(static_cast<size_t>(kBlocks * layout_.block_bytes()));
  const PolicySpec policy_;
  RetentionRunner runner_;
  HostStep step_;
  std::vector<float> rope_, qkv_, q_sink_, out_;
  StepArrays arrays_;
  StepResult result_;
  std::array<double, kKvHeads> share_ = {};
};

void expect_near(const float* got, std::initializer_list<double> wanted) {
  for (const double value : wanted) EXPECT_NEAR(*got++, value, 1e-5);
}

class MicroVectors : public testing::TestWithParam<int32_t> {};  // the chunk of the prompt

TEST_P(MicroVectors, FullAttention) {
  Layer layer("none");
  layer.run_prompt(GetParam());
  for (int32_t t = kPrompt; t < kTokens; ++t) layer.run(t, 1, t, blocks({5, 2, 9, 7}));
  expect_near(layer.output_of_last_row(0), {-0.808584, 0.299381, -0.04996});
}

// The blocks between sinks and window are dropped where no row will see them again, as the scheduler does.
TEST_P(MicroVectors, StreamingLlm) {
  for (const bool drops : {false, true}) {
    Layer layer("stream:sinks=2,recent=6");
    layer.run_prompt(GetParam());
    for (int32_t t = kPrompt; t < kTokens; ++t) {
      const bool dropped = drops && t >= 29;  // the window begins at 24, in the last block
      layer.run(t, 1, dropped ? t - 16 : t, dropped ? blocks({5, 7}) : blocks({5, 2, 9, 7}));
    }
    expect_near(layer.output_of_last_row(3), {0.556837, -0.065255, 0.191828});
  }
}

TEST_P(MicroVectors, Tova) {
  Layer layer("tova:budget=10");
  layer.run_prompt(GetParam());
  using Lists = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(layer.kept(), (Lists{{2, 3, 6, 11, 14, 17, 19, 21, 22, 23}}));
  layer.run_cut_decodes(10);
  EXPECT_EQ(layer.kept(), (Lists{{6, 17, 22, 24, 26, 27, 28, 29, 30, 31}}));
}

TEST_P(MicroVectors, H2o) {
  Layer layer("h2o:heavy=5,recent=5");
  layer.run_prompt(GetParam());
  using Lists = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(layer.kept(), (Lists{{0, 1, 2, 3, 7, 19, 20, 21, 22, 23}, {0, 1, 2, 3, 4, 19, 20, 21, 22, 23}}));
  layer.run_cut_decodes(10);
  EXPECT_EQ(layer.kept(), (Lists{{0, 1, 2, 3, 7, 27, 28, 29, 30, 31}, {0, 1, 2, 3, 4, 27, 28, 29, 30, 31}}));
  EXPECT_NEAR(layer.share_of_first_slot(0), 7.703978, 1e-5);
  EXPECT_NEAR(layer.share_of_first_slot(1), 14.492352, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Chunks, MicroVectors, testing::Values(24, 7, 1));

}  // namespace
}  // namespace quire
