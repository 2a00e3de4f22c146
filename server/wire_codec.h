// Messages in and out of gRPC's byte buffers. The services take raw bytes because gRPC answers a message that
// does not parse (most often: text that is not UTF-8) with a bare UNIMPLEMENTED; here the field at fault is
// named. Any thread.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "quire/result.h"

namespace quire::server {

// INVALID_ARGUMENT with the path of the string field that is not UTF-8, or of the part that is not well
// formed; INTERNAL where gRPC does not give the bytes.
Status parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);
Status parse(const std::string& bytes, google::protobuf::Message& message);
// A message's bytes in one piece, for who looks at them first.
Result<std::string> flatten(const grpc::ByteBuffer& bytes);

grpc::ByteBuffer serialize(const google::protobuf::Message& message);

}  // namespace quire::server
