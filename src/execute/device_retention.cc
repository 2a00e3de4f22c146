#include "src/execute/device_retention.h"

#include <algorithm>

#include "src/execute/retention_plan.h"
#include "src/policy/policy_memory.h"

namespace quire {
namespace {

constexpr size_t kMostIdleDumps = 64;

}  // namespace

// ---- memory ----

DeviceRetention::DeviceRetention(StreamDevice& device, Kernels& kernels, const KvLayout& layout, char* arena,
                                 int32_t num_q_heads)
    : device_(device), kernels_(kernels), layout_(layout), arena_(arena), num_q_heads_(num_q_heads) {}

void DeviceRetention::forget(std::span<const SequenceId> sequences) {
  for (const SequenceId id : sequences) states_.erase(value(id));
}

Result<DeviceRetention::State*> DeviceRetention::state_of(const PlannedSequence& s) {
  const auto found = states_.find(value(s.sequence));
  if (found != states_.end()) return &found->second;
  if (!in_prompt(s)) return misfit(s, "a row behind a prompt that was not seen");
  Result<State> made = new_state(s);
  if (!made) return made.error();
  return &states_.emplace(value(s.sequence), std::move(*made)).first->second;
}

// Positions, free slots and, where sums decide, scores of all lists.
void DeviceRetention::place_lists(State& state, char* at) const {
  RetentionItem& item = state.item;
  const int64_t lists = num_lists(state), slots = lists * item.room;
  const bool has_scores = item.scores != nullptr;
  item.positions = reinterpret_cast<int32_t*>(at);
  item.free_slots = item.positions + slots;
  if (has_scores) item.scores = reinterpret_cast<float*>(item.free_slots + lists);
}

// The request's part: sums over the prompt, then the lists of each sample, of which this is the first.
Result<DeviceRetention::State> DeviceRetention::new_state(const PlannedSequence& s) {
  const PolicyTraits t = traits(s.policy);
  const PolicyMemoryLimits shape{.num_layers = layout_.num_layers, .num_kv_heads = layout_.num_kv_heads};
  const int64_t sums = policy_sum_bytes(s.policy, s.num_prompt_tokens, shape);
  State state{.bytes = policy_list_bytes(s.policy, s.list_room, shape)};
  const int64_t end = s.policy_memory + sums + state.bytes;
  if (s.policy_memory < 0 || s.list_room < 1 || end > states_memory_.bytes())
    return misfit(s, fmt::format("lists of {} slots at bytes {} to {} of {}", s.list_room, s.policy_memory,
                                 end, states_memory_.bytes()));
  RetentionItem& item = state.item;
  item.lists = t.shard == ListShard::kLayerHead ? layout_.num_kv_heads : 1;
  item.capacity = capacity(s.policy);
  item.room = s.list_room;
  item.recent = s.policy.recent;
  item.prompt_room = s.num_prompt_tokens;
  char* at = states_memory_.as<char>() + s.policy_memory;
  if (t.column_sums) {
    item.prompt_sums = item.scores = reinterpret_cast<float*>(at);
    device_.set_zero(item.prompt_sums, sums);
  }
  place_lists(state, at + sums);
  return state;
}

Status DeviceRetention::reserve(const RetentionRoom& room) {
  const int64_t floats = room.slots * num_q_heads_ * 4;
  const int64_t slot_bytes = int64_t{layout_.num_layers} * room.rows * layout_.num_kv_heads * 8;
  struct Wanted {
    DeviceBuffer& buffer;
    int64_t bytes;
    const char* what;
  };
  const char* side = "side outputs of attention";
  const Wanted all[] = {{lse_, room.rows * num_q_heads_ * 4, side},
                        {row_logits_, floats, side},
                        {column_sums_, floats, side},
                        {slots_, slot_bytes, side},
                        {states_memory_, room.state_bytes, "lists of KV policies (kv_policy_bytes)"}};
  for (const Wanted& wanted : all) {
    Result<DeviceBuffer> memory = device_.allocate(wanted.bytes, wanted.what);
    if (!memory) return memory.error();
    wanted.buffer = std::move(*memory);
  }
  device_.set_zero(column_sums_.data(), column_sums_.bytes());
  return ok();
}

int64_t DeviceRetention::reserved_bytes(const RetentionRoom& room, const KvLayout& layout,
                                        int32_t num_q_heads) {
  return room.slots * bytes_of_slot(num_q_heads) + room.rows * num_q_heads * 4 +
         int64_t{layout.num_layers} * room.rows * layout.num_kv_heads * 8;
}

// ---- a step ----

Status DeviceRetention::begin(const BatchPlan& plan, int64_t max_rows) {
  items_.clear();
  if (std::none_of(plan.sequences.begin(), plan.sequences.end(), goes_by_scores)) return ok();
  item_of_row_.clear();
  cut_blocks_.clear();
  cuts_.clear();
  row_logits_start_.assign(plan.sequences.size(), -1);
  column_sums_start_.assign(plan.sequences.size(), -1);
  logits_floats_ = sums_floats_ = 0;
  decodes_ = in_prompts_ = false;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    const auto first_row = static_cast<int64_t>(item_of_row_.size());
    item_of_row_.resize(item_of_row_.size() + s.tokens.size(),
                        goes_by_scores(s) ? static_cast<int32_t>(items_.size()) : -1);
    if (!goes_by_scores(s)) continue;
    if (Status added = add_item(s, static_cast<int32_t>(i), first_row); !added) return added;
  }
  return check_room(max_rows);
}

// The device moves what its lists say: a plan that means other slots would read and write beyond the lists' blocks.
Status DeviceRetention::check_cut(const PlannedSequence& s, const RetentionItem& item) const {
  const int32_t kept = std::min(item.capacity, item.prompt_room);
  if (s.list_length_before != kept)
    return misfit(s, fmt::format("a cut to {} slots; {} are kept", s.list_length_before, kept));
  if (static_cast<int64_t>(s.cut_source.size()) * layout_.block_tokens < item.prompt_room)
    return misfit(s, fmt::format("a cut from {} blocks of {} slots; the prompt's list has {}",
                                 s.cut_source.size(), layout_.block_tokens, item.prompt_room));
  return ok();
}

Status DeviceRetention::add_item(const PlannedSequence& s, int32_t index, int64_t first_row) {
  const Result<State*> state = state_of(s);
  if (!state) return state.error();
  const auto end = s.first_position + static_cast<int32_t>(s.tokens.size());
  if (in_prompt(s) && end > s.num_prompt_tokens) return misfit(s, "a chunk runs past the prompt");
  RetentionItem item = (*state)->item;
  item.phase = !in_prompt(s)    ? RetentionPhase::kDecode
               : ends_prompt(s) ? RetentionPhase::kCut
                                : RetentionPhase::kSum;
  item.sequence = index;
  item.row = static_cast<int32_t>(first_row + static_cast<int64_t>(s.tokens.size()) - 1);
  item.length = s.list_length_after();
  item.position = end - 1;
  item.overwrites = s.overwrites ? 1 : 0;
  if (item.phase == RetentionPhase::kDecode && item.length > item.room)
    return misfit(s, fmt::format("a list of {} slots; {} are kept", item.length, item.capacity));
  if (item.phase != RetentionPhase::kDecode && item.length != end)
    return misfit(s, "a prompt's list is not whole");
  const int64_t samples = std::max<int64_t>(static_cast<int64_t>(s.samples.size()), 1);
  const auto last = reinterpret_cast<const char*>(item.positions) + samples * (*state)->bytes;
  if (item.phase == RetentionPhase::kCut && last > states_memory_.as<char>() + states_memory_.bytes())
    return misfit(s, fmt::format("lists of {} samples of {} bytes each", samples, (*state)->bytes));
  if (!s.cut_source.empty()) {
    if (Status fits = check_cut(s, item); !fits) return fits;
    cuts_.push_back({.sequence = index,
                     .first_block = static_cast<int32_t>(cut_blocks_.size()),
                     .state = *state,
                     .count = s.list_length_before});
    for (const BlockId block : s.cut_source) cut_blocks_.push_back(value(block));
  }
  decodes_ = decodes_ || item.phase == RetentionPhase::kDecode;
  in_prompts_ = in_prompts_ || item.phase != RetentionPhase::kDecode;
  want_side_outputs(s, item);
  items_.push_back(item);
  return ok();
}

// Row logits behind the prompt, and of its last row where that decides alone; column sums of every chunk where sums decide.
void DeviceRetention::want_side_outputs(const PlannedSequence& s, const RetentionItem& item) {
  const int64_t floats = int64_t{num_q_heads_} * item.length;
  const bool sums = traits(s.policy).column_sums, prompt = item.phase != RetentionPhase::kDecode;
  if (prompt && sums) {
    column_sums_start_[static_cast<size_t>(item.sequence)] = sums_floats_;
    sums_floats_ += floats;
  } else if (item.phase != RetentionPhase::kSum) {
    row_logits_start_[static_cast<size_t>(item.sequence)] = logits_floats_;
    logits_floats_ += floats;
  }
}

// A plan has no more slots than the cache under such policies (Scheduler::has_score_room) and no more rows than a step.
Status DeviceRetention::check_room(int64_t rows) const {
  if (rows * num_q_heads_ * 4 > lse_.bytes())
    return error(Code::kInternal,
                 fmt::format("plan: {} rows under policies that go by scores; there is room for {}", rows,
                             lse_.bytes() / (num_q_heads_ * 4)));
  const int64_t floats = std::max(logits_floats_, sums_floats_);
  if (floats * 4 > row_logits_.bytes())
    return error(Code::kInternal,
                 fmt::format("plan: {} slots under policies that go by scores; there is room for {}",
                             floats / num_q_heads_, row_logits_.bytes() / (num_q_heads_ * 4)));
  return ok();
}

RetentionArrays DeviceRetention::arrays() const {
  if (!active()) return {};
  return {.items = items_,
          .item_of_row = item_of_row_,
          .row_logits_start = row_logits_start_,
          .column_sums_start = column_sums_start_,
          .cut_blocks = cut_blocks_};
}

void DeviceRetention::before_forward(const PlacedRetention& placed, int32_t num_items, StepArrays& arrays) {
  for (const Cut& cut : cuts_) {
    const RetentionItem& item = cut.state->item;
    kernels_.move_slots({.arena = arena_,
                         .layout = layout_,
                         .source_blocks = placed.cut_blocks + cut.first_block,
                         .target_blocks = arrays.block_table + cut.sequence * arrays.table_stride,
                         .source_slots = item.positions,
                         .source_stride = item.room,
                         .heads_per_list = layout_.num_kv_heads / item.lists,
                         .count = cut.count});
  }
  if (decodes_) {
    kernels_.retention_slots({.items = placed.items,
                              .item_of_row = placed.item_of_row,
                              .row_slots = arrays.slots,
                              .slots = slots_.as<int64_t>(),
                              .block_table = arrays.block_table,
                              .table_stride = arrays.table_stride,
                              .rows = arrays.rows,
                              .num_layers = layout_.num_layers,
                              .num_kv_heads = layout_.num_kv_heads,
                              .block_tokens = layout_.block_tokens});
    arrays.slots = slots_.as<int64_t>();
    arrays.slot_stride = layout_.num_kv_heads;
    arrays.slot_layer_stride = arrays.rows * layout_.num_kv_heads;
  }
  arrays.lse = lse_.as<float>();
  arrays.row_logits = logits_floats_ > 0 ? row_logits_.as<float>() : nullptr;
  arrays.row_logits_start = placed.row_logits_start;
  arrays.column_sums = sums_floats_ > 0 ? column_sums_.as<float>() : nullptr;
  arrays.column_sums_start = placed.column_sums_start;
  scores_ = {.items = placed.items,
             .num_items = num_items,
             .num_q_heads = num_q_heads_,
             .num_kv_heads = layout_.num_kv_heads,
             .lse = arrays.lse,
             .row_logits = arrays.row_logits,
             .row_logits_start = placed.row_logits_start,
             .column_sums = arrays.column_sums,
             .column_sums_start = placed.column_sums_start};
}

void DeviceRetention::after_layer(int32_t layer) {
  scores_.layer = layer;
  kernels_.retention_scores(scores_);
}

void DeviceRetention::end(const BatchPlan& plan, std::vector<QueuedDump>& dumps,
                          std::vector<SequenceFailure>& failures) {
  for (const RetentionItem& item : items_) {
    const PlannedSequence& s = plan.sequences[static_cast<size_t>(item.sequence)];
    if (item.phase == RetentionPhase::kCut) {
      states_.at(value(s.sequence)).item.prompt_sums = nullptr;
      if (Status forked = fork_samples(s); !forked) {
        failures.push_back({s.sequence, forked.error()});
        continue;
      }
    }
    if (!s.dump_kv) continue;
    if (Status dumped = dump(s, dumps.emplace_back()); !dumped) {
      dumps.pop_back();
      failures.push_back({s.sequence, dumped.error()});
    }
  }
}

// Samples of the prompt that has just been cut go on from its lists, each with lists of its own.
Status DeviceRetention::fork_samples(const PlannedSequence& s) {
  int32_t place = 0;
  for (const PlannedSample& sample : s.samples)
    if (sample.sequence != s.sequence)
      if (Status copied = copy_state(s.sequence, sample.sequence, ++place); !copied) return copied;
  return ok();
}

Status DeviceRetention::fork(std::span<const PolicyFork> forks) {
  for (const PolicyFork& f : forks) {
    if (!states_.contains(value(f.source))) return misfit(f);
    if (Status copied = copy_state(f.source, f.target, f.place); !copied) return copied;
  }
  return ok();
}

// On the same stream as the steps: after the last that changed the source, before the next that reads the target.
Status DeviceRetention::copy_state(SequenceId source, SequenceId target, int32_t place) {
  const State from = states_.at(value(source));
  State to = from;
  to.place = place;
  char* at = reinterpret_cast<char*>(from.item.positions) + (place - from.place) * from.bytes;
  if (place == from.place || at < states_memory_.as<char>() ||
      at + from.bytes > states_memory_.as<char>() + states_memory_.bytes())
    return error(
        Code::kInternal,
        fmt::format("plan, sequence {} begins as {} is: lists of {} bytes in place {}, from place {}",
                    value(target), value(source), from.bytes, place, from.place));
  place_lists(to, at);
  device_.copy_on_device(at, from.item.positions, from.bytes);
  states_.insert_or_assign(value(target), to);
  return ok();
}

// ---- dumps ----

Status DeviceRetention::dump(const PlannedSequence& s, QueuedDump& out) {
  const State& state = states_.at(value(s.sequence));
  out.sequences.push_back(s.sequence);
  for (const PlannedSample& sample : s.samples)
    if (sample.sequence != s.sequence) out.sequences.push_back(sample.sequence);
  out.lists_per_layer = state.item.lists;
  out.room = state.item.room;
  out.length = s.list_length_after();
  if (in_prompt(s) && !ends_prompt(s)) return ok();
  if (ends_prompt(s)) out.length = std::min(out.length, state.item.capacity);
  const int64_t bytes = num_lists(state) * (state.item.room + 1) * 4;
  Result<DeviceBuffer> back = take_pinned(bytes);
  if (!back) return back.error();
  out.back = std::move(*back);
  device_.copy_to_host(out.back.data(), state.item.positions, bytes);
  return ok();
}

Result<DeviceBuffer> DeviceRetention::take_pinned(int64_t bytes) {
  const auto fits = [&](const DeviceBuffer& buffer) { return buffer.bytes() >= bytes; };
  const auto found = std::find_if(pinned_.begin(), pinned_.end(), fits);
  if (found == pinned_.end()) return device_.allocate_pinned(bytes, "dump of a KV policy's lists");
  DeviceBuffer buffer = std::move(*found);
  pinned_.erase(found);
  return buffer;
}

void DeviceRetention::report(QueuedDump dump, std::vector<SequenceKvDump>& out) {
  const int32_t lists = layout_.num_layers * dump.lists_per_layer;
  const auto* positions = dump.back.as<const int32_t>();
  const int32_t* free_slots = positions == nullptr ? nullptr : positions + int64_t{lists} * dump.room;
  KvDump layers(static_cast<size_t>(layout_.num_layers));
  for (int32_t list = 0; list < lists; ++list) {
    std::vector<int32_t>& live = layers[static_cast<size_t>(list / dump.lists_per_layer)].emplace_back();
    for (int32_t slot = 0; slot < dump.length; ++slot)
      if (positions == nullptr || slot != free_slots[list])
        live.push_back(positions == nullptr ? slot : positions[int64_t{list} * dump.room + slot]);
    std::sort(live.begin(), live.end());
  }
  for (const SequenceId id : dump.sequences) out.push_back({id, layers});
  if (dump.back.data() != nullptr && pinned_.size() < kMostIdleDumps) pinned_.push_back(std::move(dump.back));
}

}  // namespace quire
