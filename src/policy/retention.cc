#include "src/policy/retention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/base/check.h"

namespace quire {
namespace {

// Does slot a lose against slot b?
bool worse(std::span<const float> scores, std::span<const int32_t> positions, int32_t a, int32_t b) {
  const auto i = static_cast<size_t>(a), j = static_cast<size_t>(b);
  return scores[i] != scores[j] ? scores[i] < scores[j] : positions[i] < positions[j];
}

std::vector<int32_t> slots_by_position(std::span<const int32_t> positions) {
  std::vector<int32_t> order(positions.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return positions[static_cast<size_t>(a)] < positions[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<int32_t> keep_highest(std::span<const float> scores, std::span<const int32_t> positions,
                                  int32_t keep) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  if (keep < static_cast<int32_t>(order.size())) {
    std::nth_element(order.begin(), order.begin() + keep, order.end(),
                     [&](int32_t a, int32_t b) { return worse(scores, positions, b, a); });
    order.resize(static_cast<size_t>(keep));
  }
  std::sort(order.begin(), order.end());
  return order;
}

void mean_probabilities(std::span<const float> logits, int64_t stride, std::span<const float> lse,
                        std::span<float> out) {
  std::fill(out.begin(), out.end(), 0.0f);
  add_probabilities(logits, stride, lse, out);
  for (float& p : out) p /= static_cast<float>(lse.size());
}

void add_probabilities(std::span<const float> logits, int64_t stride, std::span<const float> lse,
                       std::span<float> out) {
  for (size_t head = 0; head < lse.size(); ++head) {
    const float* row = logits.data() + static_cast<int64_t>(head) * stride;
    for (size_t j = 0; j < out.size(); ++j) out[j] += std::exp(row[j] - lse[head]);
  }
}

int32_t RetentionList::append(int32_t position) {
  if (free_slot_ >= 0) {
    const int32_t slot = free_slot_;
    positions_[static_cast<size_t>(slot)] = position;
    scores_[static_cast<size_t>(slot)] = 0.0f;
    free_slot_ = -1;
    return slot;
  }
  positions_.push_back(position);
  scores_.push_back(0.0f);
  return num_slots() - 1;
}

std::vector<int32_t> RetentionList::cut(const PolicySpec& spec, std::span<const float> scores) {
  check(free_slot_ < 0 && scores.size() == positions_.size(),
        "RetentionList::cut: scores do not match the list, or the list was cut before");
  const int32_t total = num_slots(), kept_most = capacity(spec);
  std::vector<int32_t> kept(positions_.size());
  std::iota(kept.begin(), kept.end(), 0);
  if (total > kept_most && spec.kind == RetentionKind::kTova) {
    kept = keep_highest(scores, positions_, kept_most);
  } else if (total > kept_most) {  // h2o: the heavy ones among the oldest, then the recent run
    const auto oldest = static_cast<size_t>(total - spec.recent);
    kept = keep_highest(scores.first(oldest), std::span<const int32_t>(positions_).first(oldest), spec.heavy);
    for (int32_t slot = total - spec.recent; slot < total; ++slot) kept.push_back(slot);
  }
  std::vector<int32_t> positions;
  std::vector<float> kept_scores;
  for (const int32_t slot : kept) {
    positions.push_back(positions_[static_cast<size_t>(slot)]);
    kept_scores.push_back(spec.kind == RetentionKind::kH2o ? scores[static_cast<size_t>(slot)] : 0.0f);
  }
  positions_ = std::move(positions);
  scores_ = std::move(kept_scores);
  return kept;
}

void RetentionList::on_decode_row(const PolicySpec& spec, std::span<const float> probabilities) {
  check(free_slot_ < 0 && probabilities.size() == positions_.size(),
        "RetentionList::on_decode_row: probabilities do not match the list");
  if (spec.kind == RetentionKind::kH2o)
    for (size_t slot = 0; slot < scores_.size(); ++slot) scores_[slot] += probabilities[slot];
  if (num_slots() <= capacity(spec)) return;
  check(num_slots() == capacity(spec) + 1,
        "RetentionList::on_decode_row: the list holds more than one token over its capacity");
  free_slot_ =
      pick_victim(spec, spec.kind == RetentionKind::kH2o ? std::span<const float>(scores_) : probabilities);
}

int32_t RetentionList::pick_victim(const PolicySpec& spec, std::span<const float> scores) const {
  std::vector<int32_t> candidates = slots_by_position(positions_);
  if (spec.kind == RetentionKind::kH2o)
    candidates.resize(candidates.size() - static_cast<size_t>(spec.recent));
  return *std::min_element(candidates.begin(), candidates.end(),
                           [&](int32_t a, int32_t b) { return worse(scores, positions_, a, b); });
}

std::vector<int32_t> RetentionList::live_positions() const {
  std::vector<int32_t> live;
  for (int32_t slot = 0; slot < num_slots(); ++slot)
    if (slot != free_slot_) live.push_back(positions_[static_cast<size_t>(slot)]);
  std::sort(live.begin(), live.end());
  return live;
}

}  // namespace quire
