// For the tests of the tiers below the device: small caches under the harness, and prompts that fill them.
#pragma once

#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {

inline const Sequence& first_of(Harness& h, RequestId id) {
  return *h.core().scheduler().find(id)->sequences.front();
}
inline const TierCounters& counters(Harness& h) {
  return h.core().scheduler().transfers().counters();
}
inline const KvCache& tier(Harness& h, CacheTier kind) {
  return *h.core().cache().tier(kind);
}

// 24 blocks on the device, 100 on the host; a prompt of 160 tokens takes 20.
inline HarnessOptions two_tiers() {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_host_blocks = 100;
  return o;
}

inline RequestId ask(Harness& h, int32_t first, const std::string& salt = "",
                     const std::string& tenant = "") {
  CoreRequest more;
  more.cache_salt = salt;
  more.tenant = tenant;
  return h.submit(ids(160, first), Harness::greedy(2), more);
}

// The disk alone below the device, or behind a host tier that holds one prompt of 20 blocks and little more.
inline HarnessOptions with_disk(int32_t host_blocks) {
  HarnessOptions o = two_tiers();
  o.num_host_blocks = host_blocks;
  o.num_disk_blocks = 100;
  return o;
}

// Three prompts one after the other: the device and the small host tier have lost the first.
inline void fill(Harness& h, const std::string& salt = "") {
  for (const int32_t first : {0, 300, 600}) {
    ask(h, first, salt);
    h.run();
  }
}

// Bounded: where nobody gives up, nothing ever ends.
inline void step_to_the_end(Harness& h) {
  for (int i = 0; h.step(); ++i) ASSERT_LT(i, 20'000) << "it never ends";
}
inline void step_until_ended(Harness& h, RequestId id) {
  for (int i = 0; h.record(id).num_ends == 0; ++i) ASSERT_TRUE(h.step() && i < 20'000) << "it never ends";
}

inline constexpr int64_t kAnHourUs = 3'600'000'000;

}  // namespace quire
