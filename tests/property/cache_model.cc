#include "tests/property/cache_model.h"

#include <fmt/format.h>

#include <map>

namespace quire {
namespace {

constexpr int32_t kNamespaces = 3;
constexpr size_t kMaxSequences = 12;

}  // namespace

CacheModel::CacheModel(uint64_t seed, int32_t num_blocks, int32_t block_tokens, EvictionOrder order)
    : random_(seed), block_tokens_(block_tokens), num_blocks_(num_blocks), memory_(num_blocks) {
  const GroupSpec group{.num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .block_tokens = block_tokens};
  cache_ = *KvCache::create(uniform_spec(group, num_blocks), order);
  for (int32_t i = 0; i < kNamespaces; ++i)
    namespaces_.push_back(cache_->open_namespace({.model = "m", .salt = std::to_string(i)}));
  for (std::vector<uint64_t>& block : memory_) block.resize(block_tokens);
}

std::optional<std::string> CacheModel::step() {
  now_us_ += random_.between(0, 5);
  const uint64_t choice = sequences_.empty() ? 0 : random_.below(100);
  if (choice < 18) {
    start();
  } else if (choice < 50) {
    run_step(true);
  } else if (choice < 56) {
    run_step(false);
  } else if (choice < 64) {
    fork();
  } else if (choice < 68) {
    truncate();
  } else if (choice < 84) {
    publish();
  } else if (choice < 92) {
    finish();
  } else {
    retire();
  }
  if (std::exchange(starved_, false)) finish();
  return check_all();
}

// ---- operations ----

// Tokens from a small alphabet with a few common beginnings, so that prefixes meet at every offset.
std::vector<TokenId> CacheModel::random_prompt() {
  std::vector<TokenId> tokens(random_.between(1, 5 * block_tokens_));
  const uint64_t common = random_.below(3), common_tokens = random_.below(tokens.size() + 1);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<TokenId>(i < common_tokens ? mix(common, i) % 7 : random_.below(2));
  return tokens;
}

void CacheModel::start() {
  if (sequences_.size() == kMaxSequences) return finish();
  ModelSequence sequence{.ns = static_cast<int32_t>(random_.below(kNamespaces)), .tokens = random_prompt()};
  if (!published_.empty() && random_.chance(0.5)) {  // goes on from something published
    const Published& known = published_[random_.below(published_.size())];
    sequence.ns = known.ns;
    sequence.tokens.assign(known.tokens.begin(),
                           known.tokens.begin() + random_.between(1, known.tokens.size()));
    for (int64_t i = random_.between(0, block_tokens_); i > 0; --i)
      sequence.tokens.push_back(static_cast<TokenId>(random_.below(2)));
  }
  const NamespaceId ns = namespaces_[sequence.ns];
  check_lookup(sequence.ns, sequence.tokens, cache_->lookup(ns, sequence.tokens));
  const int32_t most = static_cast<int32_t>(sequence.tokens.size()) - (random_.chance(0.5) ? 1 : 0);
  const int32_t expected = std::min(most, cache_->lookup(ns, sequence.tokens));
  sequence.table = cache_->acquire_prefix(ns, sequence.tokens, most, now_us_);
  cache_->count_use(sequence.table, now_us_);
  if (sequence.table.length() != expected) fail("acquire_prefix took another prefix than lookup found");
  num_hits_ += expected > 0 ? 1 : 0;
  if (random_.chance(0.25)) {  // computes all of it again, as a request does that bypasses the prefix cache
    cache_->release(std::move(sequence.table), now_us_);
    sequence.table = BlockTable();
  }
  sequences_.push_back(std::move(sequence));
}

// The longest common start with anything ever published in the namespace: what is found when nothing was
// evicted, and never less than what is found.
void CacheModel::check_lookup(int32_t ns, const std::vector<TokenId>& tokens, int32_t hit) {
  int32_t longest = 0;
  for (const Published& known : published_) {
    if (known.ns != ns) continue;
    const auto end = std::ranges::mismatch(known.tokens, tokens).in1;
    longest = std::max(longest, static_cast<int32_t>(end - known.tokens.begin()));
  }
  if (hit > longest) fail(fmt::format("lookup found {} tokens, only {} were published", hit, longest));
  if (hit < longest && cache_->counters().evictions == 0)
    fail(fmt::format("lookup found {} of {} published tokens", hit, longest));
}

void CacheModel::run_step(bool commit) {
  struct Before {
    ModelSequence* sequence;
    std::vector<BlockId> blocks;
    int32_t length;
  };
  std::vector<Before> before;
  std::vector<std::pair<ModelSequence*, int32_t>> extended;
  std::vector<BlockCopy> copies;
  const double waste = cache_->waste_percent();
  StepTransaction step = cache_->begin(now_us_);
  for (ModelSequence& sequence : sequences_) {
    before.push_back({&sequence, sequence.table.blocks(), sequence.table.length()});
    if (random_.chance(0.4)) continue;
    const int32_t length = sequence.table.length();
    const int32_t target =
        length + static_cast<int32_t>(random_.chance(0.5) ? 1 : random_.between(1, 3 * block_tokens_));
    const int64_t need = cache_->blocks_needed(sequence.table, target), room = cache_->num_available();
    const bool fits = step.extend(sequence.table, target);
    if (fits != (need <= room)) fail("extend disagrees with blocks_needed and num_available");
    num_refused_ += fits ? 0 : 1;
    starved_ = starved_ || !fits;
    if (fits) extended.emplace_back(&sequence, length);
  }
  if (commit) {
    if (submitted_.size() == 2) retire();
    submitted_.push_back(
        {.number = num_steps_++, .named = {}, .deferred = std::exchange(idle_deferred_, {})});
    step.commit(copies, submitted_.back().deferred);
    return execute(copies, extended);
  }
  step.rollback();
  for (const Before& was : before)
    if (was.blocks != was.sequence->table.blocks() || was.length != was.sequence->table.length() ||
        was.length != was.sequence->table.next_position())
      fail("rollback left a table changed");
  if (cache_->num_held() > 0 && cache_->counters().evictions == 0 && waste != cache_->waste_percent())
    fail("rollback left the waste figure changed");
}

void CacheModel::execute(const std::vector<BlockCopy>& copies,
                         const std::vector<std::pair<ModelSequence*, int32_t>>& extended) {
  SubmittedStep& step = submitted_.back();
  std::set<BlockId> sources, targets;
  for (const BlockCopy& copy : copies) {
    sources.insert(copy.source);
    if (!targets.insert(copy.target).second) fail("two copies into one block");
    memory_[value(copy.target)] = memory_[value(copy.source)];
    step.named.insert({copy.source, copy.target});
  }
  for (const BlockId target : targets)
    if (sources.contains(target)) fail("a copy's target is another's source");
  std::set<std::pair<BlockId, int32_t>> written;
  for (const auto& [sequence, from] : extended) {
    while (static_cast<int32_t>(sequence->tokens.size()) < sequence->table.length())
      sequence->tokens.push_back(static_cast<TokenId>(random_.below(2)));
    for (int32_t i = from; i < sequence->table.length(); ++i) {
      const BlockId block = sequence->table.blocks()[i / block_tokens_];
      if (!cache_->may_write(block))
        fail(fmt::format("block {} is written, shared or published", value(block)));
      if (!written.insert({block, i % block_tokens_}).second) fail("two tokens of a step share a slot");
      memory_[value(block)][i % block_tokens_] = content(*sequence, i + 1);
    }
    step.named.insert(sequence->table.blocks().begin(), sequence->table.blocks().end());
    sequence->last_step = step.number;
    sequence->taken = sequence->table.blocks();
    sequence->table.taken();
  }
}

void CacheModel::fork() {
  if (sequences_.size() == kMaxSequences) return;
  const ModelSequence& from = any();
  ModelSequence copy{.ns = from.ns, .tokens = from.tokens, .table = cache_->fork(from.table)};
  copy.tokens.resize(std::max<size_t>(1, copy.table.length()));
  sequences_.push_back(std::move(copy));
}

void CacheModel::truncate() {
  ModelSequence& sequence = any();
  const auto length = static_cast<int32_t>(random_.between(0, sequence.table.length()));
  cache_->truncate(sequence.table, length, deferred_now());
  sequence.tokens.resize(std::max(1, length));
}

void CacheModel::publish() {
  ModelSequence& sequence = any();
  int32_t count = sequence.table.length();
  if (random_.chance(0.7)) count -= count % block_tokens_;
  const Retention retention{.retention_class = static_cast<int32_t>(random_.below(2)),
                            .expiry_us = random_.chance(0.3) ? now_us_ + random_.between(0, 500) : kNoExpiry,
                            .recompute_cost = static_cast<float>(random_.below(3))};
  cache_->publish(namespaces_[sequence.ns], sequence.tokens, sequence.table, count, retention, now_us_,
                  deferred_now());
  if (count > 0)
    published_.push_back({sequence.ns, {sequence.tokens.begin(), sequence.tokens.begin() + count}});
}

// One, or several that share what they share; the last of them from its end on first. What was said to come free does.
void CacheModel::finish() {
  const size_t first = random_.below(sequences_.size());
  const size_t end = std::min(sequences_.size(), first + static_cast<size_t>(random_.between(1, 3)));
  for (size_t i = first; i < end; ++i)
    while (is_named(sequences_[i])) retire();
  give_back_tail(sequences_[end - 1].table);
  std::vector<const BlockTable*> tables;
  for (size_t i = first; i < end; ++i) tables.push_back(&sequences_[i].table);
  const int64_t freed = cache_->held_by(tables).freed, before = cache_->num_available();
  for (size_t i = first; i < end; ++i) cache_->release(std::move(sequences_[i].table), now_us_);
  if (cache_->num_available() - before != freed)
    fail(fmt::format("lists gave {} blocks, {} were expected", cache_->num_available() - before, freed));
  sequences_.erase(sequences_.begin() + static_cast<int64_t>(first),
                   sequences_.begin() + static_cast<int64_t>(end));
}

void CacheModel::give_back_tail(BlockTable& table) {
  const auto kept = static_cast<int32_t>(random_.between(0, table.length() / block_tokens_));
  int64_t freed = 0;
  BlockId behind = kNoBlock;
  for (int32_t i = table.num_blocks(); i-- > kept; behind = table.blocks()[i]) {
    const BlockId block = table.blocks()[i];
    if (cache_->num_holders(block) > 1 || cache_->is_read(block, behind)) break;
    ++freed;
  }
  const int64_t before = cache_->num_available();
  cache_->release_tail(table, kept * block_tokens_, now_us_);
  if (cache_->num_available() - before < freed)
    fail(fmt::format("a tail gave {} blocks, {} were expected", cache_->num_available() - before, freed));
}

void CacheModel::retire() {
  if (submitted_.empty()) {
    cache_->release_deferred(idle_deferred_);
    idle_deferred_.clear();
    return;
  }
  cache_->release_deferred(submitted_.front().deferred);
  submitted_.pop_front();
}

// ---- checks ----

std::vector<BlockId>& CacheModel::deferred_now() {
  return submitted_.empty() ? idle_deferred_ : submitted_.back().deferred;
}

bool CacheModel::is_named(const ModelSequence& sequence) const {
  return !submitted_.empty() && sequence.last_step >= submitted_.front().number;
}

uint64_t CacheModel::content(const ModelSequence& sequence, int32_t slot_end) const {
  uint64_t hash = mix(1, static_cast<uint64_t>(sequence.ns));
  for (int32_t i = 0; i < slot_end; ++i) hash = mix(hash, static_cast<uint64_t>(sequence.tokens[i]));
  return hash;
}

std::optional<std::string> CacheModel::check_contents() const {
  for (const ModelSequence& sequence : sequences_) {
    uint64_t expected = mix(1, static_cast<uint64_t>(sequence.ns));
    for (int32_t i = 0; i < sequence.table.length(); ++i) {
      expected = mix(expected, static_cast<uint64_t>(sequence.tokens[i]));
      const BlockId block = sequence.table.blocks()[i / block_tokens_];
      if (memory_[value(block)][i % block_tokens_] != expected)
        return fmt::format("slot {} (block {}) does not hold its token", i, value(block));
    }
  }
  return std::nullopt;
}

std::optional<std::string> CacheModel::check_all() {
  if (wrong_) return wrong_;
  std::vector<const BlockTable*> tables;
  std::vector<BlockId> deferred = idle_deferred_;
  std::set<BlockId> held;
  for (const ModelSequence& sequence : sequences_) {
    tables.push_back(&sequence.table);
    held.insert(sequence.table.blocks().begin(), sequence.table.blocks().end());
    const auto unchanged = sequence.table.blocks().begin() + sequence.table.num_unchanged();
    if (sequence.table.num_unchanged() >
            std::min<int64_t>(sequence.table.num_blocks(), std::ssize(sequence.taken)) ||
        !std::equal(sequence.table.blocks().begin(), unchanged, sequence.taken.begin()))
      return "a table's entries changed and are called unchanged";
  }
  for (const SubmittedStep& step : submitted_)
    deferred.insert(deferred.end(), step.deferred.begin(), step.deferred.end());
  held.insert(deferred.begin(), deferred.end());
  if (auto wrong = cache_->audit(tables, deferred)) return wrong;
  if (cache_->num_blocks() != num_blocks_) return "free + held + cached is not all";
  if (cache_->num_held() != static_cast<int64_t>(held.size()))
    return "held blocks are not those of tables and steps";
  for (const SubmittedStep& step : submitted_)
    for (const BlockId block : step.named)
      if (!held.contains(block))
        return fmt::format("block {} was freed while a submitted step names it", value(block));
  return check_contents();
}

}  // namespace quire
