// What an engine will yet take of the host's memory. Any thread.
#pragma once

#include <cstdint>

#include "quire/engine.h"

namespace quire {

// Bytes planned at the start beside the weights (cache, tiers, workspace, logits, lists of KV policies) that are touched only as they are
// used. 0 with a card: what is pinned beside it is touched at the start. Of an engine that Engine::open made.
int64_t untouched_host_bytes(const Engine& engine);

}  // namespace quire
