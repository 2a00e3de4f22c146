#include "server/wire_codec.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <optional>
#include <vector>

#include "src/base/utf8.h"

namespace quire::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr int kMaxNesting = 16;  // our messages nest four deep

// Reads `bytes` field by field against `type` and returns what is wrong with the first bad one.
std::optional<Error> find_fault(std::string_view bytes, const Descriptor& type, const std::string& path,
                                int nesting) {
  UnknownFieldSet fields;
  if (nesting == 0 || !fields.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return invalid(
        fmt::format("{} is not a well-formed {}", path.empty() ? "the message" : path, type.full_name()),
        path);
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const std::string& value = field.length_delimited();
    const std::string name = path.empty() ? known->name() : path + "." + known->name();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      if (const auto offset = find_invalid_utf8(value))
        return invalid(fmt::format("{} is not UTF-8 at byte {} of {}", name, *offset, value.size()), name);
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      if (auto fault = find_fault(value, *known->message_type(), name, nesting - 1)) return fault;
    }
  }
  return std::nullopt;
}

}  // namespace

Result<std::string> flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (const grpc::Status dumped = bytes.Dump(&slices); !dumped.ok())
    return error(Code::kInternal,
                 fmt::format("the message's bytes cannot be read: {}", dumped.error_message()));
  flat.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices)
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return flat;
}

Status parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  const Result<std::string> flat = flatten(bytes);
  return flat ? parse(*flat, message) : Status(flat.error());
}

Status parse(const std::string& bytes, google::protobuf::Message& message) {
  if (message.ParseFromString(bytes)) return ok();
  const Descriptor& type = *message.GetDescriptor();
  if (auto fault = find_fault(bytes, type, "", kMaxNesting)) return *fault;
  return invalid(fmt::format("the message is not a well-formed {}", type.full_name()));
}

grpc::ByteBuffer serialize(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, &bytes, &own_buffer);
  return bytes;
}

}  // namespace quire::server
