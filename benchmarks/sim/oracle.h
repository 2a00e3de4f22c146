// When each prefix of a trace will be asked for again: what Belady's rule needs to know. Computed from the
// whole trace beforehand, so only for comparison.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "benchmarks/traces/trace.h"
#include "src/cache/namespaces.h"

namespace quire {

class NextUses {
 public:
  NextUses(const Trace& trace, NamespaceId ns, int32_t vocab_size, int32_t block_tokens);

  // The first request from `from` on whose prompt begins with this prefix (PrefixTree::prefix_hash of its
  // last block); infinity if none does.
  double after(uint64_t prefix_hash, int64_t from) const;

 private:
  std::vector<std::pair<uint64_t, int32_t>> uses_;  // prefix and request, sorted
};

}  // namespace quire
