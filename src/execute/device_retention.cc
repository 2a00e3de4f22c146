#include "src/execute/device_retention.h"

#include <algorithm>
#include <bit>

#include "src/execute/retention_plan.h"

namespace quire {
namespace {

constexpr int64_t kLeastBufferBytes = 4096;

}  // namespace

// ---- memory ----

int64_t BufferStock::size_of(int64_t bytes) {
  const auto unit = std::max<int64_t>(kLeastBufferBytes,
                                      static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)) / 8));
  return (std::max<int64_t>(bytes, 1) + unit - 1) / unit * unit;
}

Result<DeviceBuffer> BufferStock::take(int64_t bytes, const char* what) {
  const int64_t size = size_of(bytes);
  const auto found = free_.find(size);
  if (found == free_.end()) return device_.allocate(size, what);
  DeviceBuffer buffer = std::move(found->second);
  free_.erase(found);
  return buffer;
}

// Whoever used it was queued before whoever takes it next.
void BufferStock::give_back(DeviceBuffer buffer) {
  if (buffer.data() == nullptr) return;
  const int64_t size = buffer.bytes();
  free_.emplace(size, std::move(buffer));
}

DeviceRetention::DeviceRetention(StreamDevice& device, Kernels& kernels, const KvLayout& layout, char* arena,
                                 int32_t num_q_heads)
    : device_(device),
      kernels_(kernels),
      layout_(layout),
      arena_(arena),
      num_q_heads_(num_q_heads),
      stock_(device) {}

void DeviceRetention::forget(std::span<const SequenceId> sequences) {
  for (const SequenceId id : sequences) {
    const auto found = states_.find(value(id));
    if (found == states_.end()) continue;
    stock_.give_back(std::move(found->second.memory));
    stock_.give_back(std::move(found->second.prompt_sums));
    states_.erase(found);
  }
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
int64_t DeviceRetention::state_bytes(const PolicySpec& policy, const KvLayout& layout) {
  const PolicyTraits t = traits(policy);
  const int64_t lists =
      int64_t{layout.num_layers} * (t.shard == ListShard::kLayerHead ? layout.num_kv_heads : 1);
  const int64_t slots = lists * (capacity(policy) + 1);
  return (slots + lists + (t.column_sums ? slots : 0)) * 4;
}

Result<DeviceRetention::State> DeviceRetention::new_state(const PlannedSequence& s) {
  const PolicyTraits t = traits(s.policy);
  State state;
  RetentionItem& item = state.item;
  item.lists = t.shard == ListShard::kLayerHead ? layout_.num_kv_heads : 1;
  item.capacity = capacity(s.policy);
  item.room = item.capacity + 1;
  item.recent = s.policy.recent;
  item.prompt_room = s.num_prompt_tokens;
  const int64_t lists = num_lists(state), slots = lists * item.room;
  Result<DeviceBuffer> memory = stock_.take(state_bytes(s.policy, layout_), "lists of a KV policy");
  if (!memory) return memory.error();
  state.memory = std::move(*memory);
  item.positions = state.memory.as<int32_t>();
  item.free_slots = item.positions + slots;
  if (!t.column_sums) return state;
  item.scores = reinterpret_cast<float*>(item.free_slots + lists);
  const int64_t sum_bytes = lists * item.prompt_room * 4;
  Result<DeviceBuffer> sums = stock_.take(sum_bytes, "column sums of a KV policy");
  if (!sums) return sums.error();
  state.prompt_sums = std::move(*sums);
  item.prompt_sums = state.prompt_sums.as<float>();
  device_.set_zero(item.prompt_sums, sum_bytes);
  return state;
}

Status DeviceRetention::reserve(const RetentionRoom& room) {
  const int64_t floats = room.slots * num_q_heads_ * 4;
  const int64_t slot_bytes = int64_t{layout_.num_layers} * room.rows * layout_.num_kv_heads * 8;
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {{&lse_, room.rows * num_q_heads_ * 4},
                                                       {&row_logits_, floats},
                                                       {&column_sums_, floats},
                                                       {&slots_, slot_bytes}};
  for (const auto& [buffer, bytes] : buffers) {
    Result<DeviceBuffer> memory = device_.allocate(bytes, "side outputs of attention");
    if (!memory) return memory.error();
    *buffer = std::move(*memory);
  }
  device_.set_zero(column_sums_.data(), column_sums_.bytes());
  return stock_states(room);
}

Status DeviceRetention::stock_states(const RetentionRoom& room) {
  std::vector<DeviceBuffer> states;
  for (int32_t i = 0; i < room.sequences; ++i) {
    Result<DeviceBuffer> memory = stock_.take(state_bytes(room.policy, layout_), "lists of a KV policy");
    if (!memory) return memory.error();
    states.push_back(std::move(*memory));
  }
  for (DeviceBuffer& state : states) stock_.give_back(std::move(state));
  return ok();
}

int64_t DeviceRetention::reserved_bytes(const RetentionRoom& room, const KvLayout& layout,
                                        int32_t num_q_heads) {
  return room.slots * bytes_of_slot(num_q_heads) + room.rows * num_q_heads * 4 +
         int64_t{layout.num_layers} * room.rows * layout.num_kv_heads * 8 +
         (room.sequences == 0 ? 0 : room.sequences * BufferStock::size_of(state_bytes(room.policy, layout)));
}

// What a larger step needs than any before it. Only the host waits here, and only then.
Status DeviceRetention::grow(DeviceBuffer& buffer, int64_t bytes, bool zero) {
  if (buffer.bytes() >= bytes) return ok();
  device_.synchronize();
  ++generation_;
  const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)));
  buffer = DeviceBuffer();
  Result<DeviceBuffer> larger = device_.allocate(size, "side outputs of attention");
  if (!larger) return larger.error();
  buffer = std::move(*larger);
  if (zero) device_.set_zero(buffer.data(), size);
  return ok();
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
  return make_room(max_rows);
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

Status DeviceRetention::make_room(int64_t rows) {
  if (Status s = grow(lse_, rows * num_q_heads_ * 4, false); !s) return s;
  if (Status s = grow(row_logits_, logits_floats_ * 4, false); !s) return s;
  if (Status s = grow(column_sums_, sums_floats_ * 4, true); !s) return s;
  return decodes_ ? grow(slots_, int64_t{layout_.num_layers} * rows * layout_.num_kv_heads * 8, false) : ok();
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

Status DeviceRetention::end(const BatchPlan& plan, std::vector<QueuedDump>& dumps) {
  for (const RetentionItem& item : items_) {
    const PlannedSequence& s = plan.sequences[static_cast<size_t>(item.sequence)];
    if (item.phase == RetentionPhase::kCut) {
      State& state = states_.at(value(s.sequence));
      stock_.give_back(std::move(state.prompt_sums));
      state.item.prompt_sums = nullptr;
      if (Status forked = fork(s); !forked) return forked;
    }
    if (s.dump_kv)
      if (Status dumped = dump(s, dumps.emplace_back()); !dumped) return dumped;
  }
  return ok();
}

// Samples of the prompt that has just been cut go on from its lists, each with lists of its own.
Status DeviceRetention::fork(const PlannedSequence& s) {
  for (const PlannedSample& sample : s.samples) {
    if (sample.sequence == s.sequence) continue;
    const State& from = states_.at(value(s.sequence));
    const auto used = static_cast<int64_t>(from.memory.bytes());
    Result<DeviceBuffer> memory = stock_.take(used, "lists of a KV policy");
    if (!memory) return memory.error();
    State to{.memory = std::move(*memory), .prompt_sums = {}, .item = from.item};
    device_.copy_on_device(to.memory.data(), from.memory.data(), used);
    const auto moved = [&](auto*& pointer) {
      if (pointer == nullptr) return;
      const auto offset = reinterpret_cast<char*>(pointer) - from.memory.as<char>();
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(to.memory.as<char>() + offset);
    };
    moved(to.item.positions);
    moved(to.item.free_slots);
    moved(to.item.scores);
    states_.insert_or_assign(value(sample.sequence), std::move(to));
  }
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
  Result<DeviceBuffer> back = device_.allocate_pinned(bytes, "dump of a KV policy's lists");
  if (!back) return back.error();
  out.back = std::move(*back);
  device_.copy_to_host(out.back.data(), state.memory.data(), bytes);
  return ok();
}

void DeviceRetention::report(const QueuedDump& dump, std::vector<SequenceKvDump>& out) const {
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
}

}  // namespace quire
