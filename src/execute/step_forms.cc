#include "src/execute/step_forms.h"

#include <algorithm>
#include <cstdint>

#include "src/base/blocks_for.h"
#include "src/execute/prefix_groups.h"
#include "src/execute/step_graphs.h"

namespace quire {
namespace {

// One row a sequence, each of them sampled.
void pad_decode(StepShape& s) {
  s.rows = s.logits_rows = decode_bucket(s.rows);
  s.sequences = s.samples = static_cast<int32_t>(s.rows);
  if (s.retained > 0) s.retained = static_cast<int32_t>(decode_bucket(s.retained));
}

void pad_with_prompts(const GraphRules& rules, StepShape& s) {
  const int64_t most = std::max<int64_t>({s.sequences, s.logits_rows, s.samples});
  const auto sequences = std::min(static_cast<int32_t>(sequence_bucket(most)), rules.max_samples);
  s.with_prompts = true;
  s.rows = token_bucket(s.rows);
  s.sequences = sequences;
  s.logits_rows = s.logits_rows == 0 ? 0 : sequences;  // 0: nobody asks for the last layer's work
  s.samples = s.samples == 0 ? 0 : sequences;
}

}  // namespace

int64_t table_stride(const StepLimits& l) {
  const int64_t blocks = blocks_for(l.max_context_tokens, l.block_tokens);
  return (blocks + 15) / 16 * 16;
}

StepShape largest_step(const StepLimits& l) {
  const int64_t sequences = decode_bucket(l.max_sequences), rows = std::max(l.max_rows, sequences);
  return {.rows = rows,
          .sequences = static_cast<int32_t>(sequences),
          .logits_rows = rows,
          .samples = static_cast<int32_t>(sequences),
          .edits = static_cast<int32_t>(sequences),
          .reports = static_cast<int32_t>(sequences),
          .table_entries = sequences * table_stride(l),
          .copies = l.num_blocks,
          .windows = true,
          .sinks = true,
          .histories = true,
          .prefix_nodes = prefix_node_room(static_cast<int32_t>(sequences)),
          .prefix_members = prefix_member_room(static_cast<int32_t>(sequences)),
          .prefix_splits = 1,
          .retained = static_cast<int32_t>(sequences),
          .cut_blocks = static_cast<int32_t>(std::min<int64_t>(sequences * table_stride(l), INT32_MAX))};
}

DeviceSamplingSizes sampling_sizes(const StepLimits& l) {
  return {.max_samples = static_cast<int32_t>(decode_bucket(l.max_sequences)),
          .vocab = l.vocab_size,
          .max_context_tokens = l.max_context_tokens};
}

StepForm pad_for_graph(const GraphRules& rules, bool one_row_each, StepShape& shape) {
  if (shape.rows == 0) return StepForm::kLaunched;
  const bool decodes = one_row_each && shape.logits_rows == shape.rows && shape.samples == shape.rows;
  StepShape padded = shape;
  if (decodes)
    pad_decode(padded);
  else
    pad_with_prompts(rules, padded);
  if (!decodes && (padded.rows > rules.max_rows || shape.retained > 0)) return StepForm::kLaunched;
  // Edits and reports as many as samples, or none: more sizes would be more graphs.
  if (shape.edits > 0) padded.edits = padded.samples;
  if (shape.reports > 0) padded.reports = padded.samples;
  if (padded.logits_rows > rules.logits_rows) return StepForm::kLaunched;
  shape = padded;
  return decodes ? StepForm::kDecode : StepForm::kWithPrompts;
}

}  // namespace quire
