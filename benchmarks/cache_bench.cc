// Times the cache's bookkeeping at 10^4, 10^5 and 10^6 cached blocks, and the planning of a step of 256
// sequences. Inputs rotate, so that at a million blocks nothing asked for is in a processor cache. Best and
// median of several rounds.
//   cache_bench [--max-blocks 1000000]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "src/base/random.h"
#include "src/cache/kv_cache.h"

namespace quire {
namespace {

constexpr int32_t kBlockTokens = 16;
constexpr int32_t kLongBlocks = 625;  // 10,000 tokens: long paths
constexpr int32_t kShortBlocks = 1;   // every block a child of one root

double now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

struct Spread {
  double best = 0, median = 0;
};
Spread spread(std::vector<double> samples) {
  std::ranges::sort(samples);
  return {samples.front(), samples[samples.size() / 2]};
}

// Blocks come back from the pool in an order that a long-running server would see: not one after the other.
std::unique_ptr<KvCache> make_cache(int32_t num_blocks, Random& random) {
  const GroupSpec group{.num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .block_tokens = kBlockTokens};
  std::unique_ptr<KvCache> cache = *KvCache::create(uniform_spec(group, num_blocks));
  std::vector<BlockTable> tables(num_blocks);
  std::vector<BlockCopy> copies;
  std::vector<BlockId> deferred;
  StepTransaction step = cache->begin(0);
  for (BlockTable& table : tables) step.extend(table, kBlockTokens);
  step.commit(copies, deferred);
  for (size_t i = tables.size(); i > 1; --i) std::swap(tables[i - 1], tables[random.below(i)]);
  for (BlockTable& table : tables) cache->release(std::move(table), 0);
  return cache;
}

std::vector<TokenId> random_prompt(Random& random, int32_t blocks) {
  std::vector<TokenId> tokens(blocks * kBlockTokens);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random.below(128000));
  return tokens;
}

struct Bench {
  int32_t prompt_blocks = 0;
  std::unique_ptr<KvCache> cache;
  NamespaceId ns{};
  Random random{1};
  int64_t now_us = 0;
  std::vector<std::vector<TokenId>> prompts;
  std::vector<BlockCopy> copies;
  std::vector<BlockId> deferred;

  Bench(int32_t num_blocks, int32_t blocks) : prompt_blocks(blocks) {
    cache = make_cache(num_blocks, random);
    ns = cache->open_namespace({.model = "bench"});
    for (int32_t i = 0; i < num_blocks / prompt_blocks; ++i) {
      prompts.push_back(random_prompt(random, prompt_blocks));
      insert(prompts.back());
    }
  }

  BlockTable compute(const std::vector<TokenId>& tokens) {
    BlockTable table;
    StepTransaction step = cache->begin(++now_us);
    if (!step.extend(table, static_cast<int32_t>(tokens.size()))) std::abort();
    step.commit(copies, deferred);
    return table;
  }
  void publish(BlockTable& table, const std::vector<TokenId>& tokens) {
    cache->publish(ns, tokens, table, static_cast<int32_t>(tokens.size()), {}, now_us, deferred);
  }
  void insert(const std::vector<TokenId>& tokens) {
    BlockTable table = compute(tokens);
    publish(table, tokens);
    cache->release(std::move(table), now_us);
  }
};

Spread time_lookups(Bench& bench) {
  std::vector<double> samples;
  for (int round = 0; round < 200; ++round) {
    const std::vector<TokenId> prompt = bench.prompts[bench.random.below(bench.prompts.size())];  // just read
    const double start = now_ns();
    const int32_t hit = bench.cache->lookup(bench.ns, prompt);
    samples.push_back(now_ns() - start);
    if (hit != bench.prompt_blocks * kBlockTokens) std::abort();
  }
  return spread(std::move(samples));
}

struct PerBlock {
  Spread acquire, release, evict, publish;
};

// In a full cache: a new prompt evicts another to have room, is published, and released.
PerBlock time_turnover(Bench& bench) {
  std::vector<double> acquire, release, evict, publish;
  for (int round = 0; round < (bench.prompt_blocks == kLongBlocks ? 40 : 20000); ++round) {
    double t0 = now_ns();
    BlockTable held = bench.cache->acquire_prefix(bench.ns, bench.prompts.back(),
                                                  bench.prompt_blocks * kBlockTokens, bench.now_us);
    double t1 = now_ns();
    bench.cache->release(std::move(held), bench.now_us);
    acquire.push_back((t1 - t0) / bench.prompt_blocks);
    release.push_back((now_ns() - t1) / bench.prompt_blocks);

    const std::vector<TokenId> fresh = random_prompt(bench.random, bench.prompt_blocks);
    t0 = now_ns();
    BlockTable table = bench.compute(fresh);
    t1 = now_ns();
    bench.publish(table, fresh);
    publish.push_back((now_ns() - t1) / bench.prompt_blocks);
    evict.push_back((t1 - t0) / bench.prompt_blocks);
    bench.cache->release(std::move(table), bench.now_us);
    bench.prompts.push_back(fresh);
  }
  return {spread(acquire), spread(release), spread(evict), spread(publish)};
}

// A decode step of 256 sequences of 4k tokens, beside whatever is cached.
Spread time_steps(Bench& bench) {
  constexpr int32_t kSequences = 256, kLength = 4096;
  std::vector<BlockTable> tables(kSequences);
  StepTransaction first = bench.cache->begin(bench.now_us);
  for (size_t i = 0; i < tables.size(); ++i)
    if (!first.extend(tables[i], kLength + static_cast<int32_t>(i) % kBlockTokens)) return {};
  first.commit(bench.copies, bench.deferred);
  std::vector<double> samples;
  for (int round = 0; round < 200; ++round) {
    const double start = now_ns();
    StepTransaction step = bench.cache->begin(bench.now_us);
    for (BlockTable& table : tables)
      if (!step.extend(table, table.length() + 1)) std::abort();
    step.commit(bench.copies, bench.deferred);
    samples.push_back(now_ns() - start);
  }
  for (BlockTable& table : tables) bench.cache->release(std::move(table), bench.now_us);
  return spread(std::move(samples));
}

void run(int32_t num_blocks, int32_t prompt_blocks) {
  Bench bench(num_blocks, prompt_blocks);
  const Spread lookup = time_lookups(bench);
  const PerBlock t = time_turnover(bench);
  const Spread step = time_steps(bench);
  std::printf("%9lld | %6.2f %6.2f | %5.0f %5.0f | %5.0f %5.0f | %5.0f %5.0f | %5.0f %5.0f | %6.1f %6.1f\n",
              static_cast<long long>(bench.cache->num_blocks()), lookup.best / 1e3, lookup.median / 1e3,
              t.acquire.best, t.acquire.median, t.release.best, t.release.median, t.evict.best,
              t.evict.median, t.publish.best, t.publish.median, step.best / 1e3, step.median / 1e3);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  int32_t most = 1000000;
  if (argc == 3 && std::strcmp(argv[1], "--max-blocks") == 0) most = std::atoi(argv[2]);
  std::printf("best and median, per block but for lookups (of a whole prompt) and steps (0: no room)\n");
  for (const int32_t prompt_blocks : {quire::kLongBlocks, quire::kShortBlocks}) {
    std::printf("prompts of %d tokens\n", prompt_blocks * quire::kBlockTokens);
    std::printf(
        "   blocks |     lookup us |  acquire ns |  release ns |    evict ns |  publish ns | 256 x 1 us\n");
    for (int32_t blocks = 10000; blocks <= most; blocks *= 10) quire::run(blocks, prompt_blocks);
  }
  return 0;
}
