// A small cache, over-committed, a reader that keeps what it has, and requests of several sequences: what the tests of those who
// run beside each other share.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "src/policy/policy_spec.h"
#include "tests/property/engine_harness.h"
#include "tests/unit/token_ids.h"

namespace quire {

// 24 blocks of 8, over-committed as far as it goes.
inline HarnessOptions tight(const char* mode = "auto", int32_t num_swap_blocks = 0) {
  HarnessOptions o;
  o.num_blocks = 24;
  o.num_swap_blocks = num_swap_blocks;
  o.preemption_mode = mode;
  o.reserve = {.least = 0, .rise = 0, .decay = 0};
  return o;
}

inline CoreRequest under_h2o() {
  CoreRequest h2o;
  h2o.policy = *parse_policy("h2o:heavy=100,recent=90");
  return h2o;
}

// A reader that holds so many blocks and reads no more.
inline RequestId submit_paused(Harness& h, int32_t num_blocks = 12) {
  const RequestId reader = h.submit(ids(num_blocks * 8 - 6, 300), Harness::greedy(5), under_h2o());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(h.step());
  h.core().set_paused(reader, true);
  return reader;
}

inline SamplingParams beams(int32_t width, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.beam_width = width;
  return p;
}

inline SamplingParams samples(int32_t n, int32_t max_tokens) {
  SamplingParams p = Harness::greedy(max_tokens);
  p.n = n;
  return p;
}

// Of a cache that has the first `shared` tokens of ids(prompt). Small steps: a prompt is published chunk by chunk.
inline std::unique_ptr<Harness> with_cached_start(int32_t num_blocks, int32_t prompt, int32_t shared) {
  HarnessOptions o;
  o.num_blocks = num_blocks;
  o.max_step_tokens = o.max_sequences = 12;
  auto h = std::make_unique<Harness>(o);
  std::vector<TokenId> cached = ids(prompt);
  std::fill(cached.begin() + shared, cached.end(), 999);
  h->submit(cached, Harness::greedy(1));
  h->run();
  return h;
}

struct States {
  int running = 0, preempted = 0;
};

inline States states_of(Harness& h, RequestId id) {
  States states;
  if (const SequenceGroup* group = h.core().scheduler().find(id))
    for (const auto& s : group->sequences) {
      states.running += s->running() ? 1 : 0;
      states.preempted += s->state == SequenceState::kPreempted ? 1 : 0;
    }
  return states;
}

inline void step_until_out(Harness& h, RequestId id) {
  while (states_of(h, id).preempted == 0) ASSERT_TRUE(h.step());
}

inline void step_until_still(Harness& h) {
  for (int i = 0; i < 4000 && h.step(); ++i) {
  }
}

}  // namespace quire
