// A cache of a few blocks of 16 that is filled by hand; every fixture ends with a full audit.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "src/cache/kv_cache.h"

namespace quire {

inline constexpr int32_t kB = 16;

inline std::vector<TokenId> iota(int32_t count, TokenId first = 0) {
  std::vector<TokenId> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class KvCacheTest : public testing::Test {
 protected:
  void make(int32_t num_blocks, EvictionOrder order = EvictionOrder::kLru) {
    const GroupSpec group{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = kB};
    cache = *KvCache::create(uniform_spec(group, num_blocks), order);
    ns = cache->open_namespace({.model = "m"});
  }
  void SetUp() override { make(20); }
  void TearDown() override { audit({}); }
  void audit(std::vector<const BlockTable*> tables) {
    EXPECT_EQ(cache->audit(tables, deferred), std::nullopt);
    EXPECT_EQ(cache->num_free() + cache->num_held() + cache->num_cached(), cache->num_blocks());
  }
  // One step that extends one table; its copies are left in `copies`.
  bool extend(BlockTable& table, int32_t new_length) {
    copies.clear();
    StepTransaction step = cache->begin(now);
    if (!step.extend(table, new_length)) return false;
    step.commit(copies, deferred);
    return true;
  }
  void settle() {
    cache->release_deferred(deferred);
    deferred.clear();
  }
  void release(BlockTable& table) { cache->release(std::move(table), now); }
  void publish(BlockTable& table, const std::vector<TokenId>& tokens, Retention retention = {}) {
    cache->publish(ns, tokens, table, static_cast<int32_t>(tokens.size()), retention, now, deferred);
  }
  // Computes and publishes a prompt, and leaves it cached with no holder.
  void cache_prompt(const std::vector<TokenId>& tokens, Retention retention = {}) {
    BlockTable table = cache->acquire_prefix(ns, tokens, static_cast<int32_t>(tokens.size()), now);
    ASSERT_TRUE(extend(table, static_cast<int32_t>(tokens.size())));
    publish(table, tokens, retention);
    settle();
    release(table);
  }

  std::unique_ptr<KvCache> cache;
  NamespaceId ns{};
  int64_t now = 1;
  std::vector<BlockCopy> copies;
  std::vector<BlockId> deferred;
};

}  // namespace quire
