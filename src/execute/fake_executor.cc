#include "src/execute/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr size_t kMaxViolations = 16;
constexpr uint64_t kUnknownChain = 0;  // after tokens that a window dropped before the first step

// Multiply to 128 bits and fold: most of what this executor computes is a chain for every token.
uint64_t mix(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a ^ 0x9E3779B97F4A7C15ull) *
                       ((b ^ 0xBF58476D1CE4E5B9ull) * 0x94D049BB133111EBull | 1);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A number below bound out of a hash: its high bits, without a division.
uint64_t below(uint64_t hash, uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(hash) * bound >> 64);
}

uint64_t chain_after(uint64_t before, TokenId token) {
  return mix(before, static_cast<uint64_t>(token) + 1);
}

float logprob_of(uint64_t hash) {
  return -0.05f - static_cast<float>(hash % 997) * 0.002f;
}

// Tokens that both begin with. By runs first: what shares much differs at its end.
size_t num_common(std::span<const TokenId> a, std::span<const TokenId> b) {
  constexpr size_t kRun = 16;
  const size_t most = std::min(a.size(), b.size());
  size_t i = 0;
  while (i + kRun <= most && std::memcmp(&a[i], &b[i], kRun * sizeof(TokenId)) == 0) i += kRun;
  while (i < most && a[i] == b[i]) ++i;
  return i;
}

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

FakeExecutor::FakeExecutor(const FakeModel& model, ManualClock* clock, const Roofline& roofline)
    : model_(model), size_(model.block_tokens), clock_(clock), roofline_(roofline) {
  for (size_t kind = 0; kind < overwrites_.size(); ++kind)
    overwrites_[kind] = traits({.kind = static_cast<RetentionKind>(kind)}).overwrites_slots;
  if (!model.check_content) return;
  slots_.resize(static_cast<size_t>(model.num_blocks) * model.block_tokens);
  version_.resize(model.num_blocks);
}

// Takes what makes the message: the checks of every token stay small enough to be inlined.
template <typename Message>
[[gnu::noinline, gnu::cold]] void FakeExecutor::violation(const Message& message) {
  if (violations_.size() < kMaxViolations) violations_.push_back(message());
}

void FakeExecutor::submit(std::shared_ptr<const BatchPlan> plan) {
  int64_t done = 0;
  const CopyFault copies = copy_fault_ && !plan->copies.empty() ? copy_fault_() : CopyFault{};
  if (clock_ != nullptr) {
    int64_t context = 0;
    for (const PlannedSequence& s : plan->sequences)
      context += s.first_position + static_cast<int64_t>(s.tokens.size());
    const double us = roofline_.step_us(plan->num_tokens(), context);
    done = busy_until_us_ =
        std::max(busy_until_us_, clock_->now_us()) + static_cast<int64_t>(us) + copies.delay_us;
  }
  submitted_.push_back({std::move(plan), done, copies.fails});
  check(submitted_.size() <= 2, "at most two steps are under way");
}

StepResult FakeExecutor::wait() {
  check(!submitted_.empty(), "wait follows submit");
  const Submitted next = std::move(submitted_.front());
  submitted_.pop_front();
  if (clock_ != nullptr && clock_->now_us() < next.done_us)
    clock_->advance_us(next.done_us - clock_->now_us());
  if (clock_ != nullptr) return run(*next.plan, next.copies_fail);
  const auto start = std::chrono::steady_clock::now();
  StepResult result = run(*next.plan, next.copies_fail);
  run_us_ += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  return result;
}

StepResult FakeExecutor::run(const BatchPlan& plan, bool copies_fail) {
  StepResult result;
  result.step = plan.step;
  for (const SequenceId id : plan.leaves) known_.erase(value(id));
  for (const PlannedJoin& j : plan.joins) join(j);
  result.status = carry_out_copies(plan, copies_fail);
  if (result.status && fault_) result.status = fault_(plan);
  if (!result.status) {
    fail(plan);
    return result;
  }
  for (const PlannedSequence& s : plan.sequences)  // as copies do: before any write of the step
    if (model_.check_content && !s.cut_source.empty() && !known_[value(s.sequence)].poisoned)
      cut(s, known_[value(s.sequence)]);
  met_.clear();
  size_t num_samples = 0;
  for (const PlannedSequence& s : plan.sequences) {
    Known& known = known_[value(s.sequence)];
    known.keeps_all = keeps_all(s);
    if (known.last_step == 0 && !known.keeps_all) known.forget_seen();  // its list's slots are not positions
    known.last_step = plan.step;
    if (model_.check_content && !known.poisoned) {
      if (check_shape(s, known))
        write(plan, s, known);
      else
        known.poisoned = true;  // a look into its list could read beyond
    }
    met_.push_back(&known);
    num_samples += s.samples.size();
  }
  result.samples.reserve(num_samples);
  for (size_t i = 0; i < met_.size(); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    if (model_.check_content && !met_[i]->poisoned) verify(s, *met_[i]);
    prompt_logprobs(s, result);
    sample(plan, s, *met_[i], result);
    if (sequence_fault_) fail_alone(s, result);
  }
  if (plan.step % 4096 == 0) forget_stale(plan.step);
  return result;
}

Status FakeExecutor::carry_out_copies(const BatchPlan& plan, bool fail) {
  const size_t count = fail ? plan.copies.size() / 2 : plan.copies.size();
  for (size_t i = 0; i < count && model_.check_content; ++i) copy(plan.copies[i]);
  return fail ? Status(error(Code::kInternal, "injected fault of a copy")) : ok();
}

// A sequence that ended before it was ever sampled for leaves no word; it is known by its silence.
void FakeExecutor::forget_stale(uint64_t step) {
  known_.erase_if([&](const Known& known) { return !known.joined && known.last_step + 1024 < step; });
}

// Nothing of a failed step was computed: what was to follow it means nothing.
void FakeExecutor::fail(const BatchPlan& plan) {
  for (const PlannedSequence& s : plan.sequences) {
    known_[value(s.sequence)].poisoned = true;
    for (const PlannedSample& sample : s.samples) known_[value(sample.sequence)].poisoned = true;
  }
}

void FakeExecutor::fail_alone(const PlannedSequence& s, StepResult& result) {
  const Status status = sequence_fault_(s);
  if (status) return;
  result.failures.push_back({s.sequence, status.error()});
  known_[value(s.sequence)].poisoned = true;
  for (const PlannedSample& sample : s.samples) known_[value(sample.sequence)].poisoned = true;
}

void FakeExecutor::copy(const BlockCopy& c) {
  if (c.source == c.target)
    violation([&] { return fmt::format("block {} is copied to itself", value(c.source)); });
  for (int32_t i = 0; i < model_.block_tokens; ++i) slot(c.target, i) = slot(c.source, i);
  ++version_[value(c.target)];
}

void FakeExecutor::make_blocks_below(int64_t host, int64_t disk) {
  if (!model_.check_content) return;
  host_slots_.resize(static_cast<size_t>(host) * model_.block_tokens);
  disk_slots_.resize(static_cast<size_t>(disk) * model_.block_tokens);
}

void FakeExecutor::copy(const TierCopy& c, TransferDirection direction) {
  if (!model_.check_content) return;
  const auto at = [&](std::vector<Slot>& slots, int32_t block) {
    return &slots[static_cast<size_t>(block) * model_.block_tokens];
  };
  Slot* device = c.device == kNoBlock ? nullptr : &slot(c.device, 0);
  Slot* host = c.host == kNotOnHost ? nullptr : at(host_slots_, value(c.host));
  Slot* disk = c.disk == kNotOnDisk ? nullptr : at(disk_slots_, value(c.disk));
  const bool up = direction == TransferDirection::kToDevice;
  Slot* target = up ? device : direction == TransferDirection::kToHost ? host : disk;
  const Slot* source =
      target == device ? (host != nullptr ? host : disk) : (device != nullptr ? device : host);
  if (target == nullptr || source == nullptr)
    return violation([] { return "a copy between tiers names one place"; });
  std::copy_n(source, model_.block_tokens, target);
  if (up) ++version_[value(c.device)];
}

inline void FakeExecutor::push(Known& known, TokenId token) {
  const uint64_t before = known.chain.empty() ? 0 : known.chain.back();
  const bool unknown = before == kUnknownChain && !known.chain.empty();
  known.chain.push_back(unknown ? kUnknownChain : chain_after(before, token));
  known.tokens.push_back(token);
}

void FakeExecutor::append(Known& known, std::span<const TokenId> tokens) {
  uint64_t chain = known.chain.empty() ? 0 : known.chain.back();
  const bool unknown = !known.chain.empty() && chain == kUnknownChain;
  const size_t before = known.chain.size();
  known.tokens.insert(known.tokens.end(), tokens.begin(), tokens.end());
  known.chain.resize(before + tokens.size(), kUnknownChain);
  if (unknown) return;
  for (size_t i = 0; i < tokens.size(); ++i) known.chain[before + i] = chain = chain_after(chain, tokens[i]);
}

// Of those that joined of late, the one that starts most like a history, and how far: a beam's parent, a sample's
// sibling. Not one that took its chain from slots: that would be believed, and not compared with them.
FakeExecutor::Likeness FakeExecutor::like(const std::vector<TokenId>& history) const {
  Likeness best;
  for (const Known* known : lately_joined_) {
    if (known == nullptr || known->poisoned || known->adopted) continue;
    const std::vector<TokenId>& tokens = known->tokens;
    const size_t most = std::min(tokens.size(), history.size());
    if (most <= best.num_tokens || tokens[best.num_tokens] != history[best.num_tokens]) continue;
    const size_t common = num_common(tokens, history);
    if (common > best.num_tokens) best = {known, common};
  }
  return best;
}

// What was computed for the same tokens, and the whole blocks that were found to hold them.
void FakeExecutor::take_after(const Likeness& other, Known& known) {
  const auto end = static_cast<std::ptrdiff_t>(other.num_tokens);
  known.tokens.assign(other.known->tokens.begin(), other.known->tokens.begin() + end);
  known.chain.assign(other.known->chain.begin(), other.known->chain.begin() + end);
  if (!other.known->keeps_all) return;
  const size_t shared = static_cast<size_t>(size_.block_of(static_cast<int32_t>(other.num_tokens)));
  const size_t blocks = std::min(shared, other.known->num_whole_seen(size_.tokens()));
  const auto seen = static_cast<std::ptrdiff_t>(blocks);
  known.seen.assign(other.known->seen.begin(), other.known->seen.begin() + seen);
  known.seen_version.assign(other.known->seen_version.begin(), other.known->seen_version.begin() + seen);
  known.num_seen_in_last = blocks > 0 ? size_.tokens() : 0;
}

void FakeExecutor::join(const PlannedJoin& j) {
  Known& known = known_[value(j.sequence)];
  if (contains(known.tokens, -1)) {  // a window had dropped them: here is what they were
    known.tokens.clear();
    known.chain.clear();
  }
  if (known.joined) violation([&] { return fmt::format("sequence {} joins twice", value(j.sequence)); });
  const size_t common = std::min(known.tokens.size(), j.history.size());
  if (!std::equal(known.tokens.begin(), known.tokens.begin() + static_cast<std::ptrdiff_t>(common),
                  j.history.begin()))
    violation([&] {
      return fmt::format("sequence {} joins with another history than its slots hold", value(j.sequence));
    });
  known.tokens.resize(common);
  known.chain.resize(common);
  if (model_.check_content) {
    const Likeness other = known.last_step == 0 && common == 0 ? like(j.history) : Likeness{};
    if (other.num_tokens > 0) take_after(other, known);
    append(known, std::span(j.history).subspan(known.tokens.size()));
  }
  known.joined = true;
  known.sampling = j.sampling;
  known.is_greedy = j.sampling->temperature == 0;
  known.is_plain = j.sampling->allowed_token_ids.empty() && j.sampling->min_tokens == 0;
  known.seed = j.seed;
  known.num_prompt = j.num_prompt_tokens;
  known.eos = j.eos_token_ids;
  lately_joined_[next_joined_++ % lately_joined_.size()] = &known;
}

// Of the table's blocks those that write() reads or writes; verify() looks at the others when they are new.
inline bool FakeExecutor::check_shape(const PlannedSequence& s, const Known& known) {
  const int32_t end = s.list_length_after();
  const bool fits = static_cast<int64_t>(s.block_table.size()) >= size_.blocks_for(end);
  if (!fits)
    violation([&] {
      return fmt::format("sequence {}: {} blocks cannot hold {} tokens", value(s.sequence),
                         s.block_table.size(), end);
    });
  const bool misfits =
      keeps_all(s) ? s.list_length_before != s.first_position : s.list_length_before > s.first_position;
  if (misfits)
    violation([&] {
      return fmt::format("sequence {}: list length {} before position {}", value(s.sequence),
                         s.list_length_before, s.first_position);
    });
  const bool reads_all = overwrites_slots(s) || static_cast<int32_t>(known.tokens.size()) < s.first_position;
  const int32_t first = reads_all ? 0 : size_.block_of(std::max(0, s.list_length_before - 1));
  for (auto b = static_cast<size_t>(first); b < s.block_table.size(); ++b)
    if (!is_block(s, s.block_table[b])) return false;
  return fits && !s.tokens.empty();
}

inline bool FakeExecutor::is_block(const PlannedSequence& s, BlockId block) {
  const bool is = value(block) >= 0 && value(block) < model_.num_blocks;
  if (!is)
    violation([&] {
      return fmt::format("sequence {}: block {} of {}", value(s.sequence), value(block), model_.num_blocks);
    });
  return is;
}

// A prefix hit: the slots tell what the sequence starts with; its join or its own tokens must agree later.
void FakeExecutor::adopt(const PlannedSequence& s, Known& known) {
  known.adopted = true;
  const int32_t dropped = s.first_position - s.list_length_before, sinks = sink_slots_of(s);
  for (auto p = static_cast<int32_t>(known.tokens.size()); p < s.first_position; ++p) {
    const bool is_here = dropped == 0 || p < sinks || p >= sinks + dropped;
    const Slot found = is_here ? slot_at(s.block_table, p < sinks ? p : p - dropped) : Slot{};
    known.tokens.push_back(found.token);
    known.chain.push_back(found.chain);
  }
}

int32_t FakeExecutor::sink_slots_of(const PlannedSequence& s) const {
  return size_.first_slot(size_.blocks_for(s.policy.sinks));
}

inline bool FakeExecutor::overwrites_slots(const PlannedSequence& s) const {
  return overwrites_[static_cast<size_t>(s.policy.kind)];
}

int32_t FakeExecutor::position_in(const PlannedSequence& s, const Known& known, int32_t list_slot) const {
  if (keeps_all(s)) return list_slot;
  if (overwrites_slots(s)) return known.list[list_slot];
  return list_slot < sink_slots_of(s) ? list_slot : list_slot + s.first_position - s.list_length_before;
}

// What is kept goes by a hash: what matters here is that it is moved from blocks that still hold it.
void FakeExecutor::cut(const PlannedSequence& s, Known& known) {
  if (known.list.empty()) {  // a sample forked at the prompt's end
    known.list.resize(s.num_prompt_tokens);
    std::iota(known.list.begin(), known.list.end(), 0);
  }
  std::vector<int32_t> kept(known.list.size());
  std::iota(kept.begin(), kept.end(), 0);
  const auto hash = [&](int32_t from) { return mix(known.chain[known.list[from]], 7); };
  std::sort(kept.begin(), kept.end(), [&](int32_t a, int32_t b) { return hash(a) < hash(b); });
  if (s.list_length_before > static_cast<int32_t>(kept.size()) ||
      kept.size() > s.cut_source.size() * model_.block_tokens)
    return violation([&] {
      return fmt::format("sequence {}: a cut from {} slots in {} blocks to {}", value(s.sequence),
                         kept.size(), s.cut_source.size(), s.list_length_before);
    });
  kept.resize(s.list_length_before);
  std::sort(kept.begin(), kept.end());
  std::vector<int32_t> list;
  for (const int32_t from : kept) {
    Slot& target = slot_at(s.block_table, static_cast<int32_t>(list.size()));
    target = slot_at(s.cut_source, from);
    list.push_back(known.list[from]);
    ++version_[value(s.block_table[size_.block_of(static_cast<int32_t>(list.size()) - 1)])];
  }
  known.list = std::move(list);
}

// Where token `index` of the step goes. A list keeps its tokens in order until it is full.
int32_t FakeExecutor::take_slot(const PlannedSequence& s, Known& known, int32_t index) {
  const int32_t position = s.first_position + index, next = s.list_length_before + index;
  while (static_cast<int32_t>(known.list.size()) < s.list_length_before &&
         known.list.size() < known.tokens.size())
    known.list.push_back(static_cast<int32_t>(known.list.size()));
  if (!s.overwrites) {
    known.list.resize(next + 1);
    known.list[next] = position;
    return next;
  }
  const auto victim = static_cast<int32_t>(mix(known.chain[position], 11) % known.list.size());
  known.list[victim] = position;
  return victim;
}

inline TokenId FakeExecutor::resolve(const BatchPlan& plan, const PlannedSequence& s, Known& known,
                                     int32_t index) {
  const int32_t position = s.first_position + index;
  const auto num_known = static_cast<int32_t>(known.tokens.size());
  const TokenId token = s.tokens[index];
  if (token == kSampledLastStep) {
    const bool right = s.tokens.size() == 1 && known.sampled_in + 1 == plan.step && num_known == position + 1;
    if (!right)
      violation([&] {
        return fmt::format("sequence {}: no token was sampled one step before for position {}",
                           value(s.sequence), position);
      });
    return num_known > position ? known.tokens[position] : 0;
  }
  if (position == num_known) push(known, token);
  if (known.tokens[position] != token)
    violation([&] {
      return fmt::format("sequence {}: token {} at position {} was {} before", value(s.sequence), token,
                         position, known.tokens[position]);
    });
  return token;
}

// The slots before `end` were found right, and nobody has written to their block since.
inline bool FakeExecutor::has_seen(const PlannedSequence& s, const Known& known, int32_t end) const {
  const auto block = static_cast<size_t>(size_.block_of(end));
  const int32_t slots = size_.offset_of(end);
  if (slots == 0)
    return known.seen.size() == block && (block == 0 || known.num_seen_in_last == size_.tokens());
  if (known.seen.size() != block + 1 || known.num_seen_in_last != slots) return false;
  return is_as_seen(known, block, s.block_table[block]);
}

// A slot that is written behind those seen is seen with them: its block is read again only if another writes
// it.
void FakeExecutor::write(const BatchPlan& plan, const PlannedSequence& s, Known& known) {
  if (static_cast<int32_t>(known.tokens.size()) < s.first_position) adopt(s, known);
  const bool keeps = keeps_all(s), overwrites = overwrites_slots(s);
  bool seen = !overwrites && has_seen(s, known, s.list_length_before);
  uint64_t before = keeps && s.first_position > 0 ? slot_at(s.block_table, s.first_position - 1).chain : 0;
  for (int32_t i = 0; i < static_cast<int32_t>(s.tokens.size()); ++i) {
    const int32_t position = s.first_position + i;
    const TokenId token = resolve(plan, s, known, i);
    const int32_t list_slot = overwrites ? take_slot(s, known, i) : s.list_length_before + i;
    const BlockId block = s.block_table[size_.block_of(list_slot)];
    const int32_t offset = size_.offset_of(list_slot);
    Slot& target = slot(block, offset);
    if (target.written_in == plan.step)
      violation([&] {
        return fmt::format("step {}: two tokens share slot {} of block {}", plan.step, offset, value(block));
      });
    if (!keeps && position > 0) before = known.chain[position - 1];
    const bool unknown = position > 0 && before == kUnknownChain;
    const bool as_known = position < static_cast<int32_t>(known.tokens.size()) &&
                          token == known.tokens[position] &&
                          (position == 0 || before == known.chain[position - 1]);
    const uint64_t chain = as_known  ? known.chain[position]
                           : unknown ? kUnknownChain
                                     : chain_after(before, token);
    target = {token, position, chain, plan.step};
    before = chain;
    if (i == 0 || offset == 0) ++version_[value(block)];
    seen = seen && as_known;
    if (!seen) continue;
    known.see(offset == 0 ? known.seen.size() : known.seen.size() - 1, block, version_[value(block)]);
    known.num_seen_in_last = offset + 1;
  }
}

bool FakeExecutor::verify_block(const PlannedSequence& s, const Known& known, int32_t index, int32_t slots) {
  const int32_t first_slot = size_.first_slot(index);
  // Sinks are whole blocks: but for lists whose slots are overwritten, a block's positions follow each other.
  const int32_t* listed = overwrites_slots(s) ? &known.list[first_slot] : nullptr;
  const int32_t first = position_in(s, known, first_slot);
  const Slot* block = &slot(s.block_table[index], 0);
  for (int32_t i = 0; i < slots; ++i) {
    const int32_t position = listed != nullptr ? listed[i] : first + i;
    const Slot& found = block[i];
    const bool same_chain = found.chain == known.chain[position] || found.chain == kUnknownChain ||
                            known.chain[position] == kUnknownChain;
    if (found.token == known.tokens[position] && found.position == position && same_chain) continue;
    violation([&] {
      return fmt::format(
          "sequence {}: position {} lies in slot {} of block {}, which holds token {} of position {}, not "
          "token {}{}",
          value(s.sequence), position, i, value(s.block_table[index]), found.token, found.position,
          known.tokens[position],
          found.token == known.tokens[position] && found.position == position ? " after this prefix" : "");
    });
    return false;
  }
  return true;
}

// Of the first `count` blocks, without a branch for each: in most steps of most sequences they are.
bool FakeExecutor::are_as_seen(const PlannedSequence& s, const Known& known, size_t count) const {
  const BlockId* table = s.block_table.data();
  if (count == 0 || std::memcmp(table, known.seen.data(), count * sizeof(BlockId)) != 0) return count == 0;
  const uint32_t* version = known.seen_version.data();
  uint32_t written = 0;
  for (size_t b = 0; b < count; ++b) written |= version[b] ^ version_[value(table[b])];
  return written == 0;
}

void FakeExecutor::verify(const PlannedSequence& s, Known& known) {
  const int32_t end = s.list_length_after();
  if (static_cast<int32_t>(known.tokens.size()) < s.first_position + static_cast<int32_t>(s.tokens.size()))
    return;  // check_shape has spoken
  const int32_t blocks = size_.blocks_for(end);
  const auto num_seen = static_cast<int32_t>(known.seen.size());
  // Both whole: before the last block of the list, and of what was seen.
  const int32_t whole = std::max(0, std::min(blocks, num_seen) - 1);
  const bool as_seen = are_as_seen(s, known, static_cast<size_t>(whole));
  for (int32_t b = 0; !as_seen && b < whole; ++b)
    if (!is_as_seen(known, static_cast<size_t>(b), s.block_table[b]))
      verify_again(s, known, b, size_.tokens());
  const int32_t seen_slots =
      whole < num_seen ? known.num_seen_slots(static_cast<size_t>(whole), size_.tokens()) : 0;
  known.resize_seen(static_cast<size_t>(blocks));
  for (int32_t b = whole; b < blocks; ++b) {
    const int32_t slots = b + 1 < blocks ? size_.tokens() : end - size_.first_slot(b);
    const bool all_seen = b == whole && seen_slots == slots;
    const BlockId block = s.block_table[b];
    if (!all_seen || !is_as_seen(known, static_cast<size_t>(b), block)) verify_again(s, known, b, slots);
    known.num_seen_in_last = slots;
  }
}

void FakeExecutor::verify_again(const PlannedSequence& s, Known& known, int32_t index, int32_t slots) {
  const auto at = static_cast<size_t>(index);
  const BlockId block = s.block_table[at], before = known.seen[at];
  if (index < s.num_unchanged_blocks && before != kNoBlock && before != block)
    violation([&] {
      return fmt::format("sequence {}: block {} of its table is {}, was {} and is called unchanged",
                         value(s.sequence), index, value(block), value(before));
    });
  if (is_block(s, block) && verify_block(s, known, index, slots))
    known.see(at, block, version_[value(block)]);
  else
    known.see(at, kNoBlock, 0);
}

inline TokenId FakeExecutor::pick(uint64_t chain, const Known& known, int32_t position) const {
  uint64_t hash = known.is_greedy ? chain : mix(mix(chain, known.seed), static_cast<uint64_t>(position));
  if (known.is_plain) return static_cast<TokenId>(below(hash, static_cast<uint64_t>(model_.vocab_size)));
  const SamplingParams& sampling = *known.sampling;
  for (;; hash = mix(hash, 1)) {
    const auto& allowed = sampling.allowed_token_ids;
    const TokenId token = allowed.empty()
                              ? static_cast<TokenId>(below(hash, static_cast<uint64_t>(model_.vocab_size)))
                              : allowed[below(hash, allowed.size())];
    const bool masked = position - known.num_prompt < sampling.min_tokens &&
                        (contains(known.eos, token) || contains(sampling.stop_token_ids, token));
    if (!masked) return token;
  }
}

inline uint64_t FakeExecutor::chain_of_last(const PlannedSequence& s, const Known& known, int32_t last) {
  return keeps_all(s) ? slot_at(s.block_table, last).chain : known.chain[last];
}

void FakeExecutor::sample(const BatchPlan& plan, const PlannedSequence& s, Known& own, StepResult& result) {
  const int32_t last = s.first_position + static_cast<int32_t>(s.tokens.size()) - 1;
  for (const PlannedSample& wanted : s.samples) {
    Known& known = wanted.sequence == s.sequence ? own : known_[value(wanted.sequence)];
    SampledToken& out = result.samples.emplace_back();
    out.sequence = wanted.sequence;
    if (known.poisoned || known.sampling == nullptr) {
      out.token = 0;
      if (!known.poisoned)
        violation([&] {
          return fmt::format("sequence {} is sampled for and never joined", value(wanted.sequence));
        });
      continue;
    }
    if (wanted.position != last + 1)
      violation([&] {
        return fmt::format("sequence {}: position {} is sampled after {}", value(wanted.sequence),
                           wanted.position, last);
      });
    const uint64_t chain =
        model_.check_content ? chain_of_last(s, own, last) : mix(known.seed, static_cast<uint64_t>(last));
    const TokenId best = pick(chain, known, wanted.position);
    out.logprob = logprob_of(chain);
    const int32_t candidates = std::min(wanted.top_candidates, model_.vocab_size);
    out.top.reserve(candidates);
    for (int32_t i = 0; i < candidates; ++i)
      out.top.emplace_back(best + i < model_.vocab_size ? best + i : best + i - model_.vocab_size,
                           out.logprob - 0.25f * static_cast<float>(i) - 0.1f * logprob_of(mix(chain, i)));
    if (wanted.beam) continue;
    out.token = best;
    known.sampled_in = plan.step;
    if (model_.check_content) push(known, best);
  }
}

void FakeExecutor::prompt_logprobs(const PlannedSequence& s, StepResult& result) {
  if (s.prompt_logprobs < 0) return;
  SequencePromptLogprobs& out = result.prompt_logprobs.emplace_back();
  out.sequence = s.sequence;
  out.first_position = s.first_position + 1;
  for (size_t i = 1; i <= s.tokens.size(); ++i) {
    const TokenId token = i < s.tokens.size() ? s.tokens[i] : s.next_prompt_token;
    if (token < 0) break;
    PromptLogprob& p = out.tokens.emplace_back();
    p.token = token;
    p.logprob = logprob_of(mix(static_cast<uint64_t>(token), static_cast<uint64_t>(s.first_position) + i));
    for (int32_t k = 0; k < s.prompt_logprobs; ++k)
      p.top.emplace_back((token + k) % model_.vocab_size, p.logprob - 0.1f * static_cast<float>(k));
  }
}

std::vector<TokenId> FakeExecutor::greedy(const std::vector<TokenId>& prompt, int32_t count) const {
  uint64_t chain = 0;
  for (const TokenId t : prompt) chain = chain_after(chain, t);
  std::vector<TokenId> out;
  out.reserve(count);
  for (int32_t i = 0; i < count; ++i) {
    out.push_back(static_cast<TokenId>(below(chain, static_cast<uint64_t>(model_.vocab_size))));
    chain = chain_after(chain, out.back());
  }
  return out;
}

}  // namespace quire
