// Products of 17 to 256 rows on Hopper (broad_sm90.cu): how they are cut into tiles and parts of k, and who adds what.
//
// A tile is 8 * units rows of w times all rows of x. A cluster of one or two blocks makes it: with two, each has half of the rows of
// x, and what either fetches of w reaches both. Where there are too few tiles for all multiprocessors, several clusters share a
// tile's columns of k; each then adds the sums of its share of the tile, in the order of k, whoever adds them: a second run gives
// the same bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/matmul/matmul.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kMaxBroadRows = 256;
inline constexpr int kBroadStep = 64;  // columns of k at a time: 128 bytes, a row of a swizzled panel

// What a kernel is compiled for. groups: warpgroups of a block, each with 64 rows of x.
struct BroadForm {
  int units, groups, cluster;

  constexpr int rows() const { return 8 * units; }
  constexpr bool holds(int m) const { return m <= 64 * groups * cluster; }
  constexpr bool shares() const { return 64 * groups * rows() <= kMostBroadTile; }  // its sums have a place
  bool operator==(const BroadForm&) const = default;
};
inline constexpr BroadForm kBroadForms[] = {{8, 1, 1},  {16, 1, 1}, {8, 2, 1},  {16, 2, 1},
                                            {16, 3, 1}, {16, 2, 2}, {24, 2, 2}, {28, 2, 2}};

struct BroadPlan {
  BroadForm form{};
  int splits = 1;  // clusters that share a tile's k
};

struct BroadParams {
  Product p;
  SharedSums scratch;
  int32_t tiles = 0, splits = 1, steps = 0;  // steps: of k in a tile
  int32_t x_rows = 0;                        // of a block: fetched, in eights
  int32_t early = 0;                         // stages of w that are asked for before the dependency wait
};

// The parts that a cluster makes, one after another: a part is a range of a tile's steps.
struct BroadPart {
  int tile, split, begin, count;
};
struct BroadWalk {
  int tiles, splits, steps, cluster, clusters;
  int at = cluster;  // tile * splits + split

  __device__ bool more() const { return at < tiles * splits; }
  __device__ void next() { at += clusters; }
  __device__ BroadPart part() const {
    const int tile = at / splits, split = at - tile * splits, begin = split * steps / splits;
    return {tile, split, begin, (split + 1) * steps / splits - begin};
  }
};

// The steps of all parts of a cluster in the order that they are fetched. Clusters begin a part at different steps of it: if all read
// the same columns of x at once, few slices of L2 would give them. No division in between: one thread fetches, and steps are short.
class BroadCursor {
 public:
  __device__ explicit BroadCursor(const BroadWalk& walk) : walk_(walk) { enter(); }
  __device__ bool more() const { return left_ > 0; }
  __device__ int tile() const { return tile_; }
  __device__ int step() const { return begin_ + at_; }
  __device__ void next() {
    if (++at_ == count_) at_ = 0;
    if (--left_ > 0) return;
    walk_.next();
    enter();
  }

 private:
  __device__ void enter() {
    if (!walk_.more()) return;
    const BroadPart part = walk_.part();
    tile_ = part.tile, begin_ = part.begin, count_ = left_ = part.count;
    at_ = walk_.cluster * part.count / walk_.clusters;
  }

  BroadWalk walk_;
  int tile_ = 0, begin_ = 0, count_ = 0, left_ = 0, at_ = 0;
};

// ---- host: the choice, by what an H100 was measured to do ----
// A part is bound by memory, by what a multiprocessor takes in or by what it multiplies; L2 gives all of them as much as they take. These
// rates give the times of 64 forms, shapes and row counts of an 8B model to 6 % (README.md).
struct BroadRates {
  double memory = 3.05e6, intake = 84e3;  // bytes a us; intake: of a multiprocessor
  double products = 2.88e6;               // of a multiprocessor, a us
  double rest = 0.05;                     // of the lesser bounds, on top of the largest
  double start = 3.2, meeting = 1.1;      // us: of a kernel; of blocks that share a tile
  double exchange = 4e6;                  // bytes a us of sums that blocks hand each other, written and read
  // Multiprocessors differ in what memory gives them. Where each makes one part, the slowest keeps the kernel after this one waiting;
  // where there are more, those that are done help.
  double uneven = 0.05;
};

inline double broad_us(const BroadRates& r, const BroadPlan& plan, int multiprocessors, const Product& p) {
  const BroadForm& f = plan.form;
  const int clusters = multiprocessors / f.cluster, parts = ceil_div(p.n, f.rows()) * plan.splits;
  const double w = f.rows(), x = ceil_div(ceil_div(p.m, f.cluster), 8) * 8,
               columns = static_cast<double>(p.w_stride),
               of_one = ceil_div(parts, clusters) * columns / plan.splits;
  const double bounds[] = {p.n * columns * 2 / r.memory, of_one * 2 * (w + x) / r.intake,
                           of_one * 64 * f.groups * w / r.products};
  double longest = 0, sum = 0;
  for (const double us : bounds) longest = std::max(longest, us), sum += us;
  const double us = longest * (parts > clusters ? 1 : 1 + r.uneven) + r.rest * (sum - longest) + r.start;
  if (plan.splits == 1) return us;
  const double handed = parts * f.cluster * (plan.splits - 1) / plan.splits * 64 * f.groups * w * 4;
  return us + r.meeting + 2 * handed / r.exchange;
}

// Where it beats wide_sm90.cu and the fastest of cuBLASLt's ways in a chain of a layer's products, norms and the like on an H100
// (README.md). Weights of less than 3 M elements have not been tried.
inline constexpr int64_t kSmallWeight = 3 << 20, kLargeWeight = 24 << 20;  // elements
inline int64_t elements_of(const Product& p) {
  return int64_t{p.n} * p.k;
}
inline bool is_tall(const Product& p) {
  return p.k > 2 * p.n;
}
// Up to 64 rows: large weights, since its start and end cost 4 us; tall ones, which few tiles of w would leave to few multiprocessors,
// from 33 rows. Of the others those that are wide.
inline bool broad_beats_wide(const Product& p) {
  if (elements_of(p) < kLargeWeight) return p.n > 2 * p.k;
  return p.m > 32 || !is_tall(p);
}
// More: gate and up, whose SiLU has no kernel of its own then, and tall weights, by what cuBLASLt makes of them.
inline bool broad_beats_library(const Product& p) {
  const bool large = elements_of(p) >= kLargeWeight;
  if (p.gated) return p.m <= 128 || (large && p.m > 192);
  if (!is_tall(p)) return false;
  return large ? p.m <= 96 || p.m > 128 : p.m <= 128;
}
inline bool broad_sm90_pays(const Product& p) {
  if (p.m <= kMaxSkinnyRows || p.m > kMaxBroadRows || p.out_f32 || elements_of(p) < kSmallWeight)
    return false;
  return p.m <= kMaxWideRows ? broad_beats_wide(p) : broad_beats_library(p);
}

// How many stages of w are on their way before the kernel before has ended. A small weight's are a large part of it, and what that
// kernel still reads waits behind them.
inline int early_stages(const Product& p) {
  constexpr int kAll = 8, kFew = 3;
  return elements_of(p) < kLargeWeight ? kFew : kAll;
}

inline BroadPlan plan_broad(int multiprocessors, const Product& p) {
  constexpr int kLeastSteps = 4;  // of a part
  BroadPlan best;
  double least = 0;
  for (const BroadForm& form : kBroadForms)
    for (const int splits : {1, 2, 3, 4, 6, 8}) {
      const BroadPlan plan{form, splits};
      // Blocks that share a tile wait for each other, so all must run at once.
      const bool fits =
          splits == 1 ||
          (form.shares() && ceil_div(p.n, form.rows()) * splits * form.cluster <= multiprocessors &&
           p.w_stride / kBroadStep >= splits * kLeastSteps);
      if (!fits || !form.holds(p.m)) continue;
      const double us = broad_us({}, plan, multiprocessors, p);
      if (least == 0 || us < least) best = plan, least = us;
    }
  return best;
}

}  // namespace quire::QUIRE_SIDE
