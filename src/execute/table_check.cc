#include "src/execute/table_check.h"

#include <fmt/format.h>

namespace quire {

Status TableCheck::allocate(int64_t max_sequences, int64_t table_stride) {
  stride_ = table_stride;
  for (DeviceBuffer& back : back_) {
    Result<DeviceBuffer> pinned =
        device_.allocate_pinned(max_sequences * (table_stride + 1) * 4, "block tables to check");
    if (!pinned) return pinned.error();
    back = std::move(*pinned);
  }
  return ok();
}

void TableCheck::fetch(const StepArrays& placed, int32_t num_sequences, int turn) {
  auto* lengths = back_[turn].as<int32_t>();
  device_.copy_to_host(lengths, placed.lengths, int64_t{num_sequences} * 4);
  device_.copy_to_host(lengths + num_sequences, placed.block_table, num_sequences * stride_ * 4);
}

Status TableCheck::compare(const BatchPlan& plan, int turn) const {
  const auto* lengths = back_[turn].as<const int32_t>();
  const int32_t* tables = lengths + plan.sequences.size();
  for (size_t i = 0; i < plan.sequences.size(); ++i)
    if (Status same = compare_list(plan.sequences[i], lengths[i], tables + static_cast<int64_t>(i) * stride_);
        !same)
      return same;
  return ok();
}

Status TableCheck::compare_list(const PlannedSequence& s, int32_t length, const int32_t* row) const {
  if (length != s.list_length_after())
    return error(Code::kInternal, fmt::format("the device holds length {} of sequence {}, not {}", length,
                                              value(s.sequence), s.list_length_after()));
  for (int32_t b = 0; b * block_tokens_ < length; ++b) {
    const int32_t block = value(s.block_table[static_cast<size_t>(b)]);
    if (row[b] != block)
      return error(Code::kInternal, fmt::format("the device holds {} as block {} of sequence {}, not {}",
                                                row[b], b, value(s.sequence), block));
  }
  return ok();
}

}  // namespace quire
