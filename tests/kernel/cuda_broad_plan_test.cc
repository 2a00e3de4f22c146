// How products of large weights are cut (broad_plan.h), without a card: every step of k of every tile is made once; what blocks that
// wait for each other need (all at once on the card, room for their sums) holds for any shape; a model's products keep all
// multiprocessors busy.
#include <gtest/gtest.h>

#include <set>

#include "kernels/cuda/matmul/broad_plan.h"
#include "src/base/random.h"

namespace quire::cuda_host {
namespace {

constexpr int kMultiprocessors = 132;

Product product(int32_t m, int32_t n, int32_t k) {
  return {.w_stride = stored_row_elements(k), .m = m, .n = n, .k = k};
}
int tiles_of(const BroadPlan& plan, const Product& p) {
  return ceil_div(p.n, plan.form.rows());
}

void expect_sound(const Product& p, int multiprocessors) {
  const BroadPlan plan = plan_broad(multiprocessors, p);
  SCOPED_TRACE(testing::Message() << "m " << p.m << " n " << p.n << " k " << p.k << " on " << multiprocessors
                                  << ": " << plan.form.units << " units, " << plan.form.groups
                                  << " groups, cluster " << plan.form.cluster << ", splits " << plan.splits);
  EXPECT_TRUE(std::find(std::begin(kBroadForms), std::end(kBroadForms), plan.form) != std::end(kBroadForms));
  EXPECT_TRUE(plan.form.holds(p.m));
  EXPECT_LE(plan.splits, p.w_stride / kBroadStep) << "a part without a step";
  if (plan.splits == 1) return;
  const int blocks = tiles_of(plan, p) * plan.splits * plan.form.cluster;
  EXPECT_LE(blocks, multiprocessors) << "blocks wait for one that does not run";
  const Target target{.multiprocessors = multiprocessors, .compute_capability = 90};
  EXPECT_LE(int64_t{blocks} * plan.form.rows() * 64 * plan.form.groups * 4,
            SharedSums::partial_bytes(target));
}

TEST(BroadPlan, IsSoundForAnyShape) {
  Random random(3);
  for (int i = 0; i < 3000; ++i) {
    const auto m = static_cast<int32_t>(random.between(17, 256));
    const auto n = static_cast<int32_t>(16 * random.between(1, i % 2 == 0 ? 100 : 9000));
    const auto k = static_cast<int32_t>(8 * random.between(1, i % 3 == 0 ? 40 : 3600));
    expect_sound(product(m, n, k), i % 5 == 0 ? static_cast<int>(random.between(2, 144)) : kMultiprocessors);
  }
}

Product gate_up(int32_t m, int32_t n, int32_t k) {
  Product p = product(m, n, k);
  p.gated = true;
  return p;
}

// What was measured to be faster so, and nothing else: Llama-3.1-8B's and Qwen3-0.6B's.
TEST(BroadPlan, PaysWhereItWasMeasuredTo) {
  const auto pays = [](int32_t m, int32_t n, int32_t k) { return broad_sm90_pays(product(m, n, k)); };
  for (const int m : {17, 32, 33, 64}) {
    EXPECT_TRUE(pays(m, 6144, 4096)) << "q, k, v at " << m;
    EXPECT_TRUE(broad_sm90_pays(gate_up(m, 28672, 4096))) << "gate and up at " << m;
    EXPECT_FALSE(pays(m, 4096, 4096)) << "attention's output at " << m;
    EXPECT_EQ(pays(m, 4096, 14336), m > 32) << "down at " << m;
    EXPECT_TRUE(pays(m, 4096, 1024)) << "a small model's q, k, v at " << m;
    EXPECT_TRUE(broad_sm90_pays(gate_up(m, 6144, 1024))) << "its gate and up at " << m;
    EXPECT_FALSE(pays(m, 1024, 3072)) << "its down at " << m;
    EXPECT_FALSE(pays(m, 1024, 2048)) << "its attention's output at " << m;
  }
  for (const int m : {65, 96, 97, 128, 129, 192, 193, 256, 257}) {
    const bool known = m <= 256;
    EXPECT_FALSE(pays(m, 6144, 4096)) << "q, k, v at " << m;
    EXPECT_FALSE(pays(m, 28672, 4096)) << "gate and up, not gated, at " << m;
    EXPECT_EQ(broad_sm90_pays(gate_up(m, 28672, 4096)), m <= 128 || (m > 192 && known)) << "gated at " << m;
    EXPECT_EQ(pays(m, 4096, 14336), m <= 96 || (m > 128 && known)) << "down at " << m;
    EXPECT_FALSE(pays(m, 4096, 1024)) << "a small model's q, k, v at " << m;
    EXPECT_EQ(broad_sm90_pays(gate_up(m, 6144, 1024)), m <= 128) << "its gate and up at " << m;
    EXPECT_EQ(pays(m, 1024, 3072), m <= 128) << "its down at " << m;
  }
  EXPECT_FALSE(pays(16, 28672, 4096));
  EXPECT_FALSE(pays(64, 2048, 512)) << "smaller than any that was tried";
}

// Tiles so wide that each multiprocessor makes one lost to narrower ones, whose last wave helps those that memory serves slowly.
TEST(BroadPlan, PrefersSeveralTilesAMultiprocessor) {
  for (const int m : {24, 64, 80, 128}) {
    const BroadPlan plan = plan_broad(kMultiprocessors, gate_up(m, 28672, 4096));
    EXPECT_EQ(plan.form.units, 16) << "gate and up at " << m;
    EXPECT_GT(tiles_of(plan, product(m, 28672, 4096)), kMultiprocessors) << m;
  }
  EXPECT_EQ(plan_broad(kMultiprocessors, gate_up(256, 28672, 4096)).form, (BroadForm{28, 2, 2}));
}

TEST(BroadPlan, SharesNoTileWhoseSumsHaveNoPlace) {
  for (const BroadForm& form : kBroadForms)
    EXPECT_EQ(form.shares(), 64 * form.groups * form.rows() <= kMostBroadTile) << form.units;
  for (int m = 17; m <= 256; ++m)
    for (const int n : {1024, 4096, 28672}) {
      const BroadPlan plan = plan_broad(kMultiprocessors, product(m, n, 14336));
      EXPECT_TRUE(plan.splits == 1 || plan.form.shares()) << "m " << m << " n " << n;
    }
}

// A small weight's first stages must not stand before what the kernel before still reads.
TEST(BroadPlan, FetchesLessOfASmallWeightEarly) {
  EXPECT_LT(early_stages(product(64, 6144, 1024)), early_stages(product(64, 28672, 4096)));
}

TEST(BroadPlan, BusiesMostMultiprocessors) {
  for (const auto& [n, k] : {std::pair{6144, 4096}, {28672, 4096}, {4096, 14336}})
    for (const int m : {24, 64, 96, 160, 256}) {
      const Product p = product(m, n, k);
      if (!broad_sm90_pays(p)) continue;
      const BroadPlan plan = plan_broad(kMultiprocessors, p);
      const int clusters = kMultiprocessors / plan.form.cluster, parts = tiles_of(plan, p) * plan.splits;
      EXPECT_GE(parts, ceil_div(parts, clusters) * clusters * 7 / 10)
          << "m " << m << " n " << n << " k " << k;
    }
}

TEST(BroadCursor, FetchesEveryStepOfEveryTileOnce) {
  for (const int splits : {1, 2, 3, 8})
    for (const int clusters : {3, 24, 66}) {
      const int tiles = 7, steps = 19;
      std::vector<int> made(static_cast<size_t>(tiles * steps));
      for (int cluster = 0; cluster < clusters; ++cluster) {
        const BroadWalk walk{
            .tiles = tiles, .splits = splits, .steps = steps, .cluster = cluster, .clusters = clusters};
        for (BroadCursor at(walk); at.more(); at.next())
          ++made[static_cast<size_t>(at.tile() * steps + at.step())];
      }
      EXPECT_EQ(made, std::vector<int>(made.size(), 1)) << splits << " splits, " << clusters << " clusters";
    }
}

// What is fetched is what is multiplied: part by part, as many steps as it has and no step of another.
TEST(BroadCursor, FollowsTheWalk) {
  BroadWalk walk{.tiles = 7, .splits = 3, .steps = 19, .cluster = 2, .clusters = 5};
  BroadCursor at(walk);
  for (; walk.more(); walk.next()) {
    const BroadPart part = walk.part();
    for (int i = 0; i < part.count; ++i, at.next()) {
      ASSERT_TRUE(at.more());
      EXPECT_EQ(at.tile(), part.tile);
      EXPECT_GE(at.step(), part.begin);
      EXPECT_LT(at.step(), part.begin + part.count);
    }
  }
  EXPECT_FALSE(at.more());
}

// At one time as many columns of x are read as there are clusters for.
TEST(BroadCursor, BeginsElsewhereInEachCluster) {
  std::set<int> steps;
  for (int cluster = 0; cluster < 32; ++cluster)
    steps.insert(
        BroadCursor({.tiles = 32, .splits = 1, .steps = 64, .cluster = cluster, .clusters = 32}).step());
  EXPECT_EQ(steps.size(), 32u);
}

}  // namespace
}  // namespace quire::cuda_host
