// quire healthcheck: asks a running server for its health; the HEALTHCHECK of the container image.
#include <fmt/format.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/commands/command.h"
#include "server/flags.h"
#include "server/grpc_threads.h"
#include "server/service.h"
#include "server/tls_files.h"

namespace quire::server {
namespace {

namespace health = ::grpc::health::v1;

struct Options {
  std::string address = "127.0.0.1:50051";
  std::string service = kServiceName;
  int32_t timeout_ms = 2000;
  std::string tls_ca, tls_cert, tls_key;
  std::string output = "text";
};

Result<std::shared_ptr<grpc::ChannelCredentials>> make_credentials(const Options& options) {
  const Result<TlsTexts> texts =
      read_client_tls({.cert = options.tls_cert, .key = options.tls_key, .ca = options.tls_ca});
  if (!texts) return texts.error();
  if (texts->ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = texts->ca;
  ssl.pem_cert_chain = texts->cert;
  ssl.pem_private_key = texts->key;
  return grpc::SslCredentials(ssl);
}

// SERVING, NOT_SERVING, SERVICE_UNKNOWN; an error when nobody answers.
Result<std::string> check(const Options& options) {
  if (Status room = prepare_grpc_client(); !room) return room.error();
  const auto credentials = make_credentials(options);
  if (!credentials) return credentials.error();
  const auto stub = health::Health::NewStub(grpc::CreateChannel(options.address, *credentials));
  health::HealthCheckRequest request;
  request.set_service(options.service);
  health::HealthCheckResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options.timeout_ms));
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok())
    return error(static_cast<Code>(status.error_code()),
                 fmt::format("{}: {}", options.address, status.error_message()));
  return health::HealthCheckResponse::ServingStatus_Name(response.status());
}

}  // namespace

int run_healthcheck(const Arguments& arguments) {
  Options options;
  Flags flags("quire healthcheck", "Ask a server whether it is ready. Exit code 0 if it is, 1 if not.");
  flags.add("address", options.address, "HOST:PORT of the server");
  flags.add("service", options.service, "Service to ask for; an empty text asks whether the process lives");
  flags.add("timeout-ms", options.timeout_ms, "Longest wait for an answer, ms");
  flags.add("tls-ca", options.tls_ca,
            "PEM file of the authority that signed the server's certificate; none = no TLS");
  flags.add("tls-cert", options.tls_cert,
            "PEM file of a client's certificate, for a server with --tls-client-ca; with --tls-key");
  flags.add("tls-key", options.tls_key, "PEM file of that certificate's key");
  flags.add_choice("output", options.output, {"text", "json"}, "Form of the answer");
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  const Result<std::string> status = check(options);
  if (!status) return fail(status.error());
  if (options.output == "json")
    fmt::print("{{\"status\":\"{}\"}}\n", *status);
  else
    fmt::print("{}\n", *status);
  return *status == "SERVING" ? 0 : kExitFailed;
}

}  // namespace quire::server
