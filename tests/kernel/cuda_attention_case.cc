#include "tests/kernel/cuda_attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "fmt/format.h"
#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/reference/reference_ops.h"
#include "src/base/random.h"

namespace quire::attention_test {
namespace {

constexpr int kAlignment = 64;
constexpr int kSegmentSlots = 40;  // more than a warp takes at once, and ends inside tiles and blocks

int segments_of(const AttentionParams& p) {
  return (p.max_length + kSegmentSlots - 1) / kSegmentSlots;
}

std::unique_ptr<Region> copy_of(const std::vector<int32_t>& v) {
  auto r = std::make_unique<Region>(static_cast<int64_t>(v.size()) * 4);
  std::memcpy(r->data(), v.data(), v.size() * 4);
  return r;
}

// A random number of [-1, 1] as the dtype holds it, written to both.
void fill_pair(char* rounded, DType dtype, float* exact, int64_t i, double x) {
  reference::store(rounded, dtype, i, x);
  exact[i] = static_cast<float>(reference::load(rounded, dtype, i));
}

std::vector<float> floats(const Region* r) {
  if (r == nullptr) return {};
  std::vector<float> v(r->bytes() / 4);
  std::memcpy(v.data(), const_cast<Region*>(r)->data(), v.size() * 4);
  return v;
}

}  // namespace

Region::Region(int64_t bytes, int fill) : bytes_(bytes) {
  data_.reset(
      static_cast<char*>(std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment)));
  std::memset(data_.get(), fill, bytes);
  shim::register_memory(data_.get(), bytes);
}
Region::~Region() {
  shim::unregister_memory(data_.get());
}
void Region::Free::operator()(char* p) const {
  std::free(p);
}

Case::Case(const Shape& shape, uint64_t seed) : shape_(shape) {
  Random random(seed);
  const int64_t sequences = static_cast<int64_t>(shape_.lengths.size()),
                q_heads = shape_.kv_heads * shape_.group;
  query_start_.push_back(0);
  for (int64_t s = 0; s < sequences; ++s) {
    const int rows = shape_.lengths[s] == 0 ? 0 : rows_of(s);
    query_start_.push_back(query_start_.back() + rows);
    max_rows_ = std::max(max_rows_, rows);
    max_length_ = std::max(max_length_, shape_.lengths[s]);
  }
  rows_ = query_start_.back();
  starts_ = copy_of(query_start_);
  make_lists(seed);
  make_prefixes();
  const int64_t count = rows_ * q_heads * shape_.head_dim, bytes = bytes_of(shape_.dtype);
  const auto make_queries = [&](std::unique_ptr<Region>& rounded, std::unique_ptr<Region>& exact) {
    rounded = std::make_unique<Region>(count * bytes);
    exact = std::make_unique<Region>(count * 4);
    for (int64_t i = 0; i < count; ++i)
      fill_pair(rounded->data(), shape_.dtype, exact->as<float>(), i, 4 * random.uniform() - 2);
  };
  make_queries(q_, q_f32_);
  if (shape_.sink_slots > 0) {
    make_queries(q_sink_, q_sink_f32_);
    sink_slots_ = copy_of(std::vector<int32_t>(sequences, shape_.sink_slots));
  }
  if (!shape_.windows.empty())
    windows_ = copy_of(std::vector<int32_t>(shape_.windows.begin(), shape_.windows.end()));
  if (shape_.sinks) {
    sinks_ = std::make_unique<Region>(q_heads * 4);
    for (int64_t h = 0; h < q_heads; ++h) sinks_->as<float>()[h] = static_cast<float>(2 * random.uniform());
  }
}

// Every list in blocks of random order; its slots random, all others NaN. Shared slots are the first member's
// blocks.
void Case::make_lists(uint64_t seed) {
  Random random(seed + 1);
  const int64_t sequences = static_cast<int64_t>(shape_.lengths.size());
  const int lists = shape_.lists_per_head ? shape_.kv_heads : 1;
  layout_ = {.dtype = shape_.dtype,
             .num_layers = 2,
             .num_kv_heads = shape_.lists_per_head ? 1 : shape_.kv_heads,
             .head_dim = shape_.head_dim,
             .block_tokens = shape_.block_tokens};
  max_blocks_ = (max_length_ + shape_.block_tokens - 1) / shape_.block_tokens;
  const int64_t num_blocks = sequences * lists * max_blocks_;
  std::vector<int32_t> ids(num_blocks);
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t i = num_blocks; i > 1; --i) std::swap(ids[i - 1], ids[random.below(i)]);
  std::vector<int32_t> lengths;
  for (int64_t s = 0; s < sequences; ++s)
    for (int h = 0; h < lists; ++h) {
      // Lists of one sequence may differ in length where each head has its own.
      const int least = std::max(1, rows_of(s));
      lengths.push_back(shape_.lengths[s] == 0 ? 0 : std::max(least, shape_.lengths[s] - 5 * h));
    }
  for (const SharedPrefixShape& p : shape_.prefixes)
    for (int s : p.sequences)
      for (int b = p.begin / shape_.block_tokens; b < p.end / shape_.block_tokens; ++b)
        ids[s * max_blocks_ + b] = ids[p.sequences[0] * max_blocks_ + b];
  arena_ = std::make_unique<Region>(std::max<int64_t>(1, num_blocks) * layout_.block_bytes());
  for (int64_t list = 0; list < sequences * lists; ++list)
    for (int slot = 0; slot < lengths[list]; ++slot)
      for (int h = 0; h < layout_.num_kv_heads; ++h)
        for (int kv = 0; kv < 2; ++kv) {
          char* tile = arena_->data() +
                       ids[list * max_blocks_ + slot / shape_.block_tokens] * layout_.block_bytes() +
                       layout_.layer_stride() + kv * layout_.kv_stride() + h * layout_.head_stride();
          for (int d = 0; d < shape_.head_dim; ++d)
            reference::store(tile, shape_.dtype, int64_t{slot % shape_.block_tokens} * shape_.head_dim + d,
                             2 * random.uniform() - 1);
        }
  table_ = copy_of(ids);
  lengths_ = copy_of(lengths);
}

void Case::make_prefixes() {
  if (shape_.prefixes.empty()) return;
  const int sequences = static_cast<int>(shape_.lengths.size());
  std::vector<int32_t> start{0}, members, slots, private_start(sequences, 0), member_start{0}, of_sequence;
  for (const SharedPrefixShape& p : shape_.prefixes) {
    for (int s : p.sequences) {
      members.push_back(s);
      private_start[s] = std::max(private_start[s], p.end);
    }
    start.push_back(static_cast<int32_t>(members.size()));
    slots.insert(slots.end(), {p.begin, p.end});
    prefix_counts_.max_slots = std::max(prefix_counts_.max_slots, p.end - p.begin);
  }
  for (int s = 0; s < sequences; ++s) {
    for (size_t m = 0; m < members.size(); ++m)
      if (members[m] == s) of_sequence.push_back(static_cast<int32_t>(m));
    member_start.push_back(static_cast<int32_t>(of_sequence.size()));
  }
  prefix_counts_.num_nodes = static_cast<int32_t>(shape_.prefixes.size());
  prefix_counts_.num_members = static_cast<int32_t>(members.size());
  // Room for more than there is, as a captured graph has it: nodes without members, places that nobody reads.
  constexpr int kSpareNodes = 2, kSpareMembers = 3;
  start.insert(start.end(), kSpareNodes, start.back());
  slots.insert(slots.end(), 2 * kSpareNodes, 0);
  members.insert(members.end(), kSpareMembers, 0);
  of_sequence.insert(of_sequence.end(), kSpareMembers, 0);
  prefixes_.num_nodes = prefix_counts_.num_nodes + kSpareNodes;
  prefixes_.num_members = prefix_counts_.member_room = prefix_counts_.num_members + kSpareMembers;
  const auto keep = [](std::unique_ptr<Region>& r, const std::vector<int32_t>& v) {
    r = copy_of(v);
    return r->as<int32_t>();
  };
  prefixes_.node_slots = keep(node_slots_, slots);
  prefixes_.node_sequence_start = keep(node_sequence_start_, start);
  prefixes_.node_sequences = keep(node_sequences_, members);
  prefixes_.sequence_member_start = keep(member_start_, member_start);
  prefixes_.sequence_members = keep(members_, of_sequence);
  prefixes_.private_start = keep(private_start_, private_start);
}

AttentionParams Case::params() {
  AttentionParams p;
  p.arena = arena_->data() + layout_.layer_stride();  // the second layer
  p.layout = layout_;
  p.num_q_heads = shape_.kv_heads * shape_.group;
  p.num_kv_heads = shape_.kv_heads;
  p.head_dim = shape_.head_dim;
  p.q_stride = int64_t{p.num_q_heads} * p.head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.soft_cap = shape_.soft_cap;
  p.window = shape_.window;
  p.sinks = sinks_ ? sinks_->as<float>() : nullptr;
  p.num_sequences = static_cast<int32_t>(shape_.lengths.size());
  p.rows = rows_;
  p.max_rows = max_rows_;
  p.max_length = max_length_;
  p.query_start = starts_->as<int32_t>();
  p.lengths = lengths_->as<int32_t>();
  p.block_table = table_->as<int32_t>();
  const int lists = shape_.lists_per_head ? shape_.kv_heads : 1;
  p.table_stride = int64_t{lists} * max_blocks_;
  p.head_table_stride = shape_.lists_per_head ? max_blocks_ : 0;
  p.length_stride = lists;
  p.head_length_stride = shape_.lists_per_head ? 1 : 0;
  p.early_fetch = shape_.early_fetch;
  p.windows = windows_ ? windows_->as<int32_t>() : nullptr;
  p.sink_slots = sink_slots_ ? sink_slots_->as<int32_t>() : nullptr;
  return p;
}

OutputRegions::OutputRegions(const AttentionParams& p, DType dtype)
    : values(p.rows * p.num_q_heads * p.head_dim * bytes_of(dtype)),
      lse(p.rows * p.num_q_heads * 4),
      row_logits(int64_t{p.num_sequences} * p.num_q_heads * p.max_length * 4),
      column_sums(int64_t{p.num_sequences} * p.num_q_heads * p.max_length * 4, 0),
      partials(p.rows * p.num_q_heads * segments_of(p) * (p.head_dim + 2) * 4) {}

void OutputRegions::attach(AttentionParams& p) {
  p.out = values.data();
  p.lse = lse.as<float>();
  p.partials = partials.as<float>();
  p.segment_slots = kSegmentSlots;
  p.num_segments = segments_of(p);
  if (p.prefixes.num_nodes > 0) return;
  p.row_logits = row_logits.as<float>();
  p.column_sums = column_sums.as<float>();
  p.row_logits_stride = p.column_sums_stride = p.max_length;
}

Outputs OutputRegions::take(DType dtype, bool with_side_outputs) {
  Outputs o{.lse = floats(&lse), .partials = floats(&partials)};
  if (with_side_outputs) {
    o.row_logits = floats(&row_logits);
    o.column_sums = floats(&column_sums);
  }
  for (int64_t i = 0; i < values.bytes() / bytes_of(dtype); ++i)
    o.values.push_back(static_cast<float>(reference::load(values.data(), dtype, i)));
  return o;
}

Outputs Case::reference() {
  AttentionParams p = params();
  p.q = q_f32_->data();
  p.q_sink = q_sink_f32_ ? q_sink_f32_->data() : nullptr;
  OutputRegions out(p, DType::kF32);
  out.attach(p);
  reference::attention(p);
  return out.take(DType::kF32, prefixes_.num_nodes == 0);
}

AttentionParams Case::problem() {
  AttentionParams p = params();
  p.q = q_->data();
  p.q_sink = q_sink_ ? q_sink_->data() : nullptr;
  p.prefixes = prefixes_;
  return p;
}

std::vector<Region*> Case::regions() {
  std::vector<Region*> all;
  for (const auto* r :
       {&arena_, &q_, &q_sink_, &sinks_, &starts_, &lengths_, &table_, &sink_slots_, &windows_,
        &node_sequence_start_, &node_sequences_, &node_slots_, &private_start_, &member_start_, &members_})
    if (*r != nullptr) all.push_back(r->get());
  return all;
}

// Values: a probability and the result are each rounded once, by 2^-(m+1) of itself where m is the stored
// mantissa; values are within [-1, 1]. Logits: float32 sums of head_dim products of at most 2, and tanh to
// 1e-6. Sums: logits' error times the sum.
Case::Tolerance Case::tolerance() const {
  const float ulp = shape_.dtype == DType::kBF16  ? 0x1p-8f
                    : shape_.dtype == DType::kF16 ? 0x1p-11f
                                                  : 0x1p-19f;
  return {.values = ulp, .logits = 1e-4f, .sums = 1e-3f};
}

namespace {

std::string compare(const char* what, int64_t i, float got, float wanted, float tolerance) {
  if (std::fabs(got - wanted) <= tolerance) return {};
  return fmt::format("{}[{}] is {}, wanted {} within {}", what, i, got, wanted, tolerance);
}

}  // namespace

std::string difference(Case& c, const Outputs& got, const Outputs& wanted) {
  const Case::Tolerance t = c.tolerance();
  for (size_t i = 0; i < wanted.values.size(); ++i)
    if (auto d = compare("values", i, got.values[i], wanted.values[i], t.values); !d.empty()) return d;
  for (size_t i = 0; i < wanted.lse.size(); ++i)
    if (auto d = compare("lse", i, got.lse[i], wanted.lse[i], t.logits); !d.empty()) return d;
  for (size_t i = 0; i < wanted.row_logits.size(); ++i)
    if (std::isfinite(wanted.row_logits[i]))  // slots that the row does not see are not written
      if (auto d = compare("row_logits", i, got.row_logits[i], wanted.row_logits[i], t.logits); !d.empty())
        return d;
  // Of a segment: sums of up to 40 weights of at most 1, each off by its logit's error.
  for (size_t i = 0; i < wanted.partials.size(); ++i)
    if (std::isfinite(wanted.partials[i]) ||
        got.partials[i] != wanted.partials[i])  // nothing seen: minus infinity
      if (auto d = compare("partials", i, got.partials[i], wanted.partials[i],
                           t.sums * (1 + std::fabs(wanted.partials[i])));
          !d.empty())
        return d;
  for (size_t i = 0; i < wanted.column_sums.size(); ++i)
    if (auto d = compare("column_sums", i, got.column_sums[i], wanted.column_sums[i],
                         t.sums * (1 + wanted.column_sums[i]));
        !d.empty())
      return d;
  return {};
}

}  // namespace quire::attention_test
