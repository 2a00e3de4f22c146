#include "src/execute/device_sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/base/check.h"

namespace quire {
namespace {

static_assert(kRulesLeaveNoToken == kRulesLeaveNone && kNoLogitInRow == kNoLogit);

[[noreturn]] void never_joined(SequenceId id) {
  check_failed(fmt::format("a plan names sequence {}, which never joined or has left", value(id)), __FILE__,
               __LINE__);
}

constexpr int64_t kListInts = 8192;  // of a slot
constexpr int64_t kMostSlotBytes = int64_t{64} << 20, kMostEditedBytes = int64_t{256} << 20;
constexpr int64_t kStagingBytes = int64_t{1}
                                  << 20;  // of a turn; more than that in one step waits for the device

int64_t history_ints_of(const DeviceSamplingSizes& s) {
  return (int64_t{s.max_context_tokens} + 3) / 4 * 4;
}
int64_t num_slots(const DeviceSamplingSizes& s) {
  return std::clamp<int64_t>(kMostSlotBytes / ((history_ints_of(s) + kListInts) * 4), 1, s.max_samples);
}
int64_t num_edited_rows(const DeviceSamplingSizes& s) {
  return std::clamp<int64_t>(kMostEditedBytes / (int64_t{s.vocab} * 4), 1, s.max_samples);
}

bool penalizes(const SamplingParams& p) {
  return p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
}
// Apart from min_tokens, which ends.
bool always_edited(const SamplingParams& p) {
  return penalizes(p) || p.no_repeat_ngram > 0 || !p.logit_bias.empty() || !p.allowed_token_ids.empty() ||
         !p.bad_words.empty();
}

// Ids that may not be chosen until min_tokens.
std::vector<TokenId> ending_ids(const PlannedJoin& join) {
  std::vector<TokenId> ids;
  if (!join.sampling->ignore_eos) ids = join.eos_token_ids;
  const std::vector<int32_t>& stops = join.sampling->stop_token_ids;
  ids.insert(ids.end(), stops.begin(), stops.end());
  return ids;
}

// The lists of LogitEdit one behind the other; offsets from the first.
void write_lists(const SamplingParams& p, const std::vector<TokenId>& ending, LogitEdit& edit,
                 std::vector<int32_t>& out) {
  out.clear();
  for (const auto& [id, amount] : p.logit_bias) out.push_back(id);
  for (const auto& [id, amount] : p.logit_bias)
    out.push_back(std::bit_cast<int32_t>(static_cast<float>(amount)));
  out.insert(out.end(), p.allowed_token_ids.begin(), p.allowed_token_ids.end());
  int32_t end = 0;
  out.push_back(end);
  for (const std::vector<int32_t>& word : p.bad_words)
    out.push_back(end += static_cast<int32_t>(word.size()));
  for (const std::vector<int32_t>& word : p.bad_words) out.insert(out.end(), word.begin(), word.end());
  edit.ending = static_cast<int64_t>(out.size());
  out.insert(out.end(), ending.begin(), ending.end());
  edit.num_bias = static_cast<int32_t>(p.logit_bias.size());
  edit.num_allowed = static_cast<int32_t>(p.allowed_token_ids.size());
  edit.num_bad_words = static_cast<int32_t>(p.bad_words.size());
  edit.num_ending = static_cast<int32_t>(ending.size());
}

}  // namespace

DeviceSampling::DeviceSampling(StreamDevice& device, Kernels& kernels, const DeviceSamplingSizes& sizes)
    : device_(device),
      kernels_(kernels),
      sizes_(sizes),
      history_ints_(history_ints_of(sizes)),
      slot_ints_(history_ints_ + kListInts),
      edited_rows_(static_cast<int32_t>(num_edited_rows(sizes))) {
  for (int64_t slot = num_slots(sizes); slot > 0; --slot)
    free_slots_.push_back(static_cast<int32_t>(slot) - 1);
}

int64_t DeviceSampling::device_bytes(const DeviceSamplingSizes& s, int64_t sample_space_bytes) {
  return s.max_samples * (4 + sample_space_bytes) + num_edited_rows(s) * s.vocab * 4 +
         num_slots(s) * (history_ints_of(s) + kListInts) * 4;
}

Status DeviceSampling::allocate() {
  const int64_t samples = sizes_.max_samples, back = samples * (8 + int64_t{sizeof(TopLogprobs)});
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {
      {&space_, samples * kernels_.sample_space_bytes()},
      {&sampled_, samples * 4},
      {&edited_, int64_t{edited_rows_} * sizes_.vocab * 4},
      {&slots_, static_cast<int64_t>(free_slots_.size()) * slot_ints_ * 4}};
  for (const auto& [buffer, bytes] : buffers) {
    Result<DeviceBuffer> memory = device_.allocate(bytes, "sampling");
    if (!memory) return memory.error();
    *buffer = std::move(*memory);
  }
  for (Turn& turn : turns_)
    for (const auto& [buffer, bytes] :
         {std::pair{&turn.back, back}, std::pair{&turn.staging, std::max(kStagingBytes, slot_ints_ * 4)}}) {
      Result<DeviceBuffer> memory = device_.allocate_pinned(bytes, "sampling");
      if (!memory) return memory.error();
      *buffer = std::move(*memory);
    }
  return ok();
}

// ---- sequences ----
void DeviceSampling::begin_turn(int turn) {
  turn_ = turn;
  turns_[turn].staged_bytes = 0;
}

void DeviceSampling::join(const PlannedJoin& join) {
  leave(join.sequence);
  const SamplingParams& p = *join.sampling;
  Sequence s{.sampling = join.sampling, .seed = join.seed, .num_prompt_tokens = join.num_prompt_tokens};
  s.always_edited = always_edited(p);
  s.on_device = p.typical_p >= 1.0 && p.beam_width == 0;
  if (s.on_device && (s.always_edited || p.min_tokens > 0)) s.on_device = place_lists(join, s);
  sequences_[join.sequence] = std::move(s);
}

// Takes a slot for a sequence that needs one. False: it cannot have one.
bool DeviceSampling::place_lists(const PlannedJoin& join, Sequence& s) {
  const SamplingParams& p = *s.sampling;
  write_lists(p, ending_ids(join), s.edit, lists_);
  if (static_cast<int64_t>(lists_.size()) > kListInts || free_slots_.empty()) return false;
  check(static_cast<int64_t>(join.history.size()) <= history_ints_,
        "DeviceSampling: a history longer than the context");
  s.slot = free_slots_.back();
  free_slots_.pop_back();
  s.edit.history = s.slot * slot_ints_;
  s.edit.lists = s.edit.history + history_ints_;
  s.edit.ending += s.edit.lists;
  s.edit.presence = p.presence_penalty;
  s.edit.frequency = p.frequency_penalty;
  s.edit.repetition = static_cast<float>(p.repetition_penalty);
  s.edit.prompt_tokens = join.num_prompt_tokens;
  s.edit.no_repeat_ngram = p.no_repeat_ngram;
  upload(s.edit.history, join.history);
  upload(s.edit.lists, lists_);
  return true;
}

// The stream's order keeps what ran before from seeing it.
void DeviceSampling::upload(int64_t at, std::span<const int32_t> ints) {
  Turn& turn = turns_[turn_];
  const auto bytes = static_cast<int64_t>(ints.size_bytes());
  if (bytes == 0) return;
  if (turn.staged_bytes + bytes > turn.staging.bytes()) {
    device_.synchronize();
    turn.staged_bytes = 0;
  }
  char* from = turn.staging.as<char>() + turn.staged_bytes;
  std::memcpy(from, ints.data(), ints.size_bytes());
  device_.copy_to_device(slots_.as<int32_t>() + at, from, bytes);
  turn.staged_bytes += bytes;
}

void DeviceSampling::leave(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  if (found->second.slot >= 0) free_slots_.push_back(found->second.slot);
  sequences_.erase(found);
}

const DeviceSampling::Sequence& DeviceSampling::sequence(SequenceId id) const {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) [[unlikely]]
    never_joined(id);
  return found->second;
}
int32_t DeviceSampling::last_index(SequenceId id) const {
  return sequence(id).last_index;
}
void DeviceSampling::sampled_on_host(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) [[unlikely]]
    never_joined(id);
  found->second.last_index = -1;
}

// ---- a step ----
void DeviceSampling::note_rows(const BatchPlan& plan, const StepArrays& rows) {
  history_at_.clear();
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const auto found = sequences_.find(plan.sequences[i].sequence);
    if (found == sequences_.end() || found->second.slot < 0) continue;
    if (history_at_.empty()) history_at_.assign(static_cast<size_t>(rows.rows), -1);
    for (int32_t row = rows.query_start[i]; row < rows.query_start[i + 1]; ++row)
      history_at_[static_cast<size_t>(row)] = found->second.edit.history + rows.positions[row];
  }
}

bool DeviceSampling::takes(const PlannedSample& sample) const {
  return !sample.beam && sample.top_candidates <= kMaxTopLogprobs && sequence(sample.sequence).on_device;
}

bool DeviceSampling::collect(const BatchPlan& plan, const HostStep& step,
                             std::vector<DeviceSample>& samples) {
  settings_.clear(), edits_.clear(), reports_.clear(), samples.clear();
  if (step.num_samples() > sizes_.max_samples) return false;
  for (const PlannedSequence& s : plan.sequences) {
    if (s.prompt_logprobs >= 0) return false;
    for (const PlannedSample& sample : s.samples)
      if (!takes(sample)) return false;
  }
  for (const WantedLogits& wanted : step.wanted_logits())
    for (const PlannedSample& sample : wanted.sequence->samples)
      add(sample, static_cast<int32_t>(wanted.first + wanted.count - 1), samples);
  if (static_cast<int32_t>(edits_.size()) > edited_rows_) return false;
  for (size_t i = 0; i < samples.size(); ++i)
    sequences_.at(samples[i].sequence).last_index = static_cast<int32_t>(i);
  return true;
}

void DeviceSampling::add(const PlannedSample& sample, int32_t logits_row,
                         std::vector<DeviceSample>& samples) {
  const Sequence& s = sequence(sample.sequence);
  const SamplingParams& p = *s.sampling;
  const auto output = static_cast<size_t>(sample.position - s.num_prompt_tokens);
  const bool may_not_end = output < static_cast<size_t>(p.min_tokens) && s.edit.num_ending > 0;
  SampleSettings settings{
      .inverse_temperature = p.temperature == 0 ? 0.0f : static_cast<float>(1.0 / p.temperature),
      .top_k = p.top_k,
      .top_p = static_cast<float>(p.top_p),
      .min_p = static_cast<float>(p.min_p),
      .seed = s.seed,
      .position = sample.position,
      .logits_row = logits_row};
  if (output < p.forced_token_ids.size()) settings.forced = p.forced_token_ids[output];
  if (s.always_edited || may_not_end) {
    settings.edited_row = static_cast<int32_t>(edits_.size());
    edits_.push_back(s.edit);
    edits_.back().logits_row = logits_row;
    edits_.back().edited_row = settings.edited_row;
    edits_.back().history_tokens = sample.position;
    if (!may_not_end) edits_.back().num_ending = 0;
  }
  DeviceSample out{.sequence = sample.sequence,
                   .num_top = sample.top_candidates,
                   .followed = s.slot >= 0 || !p.forced_token_ids.empty()};
  // Of an edited row the kernel's own logprob is not the model's.
  if (sample.top_candidates > 0 || (p.uses_logprobs() && settings.edited_row >= 0)) {
    out.report = static_cast<int32_t>(reports_.size());
    reports_.push_back({.sample = static_cast<int32_t>(samples.size()),
                        .logits_row = logits_row,
                        .num_top = sample.top_candidates});
  }
  settings_.push_back(settings);
  samples.push_back(out);
}

void DeviceSampling::give(TakeSampledParams& ids) const {
  ids.tokens = sampled_.as<const int32_t>();
  ids.histories = ids.history_at != nullptr ? slots_.as<int32_t>() : nullptr;
}

void DeviceSampling::run(const PlacedSampling& step, const float* logits, int turn) {
  auto* tokens = sampled_.as<int32_t>();
  const Back back = back_of(turn);
  if (step.num_edits > 0)
    kernels_.edit_logits({.logits = logits,
                          .edited = edited_.as<float>(),
                          .ints = slots_.as<const int32_t>(),
                          .edits = step.edits,
                          .num_edits = step.num_edits,
                          .vocab = sizes_.vocab});
  kernels_.sample({.logits = logits,
                   .edited = edited_.as<const float>(),
                   .settings = step.settings,
                   .workspace = space_.data(),
                   .tokens = tokens,
                   .host_tokens = back.tokens,
                   .logprobs = back.logprobs,
                   .num_samples = step.num_samples,
                   .vocab = sizes_.vocab});
  if (step.num_reports > 0)
    kernels_.report_logprobs({.logits = logits,
                              .reports = step.reports,
                              .tokens = tokens,
                              .logprobs = back.logprobs,
                              .top = back.top,
                              .num_reports = step.num_reports,
                              .vocab = sizes_.vocab});
}

DeviceSampling::Back DeviceSampling::back_of(int turn) const {
  char* memory = turns_[turn].back.as<char>();
  const int64_t samples = sizes_.max_samples;
  return {.tokens = reinterpret_cast<int32_t*>(memory),
          .logprobs = reinterpret_cast<float*>(memory + samples * 4),
          .top = reinterpret_cast<TopLogprobs*>(memory + samples * 8)};
}

// ---- results ----
SampledToken DeviceSampling::result(const std::vector<DeviceSample>& samples, size_t i, int turn) const {
  const Back back = back_of(turn);
  const DeviceSample& sample = samples[i];
  SampledToken out{
      .sequence = sample.sequence, .token = back.tokens[i], .logprob = back.logprobs[i], .top = {}};
  if (sample.report < 0) return out;
  const TopLogprobs* top = back.top + sample.report;
  for (int32_t k = 0; k < sample.num_top && top->ids[k] >= 0; ++k)
    out.top.emplace_back(top->ids[k], top->logprobs[k]);
  return out;
}

void DeviceSampling::follow(std::vector<DeviceSample>& samples, int turn, Sampler& sampler) const {
  const int32_t* tokens = back_of(turn).tokens;
  for (size_t i = 0; i < samples.size(); ++i) {
    if (!samples[i].followed || !sequences_.contains(samples[i].sequence))
      continue;                                                          // it may have left meanwhile
    if (tokens[i] >= 0) sampler.append(samples[i].sequence, tokens[i]);  // else it ends
    samples[i].followed = false;
  }
}

}  // namespace quire
