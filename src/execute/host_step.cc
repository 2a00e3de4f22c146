#include "src/execute/host_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "src/base/blocks_for.h"

namespace quire {
namespace {

Error plan_fault(const PlannedSequence& s, const std::string& what) {
  return error(Code::kInternal, fmt::format("plan, sequence {}: {}", value(s.sequence), what));
}

int64_t length_of(const PlannedSequence& s) {
  return s.list_length_after();
}

// The sinks of a policy that goes by position alone.
int32_t sinks_of(const PolicySpec& policy) {
  return traits(policy).sink_rotation ? policy.sinks : 0;
}

}  // namespace

HostStep::HostStep(const StepLimits& limits, StepTables tables) : limits_(limits), tables_(tables) {
  const auto rows = static_cast<size_t>(limits.max_rows),
             sequences = static_cast<size_t>(limits.max_sequences);
  for (std::vector<int32_t>* per_row : {&ids_, &positions_, &logits_rows_, &sink_positions_})
    per_row->reserve(rows);
  for (std::vector<int32_t>* per_list : {&windows_, &sink_slots_}) per_list->reserve(sequences);
  slots_.reserve(rows);
  query_start_.reserve(sequences + 1);
  lengths_.reserve(sequences);
  wanted_.reserve(sequences);
  sampled_rows_.reserve(sequences);
}

void HostStep::clear(const BatchPlan& plan) {
  for (std::vector<int32_t>* array : {&ids_, &positions_, &query_start_, &lengths_, &block_table_,
                                      &logits_rows_, &windows_, &sink_slots_, &sink_positions_})
    array->clear();
  slots_.clear();
  wanted_.clear();
  sampled_rows_.clear();
  num_samples_ = 0;
  max_rows_ = max_length_ = 0;
  table_stride_ = 0;
  slot_stride_ = 1;
  slot_layer_stride_ = 0;
  has_windows_ = has_sinks_ = overwrites_ = false;
  for (const PlannedSequence& s : plan.sequences) {
    table_stride_ = std::max(table_stride_, blocks_for(length_of(s), limits_.block_tokens));
  }
  query_start_.push_back(0);
}

Status HostStep::build(const BatchPlan& plan) {
  if (plan.num_tokens() > limits_.max_rows) {
    return error(Code::kInternal, fmt::format("plan of {} tokens; a step takes {} (max_step_tokens)",
                                              plan.num_tokens(), limits_.max_rows));
  }
  if (static_cast<int64_t>(plan.sequences.size()) > limits_.max_sequences) {
    return error(Code::kInternal, fmt::format("plan of {} sequences; a step takes {} (max_sequences)",
                                              plan.sequences.size(), limits_.max_sequences));
  }
  for (const PlannedSequence& s : plan.sequences) {
    if (Status checked = check_sequence(s); !checked) return checked;
  }
  clear(plan);
  for (const PlannedSequence& s : plan.sequences) {
    const auto first_row = static_cast<int64_t>(ids_.size());
    add_rows(s);
    add_list(s, length_of(s));
    add_window(s);
    add_logits(s, first_row);
  }
  return ok();
}

Status HostStep::check_sequence(const PlannedSequence& s) const {
  const auto count = static_cast<int64_t>(s.tokens.size());
  if (count == 0) return plan_fault(s, "no tokens");
  if (s.first_position < 0 || s.list_length_before < 0 || s.list_length_before > s.first_position) {
    return plan_fault(
        s, fmt::format("first position {}, list length {}", s.first_position, s.list_length_before));
  }
  if (s.overwrites && (count != 1 || s.list_length_before == 0))
    return plan_fault(s, fmt::format("{} tokens overwrite a slot of {}", count, s.list_length_before));
  if (s.first_position + count > limits_.max_context_tokens) {
    return plan_fault(s, fmt::format("ends at position {}; the limit is {} (max_context_tokens)",
                                     s.first_position + count, limits_.max_context_tokens));
  }
  if (Status ids = check_ids(s); !ids) return ids;
  if (Status cut = check_cut(s); !cut) return cut;
  return check_blocks(s, length_of(s));
}

// The blocks that a cut list had. Whether so many slots of it are kept, the policy's states know (retention_runner, device_retention).
Status HostStep::check_cut(const PlannedSequence& s) const {
  for (const BlockId id : s.cut_source)
    if (value(id) < 0 || value(id) >= limits_.num_blocks)
      return plan_fault(s,
                        fmt::format("a cut from block {}; the cache has {}", value(id), limits_.num_blocks));
  return ok();
}

Status HostStep::check_ids(const PlannedSequence& s) const {
  for (const TokenId id : s.tokens) {
    if (id == kSampledLastStep && s.tokens.size() == 1) continue;
    if (id < 0 || id >= limits_.vocab_size)
      return plan_fault(s, fmt::format("token id {}; the vocabulary has {}", id, limits_.vocab_size));
  }
  if (s.next_prompt_token >= limits_.vocab_size) {
    return plan_fault(s, fmt::format("next prompt token {}; the vocabulary has {}", s.next_prompt_token,
                                     limits_.vocab_size));
  }
  return ok();
}

Status HostStep::check_blocks(const PlannedSequence& s, int64_t length) const {
  const int64_t blocks = blocks_for(length, limits_.block_tokens);
  if (static_cast<int64_t>(s.block_table.size()) < blocks) {
    return plan_fault(
        s, fmt::format("{} slots need {} blocks; its table has {}", length, blocks, s.block_table.size()));
  }
  const int64_t first = tables_ == StepTables::kCopied ? 0 : s.list_length_before / limits_.block_tokens;
  for (int64_t i = first; i < blocks; ++i) {
    const int32_t block = value(s.block_table[static_cast<size_t>(i)]);
    if (block < 0 || block >= limits_.num_blocks)
      return plan_fault(s, fmt::format("block {}; the cache has {}", block, limits_.num_blocks));
  }
  return ok();
}

void HostStep::add_rows(const PlannedSequence& s) {
  for (size_t i = 0; i < s.tokens.size(); ++i) {
    // A row that overwrites has no slot before set_slot(): padding, should that be forgotten.
    const int64_t slot = s.overwrites ? -1 : slot_in(s, s.list_length_before + static_cast<int64_t>(i));
    if (s.tokens[i] == kSampledLastStep)
      sampled_rows_.push_back({static_cast<int64_t>(ids_.size()), s.sequence});
    ids_.push_back(std::max(s.tokens[i], 0));
    positions_.push_back(s.first_position + static_cast<int32_t>(i));
    slots_.push_back(slot);
  }
  overwrites_ = overwrites_ || s.overwrites;
}

int64_t HostStep::slot_in(const PlannedSequence& s, int64_t list_slot) const {
  const int64_t block = value(s.block_table[static_cast<size_t>(list_slot / limits_.block_tokens)]);
  return block * limits_.block_tokens + list_slot % limits_.block_tokens;
}

void HostStep::add_window(const PlannedSequence& s) {
  const int32_t window = sliding_window(s.policy), sinks = sinks_of(s.policy);
  windows_.push_back(window);
  sink_slots_.push_back(sinks);
  has_windows_ = has_windows_ || window > 0;
  has_sinks_ = has_sinks_ || sinks > 0;
  // The sinks stand right before the window: the row's index in a full list of sinks + recent
  // (Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, 3.2: positions in the cache).
  const int32_t farthest = sinks + window - 1;
  for (int32_t i = 0; i < static_cast<int32_t>(s.tokens.size()); ++i)
    sink_positions_.push_back(sinks > 0 ? std::min(s.first_position + i, farthest) : s.first_position + i);
}

void HostStep::spread_slots(int32_t num_layers, int32_t num_kv_heads) {
  const std::vector<int64_t> rows = std::exchange(slots_, {});
  for (int32_t layer = 0; layer < num_layers; ++layer)
    for (const int64_t slot : rows) slots_.insert(slots_.end(), static_cast<size_t>(num_kv_heads), slot);
  slot_stride_ = num_kv_heads;
  slot_layer_stride_ = static_cast<int64_t>(rows.size()) * num_kv_heads;
}

void HostStep::set_slot(const PlannedSequence& s, int64_t row, int32_t layer, int32_t head,
                        int32_t list_slot) {
  slots_[static_cast<size_t>(layer * slot_layer_stride_ + row * slot_stride_ + head)] = slot_in(s, list_slot);
}

// A whole copy of the table each step: 256 lists of 256 blocks are 262 kB, under 20 us of this thread's time
// and none of the engine's.
void HostStep::copy_table(const PlannedSequence& s, int64_t length) {
  const int64_t blocks = blocks_for(length, limits_.block_tokens);
  const size_t row = lengths_.size() * static_cast<size_t>(table_stride_);
  block_table_.resize(row + static_cast<size_t>(table_stride_), 0);
  for (int64_t i = 0; i < blocks; ++i)
    block_table_[row + static_cast<size_t>(i)] = value(s.block_table[static_cast<size_t>(i)]);
}

void HostStep::add_list(const PlannedSequence& s, int64_t length) {
  if (tables_ == StepTables::kCopied) copy_table(s, length);
  lengths_.push_back(static_cast<int32_t>(length));
  query_start_.push_back(static_cast<int32_t>(ids_.size()));
  max_rows_ = std::max(max_rows_, static_cast<int32_t>(s.tokens.size()));
  max_length_ = std::max(max_length_, static_cast<int32_t>(length));
}

void HostStep::add_logits(const PlannedSequence& s, int64_t first_row) {
  num_samples_ += static_cast<int64_t>(s.samples.size());
  const auto count = static_cast<int64_t>(s.tokens.size());
  const int64_t skipped = s.prompt_logprobs >= 0 ? 0 : count - 1;
  if (s.prompt_logprobs < 0 && s.samples.empty()) return;
  wanted_.push_back(
      {.sequence = &s, .first = static_cast<int64_t>(logits_rows_.size()), .count = count - skipped});
  for (int64_t i = skipped; i < count; ++i) logits_rows_.push_back(static_cast<int32_t>(first_row + i));
}

StepArrays HostStep::arrays() const {
  return {.ids = ids_.data(),
          .positions = positions_.data(),
          .slots = slots_.data(),
          .query_start = query_start_.data(),
          .lengths = lengths_.data(),
          .block_table = tables_ == StepTables::kCopied ? block_table_.data() : nullptr,
          .logits_rows = logits_rows_.data(),
          .windows = has_windows_ ? windows_.data() : nullptr,
          .sink_slots = has_sinks_ ? sink_slots_.data() : nullptr,
          .sink_positions = has_sinks_ ? sink_positions_.data() : nullptr,
          .slot_stride = slot_stride_,
          .slot_layer_stride = slot_layer_stride_,
          .overwrites = overwrites_,
          .rows = static_cast<int64_t>(ids_.size()),
          .table_stride = table_stride_,
          .num_logits_rows = static_cast<int64_t>(logits_rows_.size()),
          .num_sequences = static_cast<int32_t>(lengths_.size()),
          .max_rows = max_rows_,
          .max_length = max_length_,
          .all_rows_have_logits = logits_rows_.size() == ids_.size()};
}

CopyGroups::CopyGroups(int32_t num_blocks)
    : read_in_(static_cast<size_t>(num_blocks), 0), written_in_(static_cast<size_t>(num_blocks), 0) {}

void CopyGroups::begin_group() {
  if (!pairs_.empty()) ends_.push_back(static_cast<int64_t>(pairs_.size()) / 2);
  ++group_;
}

Status CopyGroups::build(std::span<const BlockCopy> copies) {
  pairs_.clear();
  ends_.clear();
  begin_group();
  for (const BlockCopy& copy : copies) {
    const int32_t source = value(copy.source), target = value(copy.target);
    for (const int32_t block : {source, target}) {
      if (block < 0 || block >= static_cast<int32_t>(read_in_.size())) {
        return error(Code::kInternal,
                     fmt::format("plan: a copy names block {}; the cache has {}", block, read_in_.size()));
      }
    }
    const bool depends = written_in_[static_cast<size_t>(source)] == group_ ||
                         written_in_[static_cast<size_t>(target)] == group_ ||
                         read_in_[static_cast<size_t>(target)] == group_;
    if (depends) begin_group();
    read_in_[static_cast<size_t>(source)] = group_;
    written_in_[static_cast<size_t>(target)] = group_;
    pairs_.insert(pairs_.end(), {source, target});
  }
  if (!pairs_.empty()) ends_.push_back(static_cast<int64_t>(pairs_.size()) / 2);
  return ok();
}

void CopyGroups::run(Kernels& kernels, char* arena, int64_t block_bytes, const int32_t* placed) const {
  int64_t begin = 0;
  for (const int64_t end : ends_) {
    kernels.copy_blocks(
        {.arena = arena, .block_bytes = block_bytes, .pairs = placed + 2 * begin, .count = end - begin});
    begin = end;
  }
}

}  // namespace quire
