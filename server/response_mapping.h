// What the engine says, in the wire's words. Pure functions, any thread.
#pragma once

#include "quire/engine.h"
#include "quire/v1/generation.pb.h"
#include "quire/v1/service.pb.h"
#include "server/host_memory.h"
#include "server/tenant_limits.h"
#include "server/work_pool.h"

namespace quire::server {

// Without request_id, which is the call's. Totals in the last event of a request, a dump where a sequence ends.
v1::GenerateResponse to_wire(const TokenEvent& event);
v1::FinishReason to_wire(FinishReason reason);
v1::KvDump to_wire(const KvDump& dump);
// The model's limits, and of the engine's settings what a client may need to know.
v1::GetModelResponse to_wire(const ModelCard& card, const EngineConfig& config);
v1::GetLoadResponse to_wire(const EngineStats& stats);
// What the server itself counts, beside the engine.
void add_to_wire(const TenantStats& tenants, const HostMemoryStats& memory, const WorkPoolStats& texts,
                 v1::GetLoadResponse& load);

}  // namespace quire::server
