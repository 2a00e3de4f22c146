// What a step brings to the device and takes from it: copy_bytes and bring_step. Mapped host memory is read over the bus, a trip of 1 to 2 us
// however much is asked for at once, so every word has a thread of its own and nothing is read twice.
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/ops.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;

constexpr int64_t blocks_of(int64_t threads) {
  return (threads + kThreads - 1) / kThreads;
}

__device__ void copy_word(const CopyBytesParams& p, int64_t i) {
  if (i < p.bytes / 4)
    store(static_cast<uint32_t*>(p.target) + i, load(static_cast<const uint32_t*>(p.source) + i));
}

__global__ void __launch_bounds__(kThreads) copy_words(CopyBytesParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  copy_word(p, int64_t{blockIdx.x} * kThreads + threadIdx.x);
}

// Entries of a list lie in the tables before, in the step's own, or, one alone, in the row's record.
__device__ void write_row(const BringStepParams& p, int64_t row, const TableRow& r) {
  const int32_t* before = p.before + r.from * p.stride;
  int32_t* after = p.after + row * p.stride;
  for (int i = threadIdx.x; i < r.kept; i += kThreads) store(after + i, load(before + i));
  if (r.added == 1) {
    if (threadIdx.x == 0) store(after + r.kept, r.entries);
    return;
  }
  for (int i = threadIdx.x; i < r.added; i += kThreads)
    store(after + r.kept + i, load(p.entries + r.entries + i));
}

// A thread a row of the step. The three reads are one trip.
__device__ void take_id(const TakeSampledParams& p, int64_t row) {
  if (row >= p.rows) return;
  const int32_t source = load(p.source + row), given = load(p.given + row);
  const int64_t at = p.histories == nullptr ? -1 : load(p.history_at + row);
  const int32_t id = source < 0 ? given : max(load(p.tokens + source), 0);
  store(p.ids + row, id);
  if (at >= 0) store(p.histories + at, id);
}

// Blocks of threads: one a row of the tables, where one thread fetches the record for all; then those with a thread a row of ids; then those with a
// thread a word of the arrays.
__global__ void __launch_bounds__(kThreads) bring_rows(BringStepParams p) {
  const Shared<uint4> record = dynamic_shared<uint4>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (blockIdx.x >= p.num_rows) {
    const int64_t thread = (blockIdx.x - p.num_rows) * kThreads + threadIdx.x,
                  id_threads = blocks_of(p.ids.rows) * kThreads;
    return thread < id_threads ? take_id(p.ids, thread) : copy_word(p.arrays, thread - id_threads);
  }
  if (threadIdx.x == 0) record[0] = load(reinterpret_cast<const uint4*>(p.rows + blockIdx.x));
  sync_threads();
  const uint4 r = record[0];
  write_row(p, blockIdx.x,
            {.from = static_cast<int32_t>(r.x),
             .kept = static_cast<int32_t>(r.y),
             .added = static_cast<int32_t>(r.z),
             .entries = static_cast<int32_t>(r.w)});
}

void check_copy(const CopyBytesParams& p) {
  check_given("copy_bytes source", p.source);
  check_given("copy_bytes target", p.target);
  check_equal("copy_bytes, bytes modulo 4", p.bytes % 4, 0);
}

}  // namespace

void copy_bytes(const Target& target, const CopyBytesParams& p) {
  if (p.bytes == 0) return;
  check_copy(p);
  launch<copy_words>({.grid = as_grid(blocks_of(p.bytes / 4)),
                      .block = kThreads,
                      .stream = target.stream,
                      .dependent = true},
                     p);
}

void bring_step(const Target& target, const BringStepParams& p) {
  const int64_t blocks = p.num_rows + blocks_of(p.ids.rows) + blocks_of(p.arrays.bytes / 4);
  if (blocks == 0) return;
  if (p.arrays.bytes > 0) check_copy(p.arrays);
  if (p.ids.rows > 0) {
    check_given("bring_step ids", p.ids.ids);
    check_given("bring_step given ids", p.ids.given);
    check_given("bring_step sources of ids", p.ids.source);
    check_given("bring_step tokens", p.ids.tokens);
    if (p.ids.histories != nullptr) check_given("bring_step, where histories go on", p.ids.history_at);
  }
  if (p.num_rows > 0) {
    check_given("bring_step rows", p.rows);
    check_given("bring_step before", p.before);
    check_given("bring_step after", p.after);
    check_equal("bring_step, tables before and after are one", p.before == p.after, false);
    check_equal("bring_step rows, alignment to 16", reinterpret_cast<uintptr_t>(p.rows) % 16, 0);
  }
  launch<bring_rows>({.grid = as_grid(blocks),
                      .block = kThreads,
                      .shared_bytes = sizeof(TableRow),
                      .stream = target.stream,
                      .dependent = true,
                      .carveout = carveout_of(p.num_rows)},
                     p);
}

}  // namespace quire::QUIRE_SIDE
