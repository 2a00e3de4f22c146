// The decisions of the score-driven retention policies (TOVA, H2O), as plain functions over one list and a small state per list.
// A list keeps its live slots at 0..n-1 until it is full; from then on the next token overwrites the slot of the last victim.
// Scores belong to the list, not to the block: shared blocks are read under different scores.
// Ties: the higher score wins; equal scores, the newer position. Used from one thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/policy/policy_spec.h"

namespace quire {

// Indices of the `keep` highest scores, ascending. positions break ties (the newer wins). scores and positions: one per slot.
std::vector<int32_t> keep_highest(std::span<const float> scores, std::span<const int32_t> positions,
                                  int32_t keep);

// out[j] = mean over heads of exp(logits[h][j] - lse[h]). logits: [heads] rows of `stride` floats, the first n used.
void mean_probabilities(std::span<const float> logits, int64_t stride, std::span<const float> lse,
                        std::span<float> out);
// out[j] += sum over heads of exp(logits[h][j] - lse[h]).
void add_probabilities(std::span<const float> logits, int64_t stride, std::span<const float> lse,
                       std::span<float> out);

// One list of a sequence under TOVA or H2O.
class RetentionList {
 public:
  // Slot for the token at `position`: the next one, or the last victim's once the list is full. The token counts as live at once.
  int32_t append(int32_t position);

  // After the whole prompt has run: keeps what the policy keeps and drops the rest. Returns the kept slots in position order;
  // slot i of the new list takes the bytes of slot kept[i] of the old one.
  // tova: row probabilities of the last prompt row. h2o: `scores` are the column sums over the whole prompt.
  std::vector<int32_t> cut(const PolicySpec& spec, std::span<const float> scores);

  // After a decode row has attended all slots: updates scores and, if the list holds more than the policy keeps, picks the victim.
  // probabilities: what the row gave each slot, in the policy's own reduction over heads (tova: mean; h2o: sum over the group).
  void on_decode_row(const PolicySpec& spec, std::span<const float> probabilities);

  int32_t num_slots() const { return static_cast<int32_t>(positions_.size()); }  // live ones and the victim's
  int32_t num_live() const { return num_slots() - (free_slot_ >= 0 ? 1 : 0); }
  int32_t position_of(int32_t slot) const { return positions_[static_cast<size_t>(slot)]; }
  std::vector<int32_t> live_positions() const;  // ascending
  std::span<const float> scores() const { return scores_; }

 private:
  int32_t pick_victim(const PolicySpec& spec, std::span<const float> scores) const;

  std::vector<int32_t> positions_;  // by slot
  std::vector<float> scores_;       // by slot; h2o only
  int32_t free_slot_ = -1;          // the victim's slot, dead until overwritten
};

}  // namespace quire
