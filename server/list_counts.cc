#include "server/list_counts.h"

#include <google/protobuf/io/coded_stream.h>

#include <climits>
#include <cstdint>

#include "quire/v1/generation.pb.h"
#include "quire/v1/sampling.pb.h"
#include "quire/v1/service.pb.h"

namespace quire::server {
namespace {

// The low three bits of a tag.
enum class WireType : uint32_t { kVarint, kFixed64, kBytes, kGroupBegin, kGroupEnd, kFixed32 };

// Calls `see` with number and bytes of each field that has a length, but not of those inside a group, which no message here has: the
// parser keeps one as unknown.
template <class See>
void for_each_field(std::string_view message, const See& see) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()),
                                            static_cast<int>(message.size()));
  int groups = 0;
  while (const uint32_t tag = in.ReadTag()) {
    uint64_t number = 0;
    uint32_t length = 0;
    switch (WireType{tag & 7}) {
      case WireType::kVarint:
        if (!in.ReadVarint64(&number)) return;
        break;
      case WireType::kFixed64:
        if (!in.Skip(8)) return;
        break;
      case WireType::kBytes: {
        if (!in.ReadVarint32(&length) || length > INT_MAX) return;
        const auto at = static_cast<size_t>(in.CurrentPosition());
        if (!in.Skip(static_cast<int>(length))) return;
        if (groups == 0) see(static_cast<int>(tag >> 3), message.substr(at, length));
        break;
      }
      case WireType::kGroupBegin:
        ++groups;
        break;
      case WireType::kGroupEnd:
        if (--groups < 0) return;
        break;
      case WireType::kFixed32:
        if (!in.Skip(4)) return;
        break;
      default:
        return;
    }
  }
}

void add_lists(std::string_view sampling, ListCounts& counts) {
  for_each_field(sampling, [&](int field, std::string_view) {
    if (field == v1::SamplingParams::kLogitBiasFieldNumber) ++counts.logit_bias;
    if (field == v1::SamplingParams::kBadWordsFieldNumber) ++counts.bad_words;
    if (field == v1::SamplingParams::kStopFieldNumber) ++counts.stop;
  });
}

void add_request(std::string_view request, WireRequest& seen) {
  for_each_field(request, [&](int field, std::string_view value) {
    if (field == v1::GenerateRequest::kSamplingFieldNumber) add_lists(value, seen.lists);
    if (field == v1::GenerateRequest::kRequestIdFieldNumber) seen.request_id = value;
  });
}

}  // namespace

WireRequest look_at_generate(std::string_view bytes) {
  WireRequest seen;
  add_request(bytes, seen);
  return seen;
}

WireRequest look_at_dump_kv(std::string_view bytes) {
  WireRequest seen;
  for_each_field(bytes, [&](int field, std::string_view value) {
    if (field == v1::DumpKvRequest::kRequestFieldNumber) add_request(value, seen);
  });
  return seen;
}

}  // namespace quire::server
