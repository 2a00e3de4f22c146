// What the engine says, in the wire's words. Pure functions, any thread.
#pragma once

#include "quire/engine.h"
#include "quire/v1/generation.pb.h"
#include "quire/v1/service.pb.h"
#include "server/host_memory.h"
#include "server/tenant_limits.h"

namespace quire::server {

v1::GenerateResponse to_wire(const TokenEvent& event);
v1::FinishReason to_wire(FinishReason reason);
v1::KvDump to_wire(const KvDump& dump);
v1::GetModelResponse to_wire(const ModelCard& card, const EngineConfig& config);
v1::GetLoadResponse to_wire(const EngineStats& stats);
// What the server itself counts, beside the engine.
void add_to_wire(const TenantStats& tenants, const HostMemoryStats& memory, v1::GetLoadResponse& load);

}  // namespace quire::server
