// The plan of decode attention: which block of threads takes which tiles, once for all layers of a step that read their
// lists alike. In every block of every layer the same was 2 to 3 us, much of it the fetching of code that runs once.
//
// One block of threads. A thread sums up the spans of a few lists, a scan makes them places in the order of all
// units, and then a thread writes a block's share, finding its first and last unit by bisection.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/decode.h"
#include "kernels/cuda/dispatch.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kPlanThreads = 256, kPlanWarps = kPlanThreads / kWarp;
constexpr int kPlanInts = kPlanThreads + 3 * kPlanWarps;  // shared memory

__device__ DecodeList read_list(const DecodeParams& a, int entry) {
  const AttentionView& v = a.view;
  const int sequence = entry / a.lists;
  DecodeList list;
  list.row = load(v.query_start + sequence);
  const int next_row = load(v.query_start + sequence + 1), there = length_of(v, sequence, entry % a.lists);
  const bool one_row = next_row - list.row == 1;
  list.length = one_row ? there : 0;
  const int window = window_of(v, sequence);
  list.first_slot = window > 0 ? max(0, list.length - window) : 0;
  list.sink_slots = sinks_of(v, sequence);
  if (v.private_start != nullptr && one_row)
    list.first_slot = max(list.first_slot, load(v.private_start + sequence));
  return list;
}

struct DecodePlanner {
  const DecodeParams& a;
  const int thread, lane, warp;
  Shared<int32_t> behind;  // [kPlanThreads] spans of all lists up to a thread's last
  Shared<int32_t> sums, most,
      least;           // [kPlanWarps] of a warp's lists: spans; the longest and shortest unit's
  int from, to, each;  // this thread's lists
  Ranges ranges;

  __device__ explicit DecodePlanner(const DecodeParams& params)
      : a(params), thread(threadIdx.x), lane(thread % kWarp), warp(thread / kWarp) {
    behind = dynamic_shared<int32_t>();
    sums = behind + kPlanThreads;
    most = sums + kPlanWarps;
    least = most + kPlanWarps;
    each = max(1, (a.entries() + kPlanThreads - 1) / kPlanThreads);
    from = min(a.entries(), thread * each);
    to = min(a.entries(), from + each);
  }

  __device__ void run() {
    sum_up();
    const DecodeShare first = thread < a.blocks ? share_of(thread) : DecodeShare{};
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int e = from; e < to; ++e) store(a.plan.lists + e, read_list(a, e));
    if (thread < a.blocks) store(a.plan.shares + thread, first);
    for (int part = thread + kPlanThreads; part < a.blocks; part += kPlanThreads)
      store(a.plan.shares + part, share_of(part));
  }

  __device__ int weight(const DecodeList& list) const { return a.span(list.tiles()) * a.units_per_list(); }

  __device__ void sum_up() {
    int mine = 0, longest = 0, shortest = 0x7fffffff;
    for (int e = from; e < to; ++e) {
      const DecodeList list = read_list(a, e);
      mine += weight(list);
      longest = max(longest, list.tiles());
      if (list.tiles() > 0) shortest = min(shortest, list.tiles());
    }
    int inclusive = mine;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int below = shfl_up(inclusive, d);
      if (lane >= d) inclusive += below;
      longest = max(longest, shfl_xor(longest, d));
      shortest = min(shortest, shfl_xor(shortest, d));
    }
    if (lane == kWarp - 1) {
      sums[warp] = inclusive;
      most[warp] = longest;
      least[warp] = shortest;
    }
    sync_threads();
    int total = 0;
    for (int w = 0; w < kPlanWarps; ++w) {
      const int sum = sums[w];
      if (w < warp) inclusive += sum;
      total += sum;
      longest = max(longest, static_cast<int32_t>(most[w]));
      shortest = min(shortest, static_cast<int32_t>(least[w]));
    }
    behind[thread] = inclusive;
    sync_threads();
    const bool alike = total > 0 && a.span(longest) == a.span(shortest);
    ranges = Ranges::best(total, a.blocks, a.min_tiles, a.aligned && alike ? a.span(longest) : 0, longest);
  }

  // The unit that holds a place below the total.
  __device__ UnitCursor unit_at(int place) const {
    int owner = 0;  // the first thread whose lists reach behind the place
    for (int step = kPlanThreads / 2; step > 0; step /= 2)
      if (behind[owner + step - 1] <= place) owner += step;
    int entry = owner * each, begin = owner == 0 ? 0 : static_cast<int32_t>(behind[owner - 1]);
    UnitCursor c;
    for (c.list = read_list(a, entry); begin + weight(c.list) <= place; c.list = read_list(a, ++entry))
      begin += weight(c.list);
    const int span = a.span(c.list.tiles()), unit = (place - begin) / span;
    c.at = {.sequence = entry / a.lists,
            .kv_head = a.lists == 1 ? unit / a.passes : entry % a.lists,
            .pass = unit % a.passes,
            .begin = begin + unit * span};
    return c;
  }

  __device__ DecodeShare share_of(int part) const {
    DecodeShare s = {};
    if (part >= ranges.parts) return s;
    const int begin = ranges.begin(part), end = ranges.begin(part + 1);
    if (begin >= end) return s;
    UnitCursor first = unit_at(begin);
    if (begin >= first.end()) {  // the range begins behind the tiles of a short unit
      if (first.behind(a) >= end) return s;
      first.next(a, [&](int e) { return read_list(a, e); });
    }
    const UnitCursor last = unit_at(end - 1);
    const bool last_first = a.split_first && last.at.begin > first.at.begin && last.end() > end;
    s.from = begin;
    s.to = end;
    s.list = last_first ? last.list : first.list;
    s.start = last_first ? last.at : first.at;
    s.stop = last_first ? last.at.begin : end;
    s.then = first.at;
    s.front_first = ranges.owner(first.at.begin);
    s.front_inside = ranges.begin(s.front_first) < first.at.begin;
    s.front_last = ranges.owner(first.end() - 1);
    s.back_last = ranges.owner(last.end() - 1);
    return s;
  }
};

__global__ void __launch_bounds__(kPlanThreads) plan_decode(const __grid_constant__ DecodeParams params) {
  DecodePlanner(params).run();
}

}  // namespace

int64_t decode_plan_bytes(int blocks, int64_t max_lists) {
  return blocks * int64_t{sizeof(DecodeShare)} + max_lists * int64_t{sizeof(DecodeList)};
}

DecodePlan decode_plan_at(void* memory, int blocks) {
  auto* shares = static_cast<DecodeShare*>(memory);
  return {.shares = shares, .lists = reinterpret_cast<DecodeList*>(shares + blocks)};
}

void launch_decode_plan(void* stream, const DecodeParams& a) {
  launch<plan_decode>({.grid = dim3(1),
                       .block = dim3(kPlanThreads),
                       .shared_bytes = kPlanInts * 4,
                       .stream = stream,
                       .dependent = true,
                       .carveout = carveout_of(a.view.num_sequences)},
                      a);
}

}  // namespace quire::QUIRE_SIDE
