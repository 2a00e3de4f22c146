// The sequences that a FakeExecutor has met, by id. Ids rise and are never used again, so their low bits
// spread them evenly over an open table; what a sequence that left had allocated is used for the next.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "src/base/ids.h"
#include "src/execute/fake_hash.h"
#include "src/sample/sample_types.h"

namespace quire {

// A sequence as the plans tell it.
struct FakeSequence {
  std::vector<TokenId> tokens;
  std::vector<uint64_t> chain;  // of the tokens up to each; same length
  // The list's blocks, found right at the versions that they had; of the last one so many slots, of the others all.
  std::vector<BlockId> seen;
  std::vector<uint32_t> seen_version;  // same length
  int32_t num_seen_in_last = 0;
  int32_t num_prompt = 0;
  bool joined = false, poisoned = false;
  bool adopted = false;   // began with a prefix hit: tokens and chain as its slots had them
  bool keeps_all = true;  // under no policy that drops tokens: slot = position
  bool is_plain = false;  // its sampling takes any id at any position
  bool is_greedy = false;
  uint64_t seed = 0, sampled_in = 0, last_step = 0;
  std::vector<int32_t> list;  // position in each slot, under a policy that overwrites slots
  std::shared_ptr<const SamplingParams> sampling;
  std::vector<TokenId> eos;

  void push(TokenId token) {
    const uint64_t before = chain.empty() ? 0 : chain.back();
    const bool unknown = before == fake::kUnknownChain && !chain.empty();
    chain.push_back(unknown ? fake::kUnknownChain : fake::chain_after(before, token));
    tokens.push_back(token);
  }
  void append(std::span<const TokenId> more) {
    uint64_t last = chain.empty() ? 0 : chain.back();
    const bool unknown = !chain.empty() && last == fake::kUnknownChain;
    const size_t before = chain.size();
    tokens.insert(tokens.end(), more.begin(), more.end());
    chain.resize(before + more.size(), fake::kUnknownChain);
    if (unknown) return;
    for (size_t i = 0; i < more.size(); ++i) chain[before + i] = last = fake::chain_after(last, more[i]);
  }
  // Slots of seen[block].
  int32_t num_seen_slots(size_t block, int32_t block_tokens) const {
    return block + 1 < seen.size() ? block_tokens : num_seen_in_last;
  }
  size_t num_whole_seen(int32_t block_tokens) const {
    return seen.size() - (!seen.empty() && num_seen_in_last < block_tokens ? 1 : 0);
  }
  void see(size_t index, BlockId block, uint32_t version) {  // kNoBlock: not what it should hold
    if (index == seen.size()) resize_seen(index + 1);
    seen[index] = block;
    seen_version[index] = version;
  }
  void resize_seen(size_t count) {
    seen.resize(count, kNoBlock);
    seen_version.resize(count);
  }
  void forget_seen() {
    resize_seen(0);
    num_seen_in_last = 0;
  }
  void forget_tokens() {
    tokens.clear();
    chain.clear();
    list.clear();
    forget_seen();
  }
  void clear() {
    tokens.clear();
    chain.clear();
    seen.clear();
    seen_version.clear();
    list.clear();
    sampling.reset();
    eos.clear();
    seed = sampled_in = last_step = 0;
    num_prompt = num_seen_in_last = 0;
    joined = poisoned = adopted = is_plain = is_greedy = false;
    keeps_all = true;
  }
};

class FakeSequences {
 public:
  FakeSequences() : entries_(64) {}

  // The one with this id, made if it is new. Stays where it is until it is erased.
  FakeSequence& operator[](uint64_t id) {
    const size_t i = find(id);
    if (entries_[i].sequence != nullptr) return *entries_[i].sequence;
    if (2 * (size_ + 1) > static_cast<int64_t>(entries_.size())) {
      grow();
      return add(find(id), id);
    }
    return add(i, id);
  }
  void erase(uint64_t id) {
    const size_t i = find(id);
    if (entries_[i].sequence != nullptr) erase_at(i);
  }
  template <typename Predicate>
  void erase_if(Predicate predicate) {
    std::vector<uint64_t> ids;
    for (const Entry& e : entries_)
      if (e.sequence != nullptr && predicate(*e.sequence)) ids.push_back(e.id);
    for (const uint64_t id : ids) erase_at(find(id));
  }
  int64_t size() const { return size_; }

 private:
  struct Entry {
    uint64_t id = 0;
    std::unique_ptr<FakeSequence> sequence;
  };
  static constexpr size_t kTokensAtFirst = 256;
  size_t mask() const { return entries_.size() - 1; }
  size_t find(uint64_t id) const {
    size_t i = id & mask();
    while (entries_[i].sequence != nullptr && entries_[i].id != id) i = (i + 1) & mask();
    return i;
  }
  FakeSequence& add(size_t i, uint64_t id) {
    entries_[i].id = id;
    if (spare_.empty()) {
      spare_.push_back(std::make_unique<FakeSequence>());
      spare_.back()->tokens.reserve(
          kTokensAtFirst);  // that they need not grow by assigning, which leaves no room
      spare_.back()->chain.reserve(kTokensAtFirst);
    }
    entries_[i].sequence = std::move(spare_.back());
    spare_.pop_back();
    ++size_;
    return *entries_[i].sequence;
  }
  // Closes the gap by moving back what a search would no longer reach (Knuth, TAOCP 3, 6.4, algorithm R).
  void erase_at(size_t gap) {
    entries_[gap].sequence->clear();
    spare_.push_back(std::move(entries_[gap].sequence));
    --size_;
    for (size_t i = (gap + 1) & mask(); entries_[i].sequence != nullptr; i = (i + 1) & mask()) {
      const size_t wanted = entries_[i].id & mask();
      if (((i - wanted) & mask()) < ((i - gap) & mask())) continue;
      entries_[gap] = std::move(entries_[i]);
      gap = i;
    }
  }
  void grow() {
    std::vector<Entry> old(2 * entries_.size());
    old.swap(entries_);
    for (Entry& e : old)
      if (e.sequence != nullptr) entries_[find(e.id)] = std::move(e);
  }

  std::vector<Entry> entries_;
  std::vector<std::unique_ptr<FakeSequence>> spare_;
  int64_t size_ = 0;
};

}  // namespace quire
