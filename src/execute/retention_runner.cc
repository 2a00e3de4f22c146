#include "src/execute/retention_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "src/execute/retention_plan.h"

namespace quire {
namespace {

void copy_ids(std::span<const BlockId> blocks, std::vector<int32_t>& out) {
  out.clear();
  for (const BlockId block : blocks) out.push_back(value(block));
}

constexpr size_t kMostFailed = 64;  // noted without a need for memory

}  // namespace

RetentionRunner::RetentionRunner(Kernels& kernels, const KvLayout& layout, char* arena, int32_t num_q_heads)
    : kernels_(kernels), layout_(layout), arena_(arena), num_q_heads_(num_q_heads) {
  failed_.reserve(kMostFailed);
}

void RetentionRunner::forget(std::span<const SequenceId> sequences) {
  for (const SequenceId id : sequences) {
    states_.erase(value(id));
    std::erase(failed_, id);
  }
}

Status RetentionRunner::fork(std::span<const PolicyFork> forks) {
  for (const PolicyFork& f : forks) {
    const auto source = states_.find(value(f.source));
    if (source == states_.end()) return misfit(f);
    const State& state = source->second;
    guarded(f.target, [&] { states_.insert_or_assign(value(f.target), state); });
  }
  return ok();
}

template <class Action>
bool RetentionRunner::guarded(SequenceId sequence, const Action& action) {
  try {
    action();
    return true;
  } catch (const std::bad_alloc&) {
    fail(sequence);
    return false;
  }
}

void RetentionRunner::fail(SequenceId sequence) {
  states_.erase(value(sequence));
  failed_.push_back(sequence);
}

bool RetentionRunner::has_failed(SequenceId sequence) const {
  return std::find(failed_.begin(), failed_.end(), sequence) != failed_.end();
}

// A new sequence may start behind a cached prefix, whose tokens lie in order.
RetentionRunner::State& RetentionRunner::state_of(const PlannedSequence& s) {
  const auto [entry, is_new] = states_.try_emplace(value(s.sequence));
  State& state = entry->second;
  if (!is_new) return state;
  state.lists_per_layer = traits(s.policy).shard == ListShard::kLayerHead ? layout_.num_kv_heads : 1;
  state.lists.resize(static_cast<size_t>(layout_.num_layers) * state.lists_per_layer);
  for (RetentionList& list : state.lists)
    for (int32_t position = 0; position < s.first_position; ++position) list.append(position);
  return state;
}

Status RetentionRunner::begin(const BatchPlan& plan, HostStep& step) {
  works_.clear();
  wants_logits_ = wants_sums_ = false;
  num_sequences_ = static_cast<int64_t>(plan.sequences.size());
  side_stride_ = rows_ = 0;
  const bool spread =
      std::any_of(plan.sequences.begin(), plan.sequences.end(), [](const auto& s) { return s.overwrites; });
  if (spread) step.spread_slots(layout_.num_layers, layout_.num_kv_heads);
  for (const PlannedSequence& s : plan.sequences) {
    side_stride_ = std::max<int64_t>(side_stride_, s.list_length_after());
    Work work{.sequence = &s, .index = &s - plan.sequences.data(), .first_row = rows_};
    rows_ += static_cast<int64_t>(s.tokens.size());
    if (!goes_by_scores(s) || has_failed(s.sequence)) continue;
    Status begun = ok();
    if (!guarded(s.sequence, [&] { begun = begin_sequence(s, work, step); })) continue;
    if (!begun) return begun;
    works_.push_back(work);
  }
  return ok();
}

Status RetentionRunner::begin_sequence(const PlannedSequence& s, Work& work, HostStep& step) {
  State& state = state_of(s);
  const auto end = s.first_position + static_cast<int32_t>(s.tokens.size());
  work.state = &state;
  work.in_prompt = in_prompt(s);
  work.ends_prompt = ends_prompt(s);
  if (work.in_prompt && end > s.num_prompt_tokens) return misfit(s, "a chunk runs past the prompt");
  if (!s.cut_source.empty())
    if (Status moved = move_kept(s, state); !moved) return moved;
  append(s, work, step);
  if (state.lists.front().num_slots() != s.list_length_after())
    return misfit(s, fmt::format("the list has {} slots, the plan {}", state.lists.front().num_slots(),
                                 s.list_length_after()));
  const bool sums = traits(s.policy).column_sums;
  wants_sums_ = wants_sums_ || (work.in_prompt && sums);
  wants_logits_ = wants_logits_ || !work.in_prompt || (work.ends_prompt && !sums);
  return ok();
}

void RetentionRunner::append(const PlannedSequence& s, const Work& work, HostStep& step) {
  const int32_t heads_of_list = layout_.num_kv_heads / work.state->lists_per_layer;
  for (size_t i = 0; i < work.state->lists.size(); ++i) {
    int32_t slot = 0;
    for (size_t t = 0; t < s.tokens.size(); ++t)
      slot = work.state->lists[i].append(s.first_position + static_cast<int32_t>(t));
    if (!s.overwrites) continue;
    const auto layer = static_cast<int32_t>(i) / work.state->lists_per_layer,
               list = static_cast<int32_t>(i) % work.state->lists_per_layer;
    for (int32_t head = list * heads_of_list; head < (list + 1) * heads_of_list; ++head)
      step.set_slot(s, work.first_row, layer, head, slot);
  }
}

// The plan has fresh blocks for what was kept; every layer and head takes its own.
Status RetentionRunner::move_kept(const PlannedSequence& s, State& state) {
  if (state.kept.empty() || static_cast<int32_t>(state.kept.front().size()) != s.list_length_before)
    return misfit(s, fmt::format("a cut to {} slots; {} were kept", s.list_length_before,
                                 state.kept.empty() ? 0 : state.kept.front().size()));
  for (const std::vector<int32_t>& kept : state.kept)  // in position order, so the last is the farthest
    if (kept.back() >= static_cast<int64_t>(s.cut_source.size()) * layout_.block_tokens)
      return misfit(s, fmt::format("a cut from {} blocks of {} slots; slot {} is kept", s.cut_source.size(),
                                   layout_.block_tokens, kept.back()));
  move_slots_.clear();
  const int32_t heads_of_list = layout_.num_kv_heads / state.lists_per_layer;
  for (const std::vector<int32_t>& kept : state.kept)
    for (int32_t head = 0; head < heads_of_list; ++head)
      move_slots_.insert(move_slots_.end(), kept.begin(), kept.end());
  copy_ids(s.cut_source, move_source_);
  copy_ids(s.block_table, move_target_);
  kernels_.move_slots({.arena = arena_,
                       .layout = layout_,
                       .source_blocks = move_source_.data(),
                       .target_blocks = move_target_.data(),
                       .source_slots = move_slots_.data(),
                       .source_stride = s.list_length_before,
                       .count = s.list_length_before});
  state.kept.clear();
  return ok();
}

// The side outputs are of all these sequences together: without them none of the policies can go on, and the others run as they would.
void RetentionRunner::attach(StepArrays& arrays) {
  const StepArrays before = arrays;
  try {
    attach_buffers(arrays);
  } catch (const std::bad_alloc&) {
    arrays = before;
    for (const Work& work : works_) fail(work.sequence->sequence);
    works_.clear();
  }
}

void RetentionRunner::attach_buffers(StepArrays& arrays) {
  const auto room = [](std::vector<float>& buffer, int64_t floats) {
    if (static_cast<int64_t>(buffer.size()) < floats) buffer.resize(static_cast<size_t>(floats));
    return buffer.data();
  };
  arrays.side_stride = side_stride_;
  arrays.lse = room(lse_, rows_ * num_q_heads_);
  if (wants_logits_) arrays.row_logits = room(row_logits_, num_sequences_ * num_q_heads_ * side_stride_);
  if (!wants_sums_) return;
  arrays.column_sums = room(column_sums_, num_sequences_ * num_q_heads_ * side_stride_);
  clear_sums();
}

// As many as the step has: the buffer is of the largest so far.
void RetentionRunner::clear_sums() {
  std::fill_n(column_sums_.begin(), num_sequences_ * num_q_heads_ * side_stride_, 0.0f);
}

void RetentionRunner::after_layer(int32_t layer) {
  for (Work& work : works_)
    if (!work.failed) work.failed = !guarded(work.sequence->sequence, [&] { take_layer(work, layer); });
  if (wants_sums_) clear_sums();
}

void RetentionRunner::take_layer(Work& work, int32_t layer) {
  if (!work.in_prompt)
    take_decode(work, layer);
  else if (work.ends_prompt || traits(work.sequence->policy).column_sums)
    take_prompt(work, layer);
}

// The scores that the cut goes by: for H2O column sums, which add up over chunks; for TOVA what the prompt's last row gave.
void RetentionRunner::take_prompt(const Work& work, int32_t layer) {
  State& state = *work.state;
  state.scores.resize(state.lists.size());
  const int64_t length = work.sequence->list_length_after(), heads = heads_per_list(state);
  for (int64_t list = 0; list < state.lists_per_layer; ++list) {
    std::vector<float>& scores = state.scores[static_cast<size_t>(layer * state.lists_per_layer + list)];
    scores.resize(static_cast<size_t>(length), 0.0f);
    const int64_t first = work.index * num_q_heads_ + first_head(state, list);
    if (traits(work.sequence->policy).column_sums) {
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j < length; ++j)
          scores[static_cast<size_t>(j)] += column_sums_[static_cast<size_t>((first + h) * side_stride_ + j)];
    } else {
      const int64_t last_row = work.first_row + static_cast<int64_t>(work.sequence->tokens.size()) - 1;
      const std::span<const float> lse(lse_.data() + last_row * num_q_heads_ + first_head(state, list),
                                       static_cast<size_t>(heads));
      mean_probabilities(
          {row_logits_.data() + first * side_stride_, static_cast<size_t>(heads * side_stride_)},
          side_stride_, lse, scores);
    }
  }
}

void RetentionRunner::take_decode(const Work& work, int32_t layer) {
  State& state = *work.state;
  const int64_t heads = heads_per_list(state);
  const PolicySpec& policy = work.sequence->policy;
  probabilities_.resize(static_cast<size_t>(work.sequence->list_length_after()));
  for (int64_t list = 0; list < state.lists_per_layer; ++list) {
    const int64_t first = work.index * num_q_heads_ + first_head(state, list);
    const std::span<const float> logits(row_logits_.data() + first * side_stride_,
                                        static_cast<size_t>(heads * side_stride_));
    const std::span<const float> lse(lse_.data() + work.first_row * num_q_heads_ + first_head(state, list),
                                     static_cast<size_t>(heads));
    if (policy.kind == RetentionKind::kTova) {
      mean_probabilities(logits, side_stride_, lse, probabilities_);
    } else {
      std::fill(probabilities_.begin(), probabilities_.end(), 0.0f);
      add_probabilities(logits, side_stride_, lse, probabilities_);
    }
    state.lists[static_cast<size_t>(layer * state.lists_per_layer + list)].on_decode_row(policy,
                                                                                         probabilities_);
  }
}

void RetentionRunner::cut(const Work& work) {
  State& state = *work.state;
  state.kept.clear();
  for (size_t i = 0; i < state.lists.size(); ++i)
    state.kept.push_back(state.lists[i].cut(work.sequence->policy, state.scores[i]));
  state.scores.clear();
  if (state.lists.front().num_slots() == work.sequence->list_length_after())
    state.kept.clear();  // nothing was dropped: no move follows
}

void RetentionRunner::end_sequence(const Work& work, StepResult& result) {
  if (work.ends_prompt) cut(work);
  const PlannedSequence& s = *work.sequence;
  for (const PlannedSample& sample : s.samples)
    if (sample.sequence != s.sequence) states_[value(sample.sequence)] = *work.state;
  if (!s.dump_kv) return;
  KvDump layers(static_cast<size_t>(layout_.num_layers));
  for (size_t i = 0; i < work.state->lists.size(); ++i)
    layers[i / work.state->lists_per_layer].push_back(work.state->lists[i].live_positions());
  const auto report = [&](SequenceId id) { result.kv_dumps.push_back({id, layers}); };
  report(s.sequence);
  for (const PlannedSample& sample : s.samples)
    if (sample.sequence != s.sequence) report(sample.sequence);
}

void RetentionRunner::end(const BatchPlan& plan, StepResult& result) {
  for (const Work& work : works_)
    if (!work.failed) guarded(work.sequence->sequence, [&] { end_sequence(work, result); });
  if (failed_.empty()) return;
  for (const PlannedSequence& s : plan.sequences) {
    if (!has_failed(s.sequence)) continue;
    for (const PlannedSample& sample : s.samples)  // what was to go on from it has nothing to go on from
      if (!has_failed(sample.sequence)) fail(sample.sequence);
    result.failures.push_back(
        {s.sequence, error(Code::kResourceExhausted,
                           fmt::format("no host memory for the lists and scores of kv_policy '{}'",
                                       to_string(s.policy)))});
  }
}

}  // namespace quire
