// How an engine is set up. Every limit has a default and a name; flags, environment and config file use the same names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/sampling_params.h"

namespace quire {

struct EngineConfig {
  // Model
  std::string model_dir;
  std::string served_model_name;  // "" = the directory's name
  // "checkpoint" | "random" | "random:SEED"; random needs only config.json
  std::string weights = "checkpoint";
  std::string device = "auto";          // auto | cpu | cuda | cuda-host (the CUDA kernels on the host shim)
  std::string dtype = "auto";           // activations: auto | f32 | bf16 | f16 (cuda only)
  std::string kv_cache_dtype = "auto";  // auto = the activations', on cuda no other | f32 | bf16 | f16
  int32_t max_context_tokens = 0;       // 0 = the model's
  int32_t threads = 0;                  // CPU back end; 0 = all cores this process may use

  // Cache
  int32_t block_tokens = 16;   // 8 | 16 | 32 | 64
  int64_t kv_cache_bytes = 0;  // 0 = sized from memory that is left
  double gpu_memory_utilization = 0.92;
  bool prefix_cache = true;
  int64_t host_kv_bytes = 0;  // pinned host memory for prefixes that the device evicts; 0 = they are lost
  // Files in this directory for prefixes that the tiers above evict; they outlive the engine. "" = none. Each engine needs
  // a directory of its own, and one model's blocks are never read by another.
  std::string disk_kv_dir;
  int64_t disk_kv_bytes = 0;
  std::string disk_kv_on_error = "fail";  // where the files cannot be used: fail | ignore (run without them)
  int64_t swap_space_bytes = 0;  // pinned host memory for preempted sequences; 0 = they are computed again
  // For the lists and scores of requests whose KV policy goes by scores (tova, h2o); 0 = a share of what is left. Who finds no room waits.
  int64_t kv_policy_bytes = 0;
  // auto (the cheaper) | swap | recompute. Where the host has no room swap falls to recompute; what a KV policy
  // could not compute again never gives way by recompute.
  std::string preemption_mode = "auto";
  // Decode attention on CUDA reads blocks that several sequences share once for all of them, in steps where that saves the time
  // of so many bytes from memory in each layer; 0 = wherever sequences share enough, -1 = never.
  int64_t cascade_min_saved_bytes = 16 << 20;
  std::string eviction = "lru";          // of cached prefixes: lru | pgdsf
  int32_t max_kv_retention_class = 100;  // a request may ask for
  double max_kv_retention_cost = 1e6;    // a request may ask for; [1, 10^6]

  // Steps
  int32_t max_step_tokens = 2048;        // tokens of one step, prefill chunks and decodes together
  int32_t max_sequences = 256;           // running at once
  int32_t max_prefill_chunk_tokens = 0;  // 0 = max_step_tokens
  // CUDA: time at the start for finding the fastest of cuBLASLt's ways to make the model's products of many rows; 0 = its own first choice.
  int64_t gemm_tuning_ms = 2000;
  // CUDA: steps in which prompts run are captured as graphs too, up to so many tokens; 0 = decode steps alone are.
  int32_t max_graph_tokens = 1024;

  // Queue
  int32_t max_queued_requests = 1024;
  double max_queued_kv_factor = 4.0;     // waiting tokens <= this x cache capacity
  int64_t max_priority_wait_ms = 60000;  // then a request runs as if of the highest priority
  int64_t drain_timeout_ms = 30000;

  SamplingLimits sampling_limits;
  std::vector<std::string> kv_policies_allowed;  // empty = all
  std::string default_kv_policy;
  // CUDA: how long the device stands idle between steps, for benchmarks; costs some 2.4 us a step. It is of the engine while requests
  // run without a break: time with nothing to do counts as idle too.
  bool time_device_idle = false;
  bool check_invariants = false;  // audit every numbered invariant after every step (tests)
};

}  // namespace quire
