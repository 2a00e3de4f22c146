#include "src/execute/tier_setup.h"

#include <fmt/format.h>

#include "src/base/log.h"
#include "src/device/cpu_features.h"
#include "src/model/fingerprint.h"

namespace quire {
namespace {

const char* word_of(DeviceKind kind) {
  return kind == DeviceKind::kCpu ? "cpu" : kind == DeviceKind::kCuda ? "cuda" : "cuda-host";
}

// Whose sums come out alike to the last bit: a CPU's instruction set, a card's model.
std::string arithmetic_of(const DeviceFacts& device) {
  return device.kind == DeviceKind::kCuda ? device.name : std::string(name_of(usable_isa()));
}

// All that a block's bytes depend on besides its tokens and namespace, for people too: it stands in messages.
Result<std::string> identity_of(const TierSetup& s) {
  const Result<uint64_t> weights = model_fingerprint(s.config.model_dir, s.config.weights);
  if (!weights) return weights.error();
  return fmt::format(
      "{} with {} layers x {} kv heads x {}, weights {:016x}, computed in {} on {} ({}) by quire {}, kv {} "
      "in "
      "blocks of {}",
      s.spec.architecture, s.spec.num_layers, s.spec.num_kv_heads, s.spec.head_dim, *weights, s.config.dtype,
      word_of(s.device.kind), arithmetic_of(s.device), QUIRE_VERSION, name_of(s.kv_dtype),
      s.config.block_tokens);
}

Result<std::unique_ptr<DiskStore>> open_disk(const TierSetup& s, OpenedTiers& out) {
  const Result<std::string> identity = identity_of(s);
  if (!identity) return identity.error();
  Result<std::unique_ptr<DiskStore>> disk = DiskStore::open({.dir = s.config.disk_kv_dir,
                                                             .bytes = s.config.disk_kv_bytes,
                                                             .block_bytes = s.block_bytes,
                                                             .identity = *identity});
  if (!disk) return disk.error();
  out.disk_bytes = (*disk)->num_blocks() * s.block_bytes;
  out.stored = (*disk)->take_stored();
  out.damaged_records = (*disk)->num_damaged();
  out.model = *identity;
  out.disk_state = "on";
  return disk;
}

}  // namespace

Result<OpenedTiers> open_tiers(const TierSetup& s) {
  OpenedTiers out;
  std::unique_ptr<DiskStore> disk;
  if (!s.config.disk_kv_dir.empty()) {
    Result<std::unique_ptr<DiskStore>> opened = open_disk(s, out);
    if (!opened && s.config.disk_kv_on_error == "fail") return opened.error();
    if (opened) {
      disk = std::move(*opened);
    } else {
      out.disk_state = "off: " + opened.error().message;
      log_line(LogLevel::kWarn, "disk_kv_off", {{"why", opened.error().message}});
    }
  }
  if (s.host.swap_bytes + s.host.host_bytes + out.disk_bytes == 0) return out;
  Result<std::unique_ptr<BlockMover>> mover = make_threaded_mover(s.make_stream,
                                                                  {.arena = s.arena,
                                                                   .host = s.host.buffer.as<char>(),
                                                                   .block_bytes = s.block_bytes,
                                                                   .staging = s.host.staging(),
                                                                   .staging_blocks = s.host.staging_blocks},
                                                                  std::move(disk));
  if (!mover) return mover.error();
  out.mover = std::move(*mover);
  return out;
}

}  // namespace quire
