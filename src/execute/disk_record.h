// How the disk tier's index file is laid out: a header that says whose blocks these are, then one record of a
// fixed size for each place. Everything bears a checksum: what was cut short by a crash reads as nothing.
// Little endian. A change of anything here is a new kDiskFormatVersion.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "quire/result.h"
#include "src/cache/tier.h"

namespace quire {

inline constexpr uint32_t kDiskFormatVersion = 1;
inline constexpr size_t kDiskHeaderBytes = 4096, kDiskRecordBytes = 2048;

using DiskHeader = std::array<std::byte, kDiskHeaderBytes>;
using DiskRecord = std::array<std::byte, kDiskRecordBytes>;

// Errors of reading name the version, or say that it is no index. kInvalidArgument where the text is too long.
Result<DiskHeader> encode_disk_header(const std::string& identity);
Result<std::string> decode_disk_header(std::span<const std::byte> bytes);

struct StoredRecord {
  StoredBlock block;           // its expiry counts from now
  uint64_t data_checksum = 0;  // hash_bytes of the block
};
// now_ms: wall time, which alone means something to the process that comes after. kInvalidArgument where tokens
// and key do not fit.
Result<DiskRecord> encode_disk_record(const StoredBlock& block, uint64_t data_checksum, int64_t now_ms);
std::optional<StoredRecord> decode_disk_record(std::span<const std::byte> bytes, int64_t now_ms);

}  // namespace quire
