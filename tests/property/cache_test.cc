// Method: random operations on the cache against a plain model of memory and sequences; after each one the
// invariants 2, 3, 4, 6 and 7 of src/engine/README.md, a full audit, and the content of every slot of every list.
// QUIRE_SEED runs one seed alone.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/property/cache_model.h"

namespace quire {
namespace {

struct Setting {
  const char* name;
  int32_t num_blocks, block_tokens;
  EvictionOrder order;
  int64_t steps;
};

std::vector<uint64_t> seeds() {
  if (const char* seed = std::getenv("QUIRE_SEED")) return {std::strtoull(seed, nullptr, 10)};
  return {1, 2, 3, 4, 5, 6};
}

class CacheProperty : public testing::TestWithParam<Setting> {};

TEST_P(CacheProperty, HoldsItsInvariantsUnderRandomOperations) {
  const Setting& setting = GetParam();
  for (const uint64_t seed : seeds()) {
    CacheModel model(seed, setting.num_blocks, setting.block_tokens, setting.order);
    for (int64_t i = 0; i < setting.steps; ++i) {
      const std::optional<std::string> wrong = model.step();
      ASSERT_EQ(wrong, std::nullopt) << "QUIRE_SEED=" << seed << " operation " << i << " of " << setting.name;
    }
    const CacheCounters& counters = model.cache().counters();
    std::printf("%s seed=%llu hits=%lld refused=%lld copies=%lld evictions=%lld merged=%lld\n", setting.name,
                static_cast<unsigned long long>(seed), static_cast<long long>(model.num_hits()),
                static_cast<long long>(model.num_refused()), static_cast<long long>(counters.copies_on_write),
                static_cast<long long>(counters.evictions),
                static_cast<long long>(counters.duplicates_merged));
    EXPECT_GT(model.num_hits(), 0);
    EXPECT_GT(counters.copies_on_write, 0);
    EXPECT_GT(counters.duplicates_merged, 0);
    EXPECT_EQ(counters.evictions > 0, setting.num_blocks < 1000) << "tight settings evict, ample ones never";
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, CacheProperty,
                         testing::Values(Setting{"tight_lru", 60, 8, EvictionOrder::kLru, 6000},
                                         Setting{"tight_pgdsf", 60, 16, EvictionOrder::kPgdsf, 6000},
                                         Setting{"ample", 6000, 8, EvictionOrder::kLru, 1500}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(CacheProperty, TheSameSeedMakesTheSameChoices) {
  CacheModel a(9, 60, 8, EvictionOrder::kLru), b(9, 60, 8, EvictionOrder::kLru);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(a.step(), std::nullopt);
    ASSERT_EQ(b.step(), std::nullopt);
    ASSERT_EQ(a.cache().num_free(), b.cache().num_free());
    ASSERT_EQ(a.cache().counters().evictions, b.cache().counters().evictions);
  }
}

}  // namespace
}  // namespace quire
