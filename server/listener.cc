#include "server/listener.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include "server/grpc_threads.h"
#include "server/library_log.h"
#include "server/tls_files.h"

namespace quire::server {
namespace {

// What gateways of this field send: a ping every 30 s, also on idle connections. gRPC's default answers those
// with GOAWAY.
constexpr int kMinPingIntervalMs = 10'000;
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;

// gRPC's reflection library adds itself to every builder of a process that links it: taken out again here.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins, [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

Result<std::shared_ptr<grpc::ServerCredentials>> make_credentials(const ListenOptions& options) {
  const Result<TlsTexts> texts =
      read_server_tls({.cert = options.tls_cert, .key = options.tls_key, .ca = options.tls_client_ca});
  if (!texts) return texts.error();
  if (texts->cert.empty()) {
    if (!is_loopback(options.host) && !options.behind_proxy)
      return invalid(fmt::format(
          "{} is a public address; serve it with --tls-cert and --tls-key, or with --behind-proxy if a proxy "
          "in front of it ends TLS",
          options.host));
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions ssl(texts->ca.empty()
                                            ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_key_cert_pairs.push_back({texts->key, texts->cert});
  ssl.pem_root_certs = texts->ca;
  return grpc::SslServerCredentials(ssl);
}

// A compressed message meets the size limit only once it is unpacked: 400 kB of gzip took 400 MB of memory
// before they were refused. Token streams are small, so nothing is lost by taking plain messages only.
void refuse_compression(grpc::ServerBuilder& builder) {
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP})
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
}

void apply_limits(const ListenOptions& options, grpc::ServerBuilder& builder) {
  refuse_compression(builder);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, static_cast<int>(options.idle_connection_ms));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(options.max_connection_age_ms));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
}

}  // namespace

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.starts_with("unix:") ||
         (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos);
}

std::string format_address(const std::string& host, int32_t port) {
  if (host.starts_with("unix:")) return host;
  const bool bare_v6 = host.find(':') != std::string::npos && !host.starts_with("[");
  return bare_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

Result<std::unique_ptr<Listener>> Listener::open(const ListenOptions& options, grpc::Service& service) {
  if (options.port < 0 || options.port > 65535)
    return invalid(fmt::format("port is {}; it must be from 0 to 65535", options.port), "port");
  adopt_library_logs();
  if (Status known = check_host(options.host); !known) return known.error();
  if (Status room = prepare_grpc_server(); !room) return room.error();
  const auto credentials = make_credentials(options);
  if (!credentials) return credentials.error();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  if (!options.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  apply_limits(options, builder);
  std::unique_ptr<ConnectionAcceptor::GrpcAcceptor> connections =
      builder.experimental().AddExternalConnectionAcceptor(
          grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, *credentials);
  builder.RegisterService(&service);
  Result<ListeningSockets> sockets = ListeningSockets::open(options.host, options.port);
  if (!sockets) return sockets.error();
  const std::string address = format_address(options.host, sockets->port());
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) return error(Code::kUnavailable, fmt::format("gRPC cannot serve {}", address));
  Result<std::unique_ptr<ConnectionAcceptor>> acceptor =
      ConnectionAcceptor::start(std::move(*sockets), std::move(connections), options.max_connections);
  if (!acceptor) return acceptor.error();
  return std::unique_ptr<Listener>(new Listener(std::move(server), std::move(*acceptor), address));
}

Listener::Listener(std::unique_ptr<grpc::Server> server, std::unique_ptr<ConnectionAcceptor> acceptor,
                   std::string address)
    : server_(std::move(server)), acceptor_(std::move(acceptor)), address_(std::move(address)) {}

Listener::~Listener() {
  shut_down(0);
}

void Listener::set_serving(const std::string& service, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(service, serving);
}

void Listener::shut_down(int64_t grace_ms) {
  if (!server_) return;
  acceptor_->stop();
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
  server_->Wait();
  server_.reset();
}

}  // namespace quire::server
