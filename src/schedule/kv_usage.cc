// What the cache does for one request, measured when it can peak: at the end of the prompt, at a fork, before
// blocks go back.
#include <algorithm>
#include <utility>

#include "src/schedule/scheduler.h"

namespace quire {

// A block that several samples share counts once, with the most slots that one of them has filled.
void Scheduler::measure(SequenceGroup& group) {
  measured_.resize(cache_.num_block_ids());
  ++measure_;
  int64_t filled = 0;
  int32_t blocks = 0, shared = 0;
  for (const auto& s : group.sequences)
    for (int32_t i = 0; i < s->table.num_blocks(); ++i) {
      const BlockId block = s->table.blocks()[i];
      const int32_t slots = std::min(block_tokens_, s->table.length() - i * block_tokens_);
      Measured& met = measured_[value(block)];
      const bool first = std::exchange(met.in, measure_) != measure_;
      const int32_t before = first ? 0 : met.filled;
      met.filled = std::max(before, slots);
      filled += met.filled - before;
      if (!first) continue;
      ++blocks;
      if (cache_.num_holders(block) > 1) ++shared;
    }
  if (blocks == 0) return;
  group.kv.blocks_shared_peak = std::max(group.kv.blocks_shared_peak, shared);
  if (blocks <= group.kv.blocks_peak) return;
  group.kv.blocks_peak = blocks;
  group.kv.waste_percent =
      100.0 * (1.0 - static_cast<double>(filled) / (static_cast<double>(blocks) * block_tokens_));
}

// What a planned decode reads of its list, and what its policy takes out of it. Tokens that are computed again after a preemption run in
// chunks, as a prompt does.
void Scheduler::count_policy_work(const PlannedWork& work) {
  const Sequence& s = *work.sequence;
  if (work.first < s.num_prompt_tokens || work.count != 1) return;
  const SequenceGroup& group = *s.group;
  const int32_t length = s.table.length();
  counters_.decode_reads += group.traits.slides ? std::min(length, capacity(group.policy)) : length;
  if (work.cut >= 0) counters_.dropped_tokens += s.num_prompt_tokens - work.list_before;
  if (work.overwrites) ++counters_.dropped_tokens;
}

}  // namespace quire
