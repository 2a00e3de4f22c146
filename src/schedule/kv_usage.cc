// What the cache does for one request, measured when it can peak: at the end of the prompt, at a fork, before
// blocks go back.
#include <algorithm>

#include "src/schedule/scheduler.h"

namespace quire {

void Scheduler::measure(SequenceGroup& group) {
  scratch_.clear();
  for (const auto& s : group.sequences)
    for (int32_t i = 0; i < s->table.num_blocks(); ++i)
      scratch_.emplace_back(s->table.blocks()[i],
                            std::min(block_tokens_, s->table.length() - i * block_tokens_));
  if (scratch_.empty()) return;
  if (group.sequences.size() > 1) std::sort(scratch_.begin(), scratch_.end());
  int64_t filled = 0;
  int32_t blocks = 0, shared = 0;
  for (size_t i = 0; i < scratch_.size(); ++i) {
    const bool again = i + 1 < scratch_.size() && scratch_[i + 1].first == scratch_[i].first;
    if (again) continue;  // the last of equal blocks has the most slots filled
    ++blocks;
    filled += scratch_[i].second;
    if (cache_.num_holders(scratch_[i].first) > 1) ++shared;
  }
  group.kv.blocks_shared_peak = std::max(group.kv.blocks_shared_peak, shared);
  if (blocks <= group.kv.blocks_peak) return;
  group.kv.blocks_peak = blocks;
  group.kv.waste_percent =
      100.0 * (1.0 - static_cast<double>(filled) / (static_cast<double>(blocks) * block_tokens_));
}

}  // namespace quire
