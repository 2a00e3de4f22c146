// What an episode of the simulator runs on: a cache, limits, a step's time.
#pragma once

#include "benchmarks/sim/sim.h"
#include "benchmarks/sim/workload.h"
#include "src/cache/kv_cache.h"
#include "src/engine/engine_core.h"
#include "src/execute/fake_executor.h"
#include "src/execute/fake_mover.h"

namespace quire {

struct SimSetup {
  CoreOptions core;
  FakeModel model;
  Roofline roofline;
  FakeTiers tiers;  // below the device
  LoadMix mix;      // of a random load
};

struct BlocksBelow {
  int64_t swap = 0, host = 0, disk = 0;
};
void set_cache(SimSetup& setup, const GroupSpec& group, int64_t blocks, const BlocksBelow& below = {});

// The model and the card that the options name.
Result<SimSetup> make_setup(const SimOptions& options);

// An episode of a random load: cache, blocks, chunks and reserve drawn, small enough that everything happens
// often.
SimSetup draw_episode(const SimSetup& base, const SimOptions& options, uint64_t seed);

}  // namespace quire
