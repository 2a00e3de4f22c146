// Caches with tiers below them whose sequences run and end at once, and whose copies a test makes when it likes.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "src/cache/kv_cache.h"
#include "tests/unit/token_ids.h"

namespace quire {

inline constexpr int32_t kTokens = 8;

inline std::unique_ptr<KvCache> make(int32_t host_blocks, int32_t disk_blocks, int32_t blocks = 64,
                                     EvictionOrder order = EvictionOrder::kLru) {
  const GroupSpec group{.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .block_tokens = kTokens};
  CacheSpec spec = uniform_spec(group, blocks);
  spec.host_bytes = host_blocks * group.block_bytes();
  spec.disk_bytes = disk_blocks * group.block_bytes();
  return std::move(KvCache::create(spec, order)).value();
}

inline void sound(const KvCache& cache) {
  const auto wrong = cache.audit({}, {});
  EXPECT_FALSE(wrong) << *wrong;
}

// A sequence of these tokens runs and ends.
inline void publish(KvCache& cache, NamespaceId ns, const std::vector<TokenId>& tokens,
                    const Retention& retention = {}, int64_t now_us = 1000) {
  BlockTable table = cache.acquire_prefix(ns, tokens, static_cast<int32_t>(tokens.size()) - 1, now_us);
  cache.count_use(table, now_us);
  StepTransaction step = cache.begin(now_us);
  EXPECT_TRUE(step.extend(table, static_cast<int32_t>(tokens.size())));
  std::vector<BlockCopy> copies;
  std::vector<BlockId> deferred;
  step.commit(copies, deferred);
  cache.publish(ns, tokens, table, table.length(), retention, now_us, deferred);
  cache.release_deferred(deferred);
  cache.release(std::move(table), now_us);
}

}  // namespace quire
