#include "benchmarks/sim/oracle.h"

#include <algorithm>
#include <limits>

#include "src/cache/hash.h"

namespace quire {

NextUses::NextUses(const Trace& trace, NamespaceId ns, int32_t vocab_size, int32_t block_tokens) {
  for (size_t i = 0; i < trace.requests.size(); ++i) {
    const std::vector<TokenId> prompt = prompt_of(trace, i, vocab_size);
    uint64_t hash = mix(kHashSeed, value(ns));
    for (size_t end = block_tokens; end <= prompt.size(); end += block_tokens) {
      hash = mix(hash, hash_tokens(std::span(prompt).subspan(end - block_tokens, block_tokens)));
      uses_.emplace_back(hash, static_cast<int32_t>(i));
    }
  }
  std::sort(uses_.begin(), uses_.end());
}

double NextUses::after(uint64_t prefix_hash, int64_t from) const {
  const auto next =
      std::lower_bound(uses_.begin(), uses_.end(), std::pair(prefix_hash, static_cast<int32_t>(from)));
  const bool comes = next != uses_.end() && next->first == prefix_hash;
  return comes ? next->second : std::numeric_limits<double>::infinity();
}

}  // namespace quire
