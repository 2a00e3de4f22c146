#include "server/library_log.h"

#include <google/protobuf/stubs/common.h>
#include <grpc/support/log.h>

#include <mutex>
#include <string>

#include "src/base/log.h"

#if GOOGLE_PROTOBUF_VERSION < 4022000  // later ones log through Abseil
#include <google/protobuf/stubs/logging.h>
#endif

namespace quire::server {

void adopt_library_logs() {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(
        [](gpr_log_func_args* args) { log_line(LogLevel::kDebug, "grpc", {{"message", args->message}}); });
#if GOOGLE_PROTOBUF_VERSION < 4022000
    google::protobuf::SetLogHandler(
        [](google::protobuf::LogLevel, const char*, int, const std::string& message) {
          log_line(LogLevel::kDebug, "protobuf", {{"message", message}});
        });
#endif
  });
}

}  // namespace quire::server
