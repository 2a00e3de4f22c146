// Memory beside the cache for policies that go by scores (TOVA, H2O): who lies in which slot of every layer and head, and the scores.
// One region, taken at the start; what a request needs of it is known when it is admitted and is its own until the request is gone, so no
// step allocates. The scheduler gives parts of the region out, the executor keeps the lists there.
//
// A request's part: the sums over its prompt, where the policy goes by them, then one set of lists for each of its samples.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "src/policy/policy_spec.h"

namespace quire {

struct PolicyMemoryLimits {
  int64_t bytes = 0;  // of the region
  int32_t num_layers = 0, num_kv_heads = 0;
};

// Slots that each list of a sequence of at most `total_tokens` tokens comes to: one more than are kept, since the victim is known only
// after its last row. 0: the policy does not go by scores.
int32_t list_room(const PolicySpec& policy, int64_t total_tokens);

// Multiples of 256 bytes; 0 where the policy does not go by scores or has no sums.
int64_t policy_list_bytes(const PolicySpec& policy, int32_t room, const PolicyMemoryLimits& shape);
int64_t policy_sum_bytes(const PolicySpec& policy, int64_t prompt_tokens, const PolicyMemoryLimits& shape);

// Of a whole request.
int64_t policy_request_bytes(const PolicySpec& policy, int64_t prompt_tokens, int64_t total_tokens,
                             int64_t sequences, const PolicyMemoryLimits& shape);

// Who has which part of [0, bytes): the first free run that is large enough.
class PolicyMemory {
 public:
  explicit PolicyMemory(int64_t bytes);
  bool has_room(int64_t bytes) const { return find(bytes) != free_.end(); }
  std::optional<int64_t> take(int64_t bytes);  // its offset
  void give_back(int64_t offset, int64_t bytes);
  int64_t used() const { return used_; }

 private:
  using Runs = std::map<int64_t, int64_t>;  // offset -> bytes
  Runs::const_iterator find(int64_t bytes) const;

  Runs free_;
  int64_t used_ = 0;
};

}  // namespace quire
