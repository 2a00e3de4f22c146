#include "benchmarks/cuda/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "src/base/worse_of.h"

namespace quire::bench {
namespace {

// Softmax over logits that come tile by tile, in float64.
class RunningSoftmax {
 public:
  explicit RunningSoftmax(int head_dim) : sum_(static_cast<size_t>(head_dim)) {}

  void add(const std::vector<double>& logits, const std::vector<uint16_t>& values) {
    const double m = std::max(largest_, *std::max_element(logits.begin(), logits.end()));
    const double factor = std::exp(largest_ - m);
    largest_ = m;
    total_ *= factor;
    for (double& x : sum_) x *= factor;
    for (size_t j = 0; j < logits.size(); ++j) {
      const double p = std::exp(logits[j] - m);
      total_ += p;
      for (size_t x = 0; x < sum_.size(); ++x) sum_[x] += p * bf16_to_f32(values[j * sum_.size() + x]);
    }
  }
  std::vector<double> result() const {
    std::vector<double> out = sum_;
    for (double& x : out) x /= total_;
    return out;
  }

 private:
  std::vector<double> sum_;
  double largest_ = -1e300, total_ = 0;
};

std::vector<double> dots(const std::vector<uint16_t>& q, const std::vector<uint16_t>& keys, int count) {
  std::vector<double> logits;
  for (int j = 0; j < count; ++j) {
    double dot = 0;
    for (size_t x = 0; x < q.size(); ++x)
      dot += double{bf16_to_f32(q[x])} * bf16_to_f32(keys[static_cast<size_t>(j) * q.size() + x]);
    logits.push_back(dot / std::sqrt(static_cast<double>(q.size())));
  }
  return logits;
}

}  // namespace

AttentionProblem::AttentionProblem(Rig& rig, const Pool& pool, const AttentionModel& model,
                                   const ProblemShape& shape)
    : rig_(rig), pool_(pool), model_(model), shape_(shape) {
  query_start_.push_back(0);
  for (size_t s = 0; s < shape.lengths.size(); ++s) {
    query_start_.push_back(query_start_.back() + shape.rows[s]);
    max_length_ = std::max(max_length_, shape.lengths[s]);
    max_rows_ = std::max(max_rows_, shape.rows[s]);
  }
  table_stride_ = (max_length_ + model.block_tokens - 1) / model.block_tokens;
  fits_ = take_blocks();
  if (fits_) upload_arrays();
}

// Blocks of the pool in a random order; those of the shared slots are every list's.
bool AttentionProblem::take_blocks() {
  std::vector<int32_t> ids(static_cast<size_t>(pool_.bytes / model_.layout().block_bytes()));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  const int shared = shape_.shared_slots / model_.block_tokens;
  size_t next = static_cast<size_t>(shared);
  table_.assign(shape_.lengths.size() * static_cast<size_t>(table_stride_), 0);
  for (size_t s = 0; s < shape_.lengths.size(); ++s)
    for (int b = 0; b < (shape_.lengths[s] + model_.block_tokens - 1) / model_.block_tokens; ++b) {
      const size_t at = b < shared ? static_cast<size_t>(b) : next++;
      if (at >= ids.size()) return false;
      table_[s * static_cast<size_t>(table_stride_) + static_cast<size_t>(b)] = ids[at];
    }
  return true;
}

void AttentionProblem::upload_arrays() {
  const int sequences = static_cast<int>(shape_.lengths.size());
  const int64_t elements = int64_t{query_start_.back()} * model_.q_heads * model_.head_dim;
  q_ = rig_.random(elements, 7, "queries");
  out_ = rig_.buffer(elements * 2, "results");
  lengths_ = rig_.upload(shape_.lengths, "lengths");
  starts_ = rig_.upload(query_start_, "query starts");
  blocks_ = rig_.upload(table_, "block table");
  plan_ = rig_.buffer(rig_.ops().attention_plan_bytes(), "plan of attention");
  std::vector<int32_t> all(static_cast<size_t>(sequences)), starts(static_cast<size_t>(sequences) + 1);
  std::iota(all.begin(), all.end(), 0);
  std::iota(starts.begin(), starts.end(), 0);
  node_slots_ = rig_.upload(std::vector<int32_t>{0, shape_.shared_slots}, "node");
  node_start_ = rig_.upload(std::vector<int32_t>{0, sequences}, "node");
  members_ = rig_.upload(all, "members");
  of_sequence_ = rig_.upload(all, "members");
  member_start_ = rig_.upload(starts, "members");
  private_start_ = rig_.upload(std::vector<int32_t>(static_cast<size_t>(sequences), shape_.shared_slots),
                               "private starts");
}

// NaN until written.
void AttentionProblem::poison_results() const {
  const std::vector<uint16_t> nan(static_cast<size_t>(out_.bytes() / 2), 0xffff);
  rig_.device().copy_to_device(out_.data(), nan.data(), out_.bytes());
  rig_.device().synchronize();
}

AttentionParams AttentionProblem::params(int layer) const {
  AttentionParams p;
  p.q = q_.data();
  p.out = out_.data();
  p.layout = model_.layout();
  p.arena = pool_.data + layer % model_.layers * p.layout.layer_stride();
  p.num_q_heads = model_.q_heads;
  p.num_kv_heads = model_.kv_heads;
  p.head_dim = model_.head_dim;
  p.q_stride = int64_t{model_.q_heads} * model_.head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim));
  p.num_sequences = static_cast<int32_t>(shape_.lengths.size());
  p.rows = query_start_.back();
  p.max_rows = max_rows_;
  p.max_length = max_length_;
  p.query_start = starts_.as<int32_t>();
  p.lengths = lengths_.as<int32_t>();
  p.block_table = blocks_.as<int32_t>();
  p.table_stride = table_stride_;
  p.early_fetch = true;
  p.plan = plan_.data();
  return p;
}

void AttentionProblem::make_plan(const AttentionParams& p, const AttentionChoice& choice) const {
  rig_.ops().plan_attention(p, choice);
  rig_.ops().read_all(q_.data(), 16);
}

void AttentionProblem::share(AttentionParams& p, const BenchOps& ops) const {
  const int32_t n = static_cast<int32_t>(shape_.lengths.size());
  const PrefixCounts counts{
      .num_nodes = 1, .num_members = n, .member_room = n, .max_slots = shape_.shared_slots};
  p.prefixes = {.num_nodes = 1,
                .num_members = n,
                .num_splits = ops.prefix_splits(counts, p.num_q_heads, p.num_kv_heads, p.head_dim),
                .node_slots = node_slots_.as<int32_t>(),
                .node_sequence_start = node_start_.as<int32_t>(),
                .node_sequences = members_.as<int32_t>(),
                .sequence_member_start = member_start_.as<int32_t>(),
                .sequence_members = of_sequence_.as<int32_t>(),
                .private_start = private_start_.as<int32_t>()};
}

double AttentionProblem::kv_bytes() const {
  double slots = 0;
  for (const int n : shape_.lengths) slots += n;
  return slots * 2 * model_.kv_heads * model_.head_dim * 2;
}

double AttentionProblem::operations() const {
  double seen = 0;
  for (size_t s = 0; s < shape_.lengths.size(); ++s)
    seen += shape_.rows[s] * (shape_.lengths[s] - (shape_.rows[s] - 1) / 2.0);
  return seen * 4 * model_.q_heads * model_.head_dim;
}

double AttentionProblem::bare_read_us() const {
  double best = 1e30;
  const int pairs = model_.kv_heads * static_cast<int>(shape_.lengths.size());
  for (const int waves : {4, 8, 16}) {
    const int splits = std::clamp(waves * rig_.device().facts().multiprocessors / pairs, 1,
                                  std::max(1, max_length_ / model_.block_tokens / 2));
    for (const int ahead : {2, 4, 8}) {
      const Timing t =
          rig_.time(model_.layers, [&](int layer) { rig_.ops().read_tiles(params(layer), splits, ahead); });
      best = std::min(best, t.us);
    }
  }
  return best;
}

double AttentionProblem::worst_error(int layer) const {
  double worst = 0;
  const int n = static_cast<int>(shape_.lengths.size());
  for (int pick = 0; pick < 4; ++pick) {
    const int s = pick == 0 ? 0 : pick == 1 ? n - 1 : n * pick / 4 % n;
    const int rows = shape_.rows[static_cast<size_t>(s)];
    worst = worse_of(worst,
                     row_error(layer, s, rows == 1 ? 0 : (rows - 1) * pick / 3, pick * 11 % model_.q_heads));
  }
  return worst;
}

void AttentionProblem::read_tile(const char* source, std::vector<uint16_t>& tile) const {
  rig_.device().copy_to_host(tile.data(), source, static_cast<int64_t>(tile.size() * 2));
}

double AttentionProblem::row_error(int layer, int sequence, int row, int q_head) const {
  const auto s = static_cast<size_t>(sequence);
  const KvLayout layout = model_.layout();
  const int tokens = model_.block_tokens, head = q_head / (model_.q_heads / model_.kv_heads);
  const int seen = shape_.lengths[s] - shape_.rows[s] + row + 1;
  const int64_t at = (int64_t{query_start_[s] + row} * model_.q_heads + q_head) * model_.head_dim;
  const std::vector<uint16_t> q = rig_.download(q_.as<uint16_t>() + at, static_cast<size_t>(model_.head_dim));
  RunningSoftmax softmax(model_.head_dim);
  std::vector<uint16_t> keys(static_cast<size_t>(tokens * model_.head_dim)), values = keys;
  for (int slot = 0; slot < seen; slot += tokens) {
    const int64_t block = table_[s * static_cast<size_t>(table_stride_) + static_cast<size_t>(slot / tokens)];
    const char* tile = pool_.data + layer * layout.layer_stride() + head * layout.head_stride() +
                       block * layout.block_bytes();
    read_tile(tile, keys);
    read_tile(tile + layout.kv_stride(), values);
    rig_.device().synchronize();
    softmax.add(dots(q, keys, std::min(tokens, seen - slot)), values);
  }
  std::vector<double> got;
  for (const uint16_t x : rig_.download(out_.as<uint16_t>() + at, static_cast<size_t>(model_.head_dim)))
    got.push_back(bf16_to_f32(x));
  return relative_error(got, softmax.result());
}

}  // namespace quire::bench
