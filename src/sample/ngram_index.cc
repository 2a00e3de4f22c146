#include "src/sample/ngram_index.h"

#include <algorithm>

namespace quire {

uint64_t NgramIndex::key(std::span<const TokenId> tokens) {
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a over the ids; equal hashes are confirmed token by token
  for (const TokenId token : tokens) hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001b3ull;
  return hash;
}

void NgramIndex::append(std::span<const TokenId> history) {
  const auto n = static_cast<size_t>(n_);
  if (history.size() < n) return;
  next_at_[key(history.subspan(history.size() - n, n - 1))].push_back(static_cast<int32_t>(history.size()) -
                                                                      1);
}

std::vector<TokenId> NgramIndex::repeats(std::span<const TokenId> history) const {
  std::vector<TokenId> found;
  const size_t before = static_cast<size_t>(n_) - 1;
  if (history.size() < before) return found;
  const std::span<const TokenId> tail = history.last(before);
  const auto entry = next_at_.find(key(tail));
  if (entry == next_at_.end()) return found;
  for (const int32_t at : entry->second)
    if (std::equal(tail.begin(), tail.end(), history.begin() + at - static_cast<int64_t>(before)))
      found.push_back(history[static_cast<size_t>(at)]);
  return found;
}

}  // namespace quire
