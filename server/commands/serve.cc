// quire serve: the gRPC server.
#include "quire/host_memory.h"
#include "server/commands/command.h"
#include "server/commands/common_flags.h"
#include "server/lifecycle.h"

namespace quire::server {
namespace {

struct Options {
  EngineConfig engine;
  ServeOptions serve;
  LogOptions log{.format = "text", .level = "info"};
  bool reflection = false, debug_rpcs = false;  // on a public address; on loopback both are on
};

void bind(Flags& flags, Options& o) {
  ListenOptions& listen = o.serve.listen;
  flags.add("host", listen.host,
            "Address to listen on, or unix:PATH; a public one needs TLS or --behind-proxy");
  flags.add("port", listen.port, "TCP port; 0 = any free one, told by the READY line");
  flags.add("tls-cert", listen.tls_cert, "PEM file of the server's certificate chain");
  flags.add("tls-key", listen.tls_key, "PEM file of its key");
  flags.add("tls-client-ca", listen.tls_client_ca, "PEM file; clients must show a certificate signed by it");
  flags.add("behind-proxy", listen.behind_proxy,
            "A proxy in front ends TLS: allow a public address without it");
  flags.add("max-message-bytes", listen.max_message_bytes, "Largest request message, bytes");
  flags.add("max-metadata-bytes", listen.max_metadata_bytes, "Largest request metadata, bytes");
  flags.add("max-connections", listen.max_connections, "Connections at once; more are closed");
  flags.add("max-streams-per-connection", listen.max_streams_per_connection,
            "Calls running on one connection");
  flags.add("idle-connection-ms", listen.idle_connection_ms,
            "An unused connection is closed after this time, ms");
  flags.add("max-connection-age-ms", listen.max_connection_age_ms,
            "A connection takes no new calls after this time, ms");
  flags.add("max-backlog-bytes", o.serve.service.stream.max_backlog_bytes,
            "Unsent bytes of a stream before it is paused");
  flags.add("max-stall-ms", o.serve.service.stream.max_stall_ms,
            "A stream whose client reads nothing ends after this time, ms");
  WorkPoolOptions& texts = o.serve.service.texts;
  flags.add(
      "text-threads", texts.threads,
      "Threads that tokenise and detokenise texts of requests; 0 = a quarter of the cores, from 2 to 8");
  flags.add("max-queued-texts", texts.max_queued, "Texts waiting for them at once");
  flags.add("max-queued-text-bytes", texts.max_queued_bytes, "The same, bytes");
  TenantLimits& tenants = o.serve.service.tenants;
  flags.add("max-tenant-parallel-requests", tenants.max_parallel_requests,
            "Requests of one tenant running or waiting at once; a request without a tenant counts for its "
            "address; 0 = no limit");
  flags.add("max-tenant-requests-per-minute", tenants.max_requests_per_minute,
            "Requests that one tenant may begin in a minute; 0 = no limit");
  flags.add("max-tenant-tokens-per-minute", tenants.max_tokens_per_minute,
            "Tokens of prompts and outputs that one tenant may use in a minute; 0 = no limit");
  flags.add("max-host-memory-bytes", o.serve.service.host_memory.max_bytes,
            "Host memory at which requests are refused, bytes; 0 = what the cgroup or the machine allows, -1 "
            "= no ceiling");
  flags.add("wedged-after-ms", o.serve.wedged_after_ms,
            "Not ready when work is there and no step ends for this time, ms");
  flags.add("reflection", o.reflection, "gRPC reflection on a public address too");
  flags.add("debug-rpcs", o.debug_rpcs, "DumpKv and dump_kv on a public address too");
  bind_engine_flags(flags, o.engine);
  bind_log_flags(flags, o.log);
  flags.add_config();
}

}  // namespace

int run_serve(const Arguments& arguments) {
  Options options;
  Flags flags(
      "quire serve",
      "Serve a model over gRPC. Prints one line, READY grpc=HOST:PORT model=NAME, when it can answer.");
  bind(flags, options);
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  apply(options.log);
  block_stop_signals();
  const bool local = is_loopback(options.serve.listen.host);
  options.serve.listen.reflection = local || options.reflection;
  options.serve.service.allow_debug = local || options.debug_rpcs;
  const Status served =
      serve(options.serve, [&] { return Engine::open(options.engine); }, untouched_host_bytes);
  return served ? 0 : fail(served.error());
}

}  // namespace quire::server
