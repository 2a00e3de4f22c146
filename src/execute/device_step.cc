#include "src/execute/device_step.h"

#include <algorithm>
#include <cstring>

#include "src/base/check.h"

namespace quire {
namespace {

// Byte offsets of a shape's arrays, each aligned for 16-byte reads.
struct Layout {
  int64_t table_rows, ids, id_source, history_at;  // read where they are packed
  int64_t positions, slots, query_start, lengths, logits_rows, settings, edits, reports, windows, sink_slots,
      sink_positions;
  int64_t node_slots, node_sequence_start, node_sequences, sequence_member_start, sequence_members,
      private_start;
  int64_t items, item_of_row, row_logits_start, column_sums_start, cut_blocks;
  int64_t arrays_end, table_entries, copy_pairs, end;

  explicit Layout(const StepShape& s) {
    int64_t at = 0;
    const auto take = [&at](int64_t count, int64_t bytes) {
      const int64_t begin = at;
      at += (count * bytes + 15) / 16 * 16;
      return begin;
    };
    table_rows = take(s.sequences, sizeof(TableRow));
    ids = take(s.rows, 4);
    id_source = take(s.rows, 4);
    history_at = take(s.histories ? s.rows : 0, 8);
    positions = take(s.rows, 4);
    slots = take(s.rows, 8);
    query_start = take(s.sequences + 1, 4);
    lengths = take(s.sequences, 4);
    logits_rows = take(s.logits_rows, 4);
    settings = take(s.samples, sizeof(SampleSettings));
    edits = take(s.edits, sizeof(LogitEdit));
    reports = take(s.reports, sizeof(LogprobReport));
    windows = take(s.windows ? s.sequences : 0, 4);
    sink_slots = take(s.sinks ? s.sequences : 0, 4);
    sink_positions = take(s.sinks ? s.rows : 0, 4);
    const bool shares = s.prefix_nodes > 0;
    node_slots = take(int64_t{s.prefix_nodes} * 2, 4);
    node_sequence_start = take(shares ? s.prefix_nodes + 1 : 0, 4);
    node_sequences = take(s.prefix_members, 4);
    sequence_member_start = take(shares ? s.sequences + 1 : 0, 4);
    sequence_members = take(s.prefix_members, 4);
    private_start = take(shares ? s.sequences : 0, 4);
    const bool retains = s.retained > 0;
    items = take(s.retained, sizeof(RetentionItem));
    item_of_row = take(retains ? s.rows : 0, 4);
    row_logits_start = take(retains ? s.sequences : 0, 8);
    column_sums_start = take(retains ? s.sequences : 0, 8);
    cut_blocks = take(s.cut_blocks, 4);
    arrays_end = at;
    table_entries = take(s.table_entries, 4);
    copy_pairs = take(s.copies * 2, 4);
    end = at;
  }
};

// Copies what there is and fills up to `count` with `padding`.
template <class T>
void put(char* base, int64_t offset, const T* source, int64_t there, int64_t count, T padding) {
  T* target = reinterpret_cast<T*>(base + offset);
  if (there > 0) std::memcpy(target, source, static_cast<size_t>(there) * sizeof(T));
  std::fill(target + there, target + count, padding);
}

// Nodes past the last have no members, sequences past the last share nothing.
void put_prefixes(char* host, const Layout& at, const SharedPrefixes& p, int32_t num_sequences,
                  const StepShape& shape) {
  put(host, at.node_slots, p.node_slots, 2 * p.num_nodes, 2 * shape.prefix_nodes, 0);
  put(host, at.node_sequence_start, p.node_sequence_start, p.num_nodes + 1, shape.prefix_nodes + 1,
      p.num_members);
  put(host, at.node_sequences, p.node_sequences, p.num_members, shape.prefix_members, 0);
  put(host, at.sequence_member_start, p.sequence_member_start, num_sequences + 1, shape.sequences + 1,
      p.num_members);
  put(host, at.sequence_members, p.sequence_members, p.num_members, shape.prefix_members, 0);
  put(host, at.private_start, p.private_start, num_sequences, shape.sequences, 0);
}

// Items past the last have no lists; nobody wants side outputs of sequences past the last.
void put_retention(char* host, const Layout& at, const RetentionArrays& r, const StepShape& shape) {
  const auto put_all = [host](int64_t offset, const auto& from, int64_t count, auto padding) {
    put(host, offset, from.data(), static_cast<int64_t>(from.size()), count, padding);
  };
  put_all(at.items, r.items, shape.retained, RetentionItem{.lists = 0});
  put_all(at.item_of_row, r.item_of_row, shape.rows, int32_t{-1});
  put_all(at.row_logits_start, r.row_logits_start, shape.sequences, int64_t{-1});
  put_all(at.column_sums_start, r.column_sums_start, shape.sequences, int64_t{-1});
  put_all(at.cut_blocks, r.cut_blocks, shape.cut_blocks, 0);
}

}  // namespace

int64_t DeviceStep::array_bytes(const StepShape& shape) {
  return Layout(shape).arrays_end;
}

int64_t DeviceStep::device_bytes(const StepShape& largest, int64_t table_stride) {
  const Layout at(largest);
  return at.arrays_end + (at.end - at.copy_pairs) + 2 * largest.sequences * table_stride * 4;
}

Result<DeviceStep> DeviceStep::create(StreamDevice& device, const StepShape& largest, int64_t table_stride) {
  DeviceStep step;
  step.table_stride_ = table_stride;
  const Layout at(largest);
  Result<DeviceBuffer> staging =
      device.allocate(at.arrays_end + (at.end - at.copy_pairs), "arrays of a step");
  if (!staging) return staging.error();
  step.staging_ = std::move(*staging);
  for (DeviceBuffer& tables : step.tables_) {
    Result<DeviceBuffer> buffer = device.allocate(largest.sequences * table_stride * 4, "block tables");
    if (!buffer) return buffer.error();
    tables = std::move(*buffer);
    device.set_zero(tables.data(), tables.bytes());  // what is read past a list's end must name a block
  }
  for (DeviceBuffer& pinned : step.pinned_) {
    Result<DeviceBuffer> buffer = device.allocate_pinned(at.end, "arrays of a step");
    if (!buffer) return buffer.error();
    pinned = std::move(*buffer);
  }
  return step;
}

void DeviceStep::pack_arrays(const HostStep& step, const TableDeltas& tables, const DeviceStepExtras& extras,
                             const StepShape& shape, char* host) const {
  const Layout at(shape);
  const StepArrays from = step.arrays();
  const auto put_all = [host](int64_t offset, const auto& source, int64_t count, auto padding) {
    put(host, offset, source.data(), static_cast<int64_t>(source.size()), count, padding);
  };
  put_all(at.table_rows, tables.rows(), shape.sequences, TableRow{});
  put(host, at.ids, from.ids, from.rows, shape.rows, 0);
  put(host, at.positions, from.positions, from.rows, shape.rows, 0);
  put(host, at.id_source, extras.id_source.data(), from.rows, shape.rows, -1);
  put(host, at.slots, from.slots, from.rows, shape.rows, int64_t{-1});
  put(host, at.query_start, from.query_start, from.num_sequences + 1, from.num_sequences + 1, 0);
  auto* query_start = reinterpret_cast<int32_t*>(host + at.query_start);
  // Rows that pad a step with prompts belong to no sequence.
  for (int32_t s = from.num_sequences; s < shape.sequences; ++s)
    query_start[s + 1] = query_start[s] + (shape.with_prompts ? 0 : 1);
  // Lists that pad the batch are empty: no attention is computed for them.
  put(host, at.lengths, from.lengths, from.num_sequences, shape.sequences, 0);
  put(host, at.logits_rows, from.logits_rows, std::min(from.num_logits_rows, shape.logits_rows),
      shape.logits_rows, 0);
  put_all(at.settings, extras.sampling.settings, shape.samples, SampleSettings{.inverse_temperature = 0});
  put_all(at.edits, extras.sampling.edits, shape.edits, LogitEdit{});
  put_all(at.reports, extras.sampling.reports, shape.reports, LogprobReport{});
  if (shape.histories) put_all(at.history_at, extras.sampling.history_at, shape.rows, int64_t{-1});
  if (shape.windows) put(host, at.windows, from.windows, from.num_sequences, shape.sequences, 0);
  if (shape.sinks) put(host, at.sink_slots, from.sink_slots, from.num_sequences, shape.sequences, 0);
  if (shape.sinks) put(host, at.sink_positions, from.sink_positions, from.rows, shape.rows, 0);
  if (shape.prefix_nodes > 0) put_prefixes(host, at, extras.prefixes, from.num_sequences, shape);
  if (shape.retained > 0) put_retention(host, at, extras.retention, shape);
  put_all(at.table_entries, tables.entries(), shape.table_entries, 0);
  put_all(at.copy_pairs, extras.copy_pairs, shape.copies * 2, 0);
}

PlacedStep DeviceStep::pack(const HostStep& step, const TableDeltas& tables, const DeviceStepExtras& extras,
                            const StepShape& shape, int turn) {
  const Layout at(shape);
  check(at.end <= pinned_[turn].bytes(), "DeviceStep: the step is larger than the largest it was made for");
  char* host = pinned_[turn].as<char>();
  pack_arrays(step, tables, extras, shape, host);
  char* base = staging_.as<char>();
  const auto ints = [base](int64_t offset) { return reinterpret_cast<int32_t*>(base + offset); };
  char* pairs = base + at.arrays_end;
  PlacedStep placed{
      .arrays = step.arrays(),
      .copy_pairs = reinterpret_cast<const int32_t*>(pairs),
      .bring = {.arrays = {.source = host + at.positions,
                           .target = base + at.positions,
                           .bytes = at.arrays_end - at.positions},
                .ids = {.ids = ints(at.ids),
                        .given = reinterpret_cast<const int32_t*>(host + at.ids),
                        .source = reinterpret_cast<const int32_t*>(host + at.id_source),
                        .rows = shape.rows,
                        .history_at = shape.histories ? reinterpret_cast<const int64_t*>(host + at.history_at)
                                                      : nullptr},
                .rows = reinterpret_cast<const TableRow*>(host + at.table_rows),
                .entries = reinterpret_cast<const int32_t*>(host + at.table_entries),
                .before = tables_[1 - turn].as<const int32_t>(),
                .after = tables_[turn].as<int32_t>(),
                .stride = table_stride_,
                .num_rows = shape.sequences},
      .bring_pairs = {.source = host + at.copy_pairs, .target = pairs, .bytes = at.end - at.copy_pairs},
      .bytes = at.end};
  placed.arrays.ids = placed.bring.ids.ids;
  placed.arrays.positions = ints(at.positions);
  placed.arrays.slots = reinterpret_cast<const int64_t*>(base + at.slots);
  placed.arrays.query_start = ints(at.query_start);
  placed.arrays.lengths = ints(at.lengths);
  placed.arrays.block_table = placed.bring.after;
  placed.arrays.logits_rows = ints(at.logits_rows);
  placed.arrays.windows = shape.windows ? ints(at.windows) : nullptr;
  placed.arrays.sink_slots = shape.sinks ? ints(at.sink_slots) : nullptr;
  placed.arrays.sink_positions = shape.sinks ? ints(at.sink_positions) : nullptr;
  const auto longs = [base](int64_t offset) { return reinterpret_cast<const int64_t*>(base + offset); };
  placed.retention = {.items = reinterpret_cast<const RetentionItem*>(base + at.items),
                      .item_of_row = ints(at.item_of_row),
                      .row_logits_start = longs(at.row_logits_start),
                      .column_sums_start = longs(at.column_sums_start),
                      .cut_blocks = ints(at.cut_blocks)};
  placed.sampling = {.settings = reinterpret_cast<const SampleSettings*>(base + at.settings),
                     .edits = reinterpret_cast<const LogitEdit*>(base + at.edits),
                     .reports = reinterpret_cast<const LogprobReport*>(base + at.reports),
                     .num_samples = shape.samples,
                     .num_edits = shape.edits,
                     .num_reports = shape.reports};
  placed.arrays.prefixes = {};
  if (shape.prefix_nodes > 0) {
    placed.arrays.prefixes = {.num_nodes = shape.prefix_nodes,
                              .num_members = shape.prefix_members,
                              .num_splits = shape.prefix_splits,
                              .node_slots = ints(at.node_slots),
                              .node_sequence_start = ints(at.node_sequence_start),
                              .node_sequences = ints(at.node_sequences),
                              .sequence_member_start = ints(at.sequence_member_start),
                              .sequence_members = ints(at.sequence_members),
                              .private_start = ints(at.private_start)};
  }
  placed.arrays.rows = shape.rows;
  placed.arrays.table_stride = table_stride_;
  placed.arrays.num_logits_rows = shape.logits_rows;
  placed.arrays.num_sequences = shape.sequences;
  return placed;
}

}  // namespace quire
