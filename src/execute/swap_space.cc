#include "src/execute/swap_space.h"

#include <fmt/format.h>

#include <algorithm>

namespace quire {

namespace {

constexpr int64_t kStagingBytes = 8 << 20;  // in flight between device and disk, each way

Result<int64_t> whole_blocks(int64_t bytes, int64_t block_bytes, const char* name) {
  if (bytes < 0 || (bytes > 0 && bytes < block_bytes))
    return invalid(fmt::format("{} is {}; one KV block takes {} bytes (0 = none)", name, bytes, block_bytes),
                   name);
  return bytes / block_bytes * block_bytes;
}

}  // namespace

Result<HostMemory> size_host_memory(const EngineConfig& config, DeviceKind device, int64_t block_bytes,
                                    int64_t free_host_bytes) {
  const Result<int64_t> swap = whole_blocks(config.swap_space_bytes, block_bytes, "swap_space_bytes");
  if (!swap) return swap.error();
  const Result<int64_t> host = whole_blocks(config.host_kv_bytes, block_bytes, "host_kv_bytes");
  if (!host) return host.error();
  if (*swap > free_host_bytes || *host > free_host_bytes - *swap)
    return error(
        Code::kResourceExhausted,
        fmt::format("swap_space_bytes {} and host_kv_bytes {} are asked for; the host has {} bytes free",
                    *swap, *host, free_host_bytes));
  HostMemory memory{.swap_bytes = *swap, .host_bytes = *host, .block_bytes = block_bytes};
  if (!config.disk_kv_dir.empty() && device != DeviceKind::kCpu)
    memory.staging_blocks = std::max<int64_t>(1, kStagingBytes / block_bytes);
  return memory;
}

Status allocate_host_memory(Device& device, HostMemory& memory) {
  Result<DeviceBuffer> buffer = device.allocate_pinned(
      memory.bytes(), "host memory (swap_space_bytes + host_kv_bytes + staging for disk_kv_dir)");
  if (!buffer) return buffer.error();
  memory.buffer = std::move(*buffer);
  return ok();
}

namespace {

// Reckoned, not measured: what a prefill may count on, half of a card's peak. An H100's 132 multiprocessors reach 781 TFLOP/s in a bare
// product (kernels/README.md), so 3 TFLOP/s each; an A100's 108 have 312 by its data sheet, so 1.5. A core of a server CPU: 30 GFLOP/s in
// f32, a third of two FMA units of 8 lanes at 3 GHz.
double prefill_flops_per_s(const DeviceFacts& device) {
  const double each = device.kind == DeviceKind::kCpu   ? 3e10
                      : device.compute_capability >= 90 ? 3e12
                                                        : 1.5e12;
  return each * std::max(1, device.multiprocessors);
}

}  // namespace

PreemptionCosts preemption_costs(const DeviceFacts& device, const ModelSpec& spec) {
  PreemptionCosts costs;
  // Reckoned too: two thirds of PCIe 4 x16's 31.5 GB/s; a core that reads and writes 5 each.
  costs.link_bytes_per_s = device.kind == DeviceKind::kCuda ? 20e9 : 5e9;
  costs.flops_per_s = prefill_flops_per_s(device);
  costs.flops_per_token = 2.0 * static_cast<double>(spec.num_parameters());
  costs.flops_per_token_pair = 4.0 * spec.num_layers * spec.num_q_heads * spec.head_dim;
  return costs;
}

}  // namespace quire
