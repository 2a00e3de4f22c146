#include "src/execute/disk_record.h"

#include <fmt/format.h>

#include <cstring>

#include "src/base/hash.h"

namespace quire {
namespace {

constexpr char kMagic[8] = {'q', 'u', 'i', 'r', 'e', '-', 'k', 'v'};

struct HeaderStart {
  char magic[8];
  uint32_t version = kDiskFormatVersion;
  uint32_t identity_bytes = 0;
  uint64_t checksum = 0;  // of the identity
};

struct RecordStart {
  uint64_t checksum = 0;  // of the record behind this field
  uint64_t serial = 0, parent_serial = 0, data_checksum = 0;
  int64_t expiry_ms = 0;
  float recompute_cost = 0;
  int32_t retention_class = 0;
  int32_t block = 0;
  uint32_t num_tokens = 0, key_bytes = 0, unused = 0;
};
static_assert(sizeof(HeaderStart) == 24 && sizeof(RecordStart) == 64, "the layout on disk has no holes");

uint64_t checksum_of(std::span<const std::byte> record) {
  return hash_bytes(record.subspan(sizeof(uint64_t)));
}

}  // namespace

Result<DiskHeader> encode_disk_header(const std::string& identity) {
  HeaderStart start;
  if (identity.size() > kDiskHeaderBytes - sizeof start)
    return invalid(fmt::format("the model's identity takes {} bytes; at most {}", identity.size(),
                               kDiskHeaderBytes - sizeof start));
  std::memcpy(start.magic, kMagic, sizeof kMagic);
  start.identity_bytes = static_cast<uint32_t>(identity.size());
  start.checksum = hash_bytes(std::as_bytes(std::span(identity)));
  DiskHeader header{};
  std::memcpy(header.data(), &start, sizeof start);
  std::memcpy(header.data() + sizeof start, identity.data(), identity.size());
  return header;
}

Result<std::string> decode_disk_header(std::span<const std::byte> bytes) {
  HeaderStart start;
  if (bytes.size() != kDiskHeaderBytes) return invalid("is no index of KV blocks: it is too short");
  std::memcpy(&start, bytes.data(), sizeof start);
  if (std::memcmp(start.magic, kMagic, sizeof kMagic) != 0) return invalid("is no index of KV blocks");
  if (start.version != kDiskFormatVersion)
    return invalid(fmt::format("is of format version {}; this server reads and writes version {}",
                               start.version, kDiskFormatVersion));
  if (start.identity_bytes > kDiskHeaderBytes - sizeof start) return invalid("has a header that is damaged");
  const std::span<const std::byte> text = bytes.subspan(sizeof start, start.identity_bytes);
  if (hash_bytes(text) != start.checksum) return invalid("has a header that is damaged");
  return std::string(reinterpret_cast<const char*>(text.data()), text.size());
}

Result<DiskRecord> encode_disk_record(const StoredBlock& block, uint64_t data_checksum, int64_t now_ms) {
  const size_t tokens_bytes = block.tokens.size() * sizeof(TokenId);
  if (sizeof(RecordStart) + tokens_bytes + block.key.size() > kDiskRecordBytes)
    return invalid(fmt::format("a block's key takes {} bytes; at most {} fit beside its tokens",
                               block.key.size(), kDiskRecordBytes - sizeof(RecordStart) - tokens_bytes));
  const int64_t expiry_us = block.retention.expiry_us;
  RecordStart start{.serial = block.serial,
                    .parent_serial = block.parent_serial,
                    .data_checksum = data_checksum,
                    .expiry_ms = expiry_us == kNoExpiry ? kNoExpiry : now_ms + expiry_us / 1000,
                    .recompute_cost = block.retention.recompute_cost,
                    .retention_class = block.retention.retention_class,
                    .block = value(block.block),
                    .num_tokens = static_cast<uint32_t>(block.tokens.size()),
                    .key_bytes = static_cast<uint32_t>(block.key.size())};
  DiskRecord record{};
  std::byte* const tokens = record.data() + sizeof start;
  std::memcpy(record.data(), &start, sizeof start);
  std::memcpy(tokens, block.tokens.data(), tokens_bytes);
  std::memcpy(tokens + tokens_bytes, block.key.data(), block.key.size());
  start.checksum = checksum_of(record);
  std::memcpy(record.data(), &start.checksum, sizeof start.checksum);
  return record;
}

std::optional<StoredRecord> decode_disk_record(std::span<const std::byte> bytes, int64_t now_ms) {
  RecordStart start;
  std::memcpy(&start, bytes.data(), sizeof start);
  const size_t tokens_bytes = start.num_tokens * sizeof(TokenId);
  if (start.serial == 0 || sizeof start + tokens_bytes + start.key_bytes > bytes.size()) return std::nullopt;
  if (checksum_of(bytes) != start.checksum) return std::nullopt;
  StoredRecord record{.data_checksum = start.data_checksum};
  StoredBlock& block = record.block;
  block.block = DiskBlockId{start.block};
  block.serial = start.serial;
  block.parent_serial = start.parent_serial;
  block.retention = {.retention_class = start.retention_class, .recompute_cost = start.recompute_cost};
  if (start.expiry_ms != kNoExpiry) block.retention.expiry_us = (start.expiry_ms - now_ms) * 1000;
  block.tokens.resize(start.num_tokens);
  std::memcpy(block.tokens.data(), bytes.data() + sizeof start, tokens_bytes);
  block.key.assign(reinterpret_cast<const char*>(bytes.data()) + sizeof start + tokens_bytes,
                   start.key_bytes);
  return record;
}

}  // namespace quire
