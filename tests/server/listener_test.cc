// Where a server listens and what it says when it cannot, its TLS files, and who takes its connections.
#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "server/connection_acceptor.h"
#include "tests/server/rig.h"

namespace quire::server {
namespace {

std::string why_not_opened(const ListenOptions& options) {
  GenerationServer service({});
  const auto opened = Listener::open(options, service);
  return opened ? "" : opened.error().message;
}

TEST(Listener, NamesABusyPort) {
  Rig rig;
  const std::string port = rig.listener->address().substr(rig.listener->address().rfind(':') + 1);
  EXPECT_EQ(why_not_opened({.port = std::stoi(port)}),
            "cannot listen on 127.0.0.1:" + port + ": Address already in use");
}

TEST(Listener, RefusesAPublicAddressWithoutTlsOrAProxy) {
  EXPECT_NE(why_not_opened({.host = "0.0.0.0", .port = 0}).find("--behind-proxy"), std::string::npos);
  EXPECT_NE(why_not_opened({.host = "::", .port = 0}).find("--tls-cert"), std::string::npos);
  EXPECT_EQ(why_not_opened({.host = "0.0.0.0", .port = 0, .behind_proxy = true}), "");
}

double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// poll() itself fails where more descriptors are watched than the process may have open. The connection that came is taken once it may.
TEST(ConnectionAcceptor, WaitsOutWhatTheSystemRefuses) {
  Rig rig;
  const std::string port = rig.listener->address().substr(rig.listener->address().rfind(':') + 1);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit one{.rlim_cur = 1, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &one), 0);
  const double cpu_s = cpu_seconds();
  EXPECT_EQ(connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(cpu_seconds() - cpu_s, 0.1) << "of half a second: it spins";
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  // gRPC speaks first: the settings of HTTP/2.
  pollfd readable{.fd = client, .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&readable, 1, 10'000), 1) << "the connection is never taken";
  close(client);
}

// In a process of its own, which may open no descriptor more.
TEST(ConnectionAcceptorDeathTest, IsAnErrorWithoutADescriptorToBeStoppedBy) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer of undefined behaviour looks at objects through descriptors of its own";
#endif
  const auto start = [] {
    Result<ListeningSockets> sockets = ListeningSockets::open("127.0.0.1", 0);
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    if (!sockets || setrlimit(RLIMIT_NOFILE, &none) != 0) _exit(2);
    const auto acceptor = ConnectionAcceptor::start(std::move(*sockets), nullptr, 10);
    if (acceptor) _exit(3);
    std::fprintf(stderr, "%s\n", acceptor.error().message.c_str());
    _exit(acceptor.error().code == Code::kResourceExhausted ? 0 : 4);
  };
  EXPECT_EXIT(start(), testing::ExitedWithCode(0), "no eventfd for connections: Too many open files");
}

TEST(Listener, KnowsLoopback) {
  for (const char* host : {"127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/run/quire.sock"})
    EXPECT_TRUE(is_loopback(host)) << host;
  for (const char* host : {"0.0.0.0", "::", "10.0.0.1", "127.evil.example", "example.org", ""})
    EXPECT_FALSE(is_loopback(host)) << host;
}

// Whether a server answers ServerReflectionRequest{list_services: "*"}.
grpc::StatusCode reflection_of(const Rig& rig) {
  grpc::GenericStub stub(rig.channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice bytes("\x3a\x01*");
  const grpc::ByteBuffer request(&bytes, 1);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool fine = false;
    return queue.Next(&tag, &fine) && fine;
  };
  const auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  bool alive = wait();
  if (alive) {
    call->Write(request, nullptr);
    alive = wait();
  }
  if (alive) {
    call->WritesDone(nullptr);
    alive = wait();
  }
  for (grpc::ByteBuffer answer; alive; alive = wait()) call->Read(&answer, nullptr);
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  return status.error_code();
}

// In one process, whichever comes first: each listener for itself.
TEST(Listener, ReflectsOnlyWhereItIsAllowed) {
  for (const bool first : {false, true})
    for (const bool allowed : {first, !first}) {
      const Rig rig({}, {}, {.port = 0, .reflection = allowed});
      EXPECT_EQ(reflection_of(rig), allowed ? grpc::StatusCode::OK : grpc::StatusCode::UNIMPLEMENTED);
    }
}

std::string write_pem(const std::string& name, const std::function<int(BIO*)>& write) {
  const std::string path = testing::TempDir() + "/quire_" + name;
  BIO* file = BIO_new_file(path.c_str(), "w");
  EXPECT_EQ(write(file), 1) << path;
  BIO_free_all(file);
  return path;
}

// A key, a certificate signed by itself, and the key again under a passphrase.
struct Identity {
  explicit Identity(const std::string& name) {
    EVP_PKEY* made = EVP_EC_gen("P-256");
    X509* x509 = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(x509), 0);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_pubkey(x509, made);
    X509_sign(x509, made, EVP_sha256());
    key = write_pem(name + ".key", [&](BIO* file) {
      return PEM_write_bio_PrivateKey(file, made, nullptr, nullptr, 0, nullptr, nullptr);
    });
    locked_key = write_pem(name + ".locked", [&](BIO* file) {
      unsigned char word[] = "word";
      return PEM_write_bio_PrivateKey(file, made, EVP_aes_128_cbc(), word, 4, nullptr, nullptr);
    });
    cert = write_pem(name + ".pem", [&](BIO* file) { return PEM_write_bio_X509(file, x509); });
    X509_free(x509);
    EVP_PKEY_free(made);
  }
  std::string cert, key, locked_key;
};

TEST(Listener, NamesTheTlsFileAtFault) {
  const Identity ours("ours"), other("other");
  const std::string none = testing::TempDir() + "/quire_none.pem", dir = testing::TempDir();
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = ours.cert}),
            "--tls-cert and --tls-key go together; --tls-key is missing");
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = none, .tls_key = ours.key}),
            "--tls-cert " + none + ": no such file; a PEM file of the server's certificate chain is wanted");
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = dir, .tls_key = ours.key}),
            "--tls-cert " + dir +
                ": it is no regular file; a PEM file of the server's certificate chain is wanted");
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = ours.key, .tls_key = ours.key}),
            "--tls-cert " + ours.key +
                ": it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); a PEM file of the "
                "server's certificate chain is wanted");
  EXPECT_EQ(
      why_not_opened({.port = 0, .tls_cert = ours.cert, .tls_key = ours.cert}),
      "--tls-key " + ours.cert +
          ": it holds no PEM private key (-----BEGIN PRIVATE KEY-----); the PEM file of the certificate's "
          "private key is wanted");
  EXPECT_NE(why_not_opened({.port = 0, .tls_cert = ours.cert, .tls_key = ours.locked_key}).find("passphrase"),
            std::string::npos);
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = ours.cert, .tls_key = other.key}),
            "--tls-key " + other.key + ": it is not the key of the certificate in " + ours.cert);
  EXPECT_EQ(why_not_opened({.port = 0, .tls_cert = ours.cert, .tls_key = ours.key, .tls_client_ca = ours.key})
                .substr(0, 16),
            "--tls-client-ca ");
  EXPECT_EQ(
      why_not_opened({.port = 0, .tls_cert = ours.cert, .tls_key = ours.key, .tls_client_ca = other.cert}),
      "");
}

TEST(Listener, NamesWhatIsWrongWithASocketPath) {
  const std::string dir = testing::TempDir(), file = dir + "/quire_no_socket",
                    path = dir + "/quire_test.sock";
  const auto why = [](const std::string& at) { return why_not_opened({.host = "unix:" + at}); };
  std::ofstream(file) << "hello";
  EXPECT_NE(why("").find("unix:PATH is wanted"), std::string::npos);
  const std::string far(121, 'x');
  EXPECT_EQ(why(far),
            fmt::format("--host unix:{}: the path has 121 bytes; a Unix socket's has at most 107", far));
  EXPECT_EQ(why("/no/such/dir/a.sock"),
            "--host unix:/no/such/dir/a.sock: /no/such/dir is no directory; make it first");
  EXPECT_EQ(why(file),
            "--host unix:" + file +
                ": something is there that is no socket; it is left alone, so remove it or choose another "
                "path");
  EXPECT_TRUE(std::filesystem::exists(file));
  std::filesystem::remove(path);
  {
    const Rig rig({}, {}, {.host = "unix:" + path});
    EXPECT_EQ(health_of(rig, kServiceName), "SERVING");
    EXPECT_EQ(why(path), "--host unix:" + path + ": another server listens there");
    EXPECT_EQ(health_of(rig, kServiceName), "SERVING") << "and goes on";
  }
  EXPECT_EQ(why(path), "");
}

}  // namespace
}  // namespace quire::server
