#include "server/tls_files.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <memory>

#include "src/base/text_file.h"

namespace quire::server {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;

template <auto free>
struct Free {
  template <class T>
  void operator()(T* owned) const {
    free(owned);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

Error wrong(const char* flag, const std::string& path, const std::string& what) {
  return invalid(fmt::format("{} {}: {}", flag, path, what));
}

Result<std::string> read_file(const char* flag, const std::string& path, const char* wanted) {
  Result<std::string> text = read_text_file(path, kMaxPemBytes);
  if (!text) return invalid(fmt::format("{} {}; {} is wanted", flag, text.error().message, wanted));
  return text;
}

Bio open(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

Certificate read_certificate(const std::string& text) {
  ERR_clear_error();
  return Certificate(PEM_read_bio_X509(open(text).get(), nullptr, nullptr, nullptr));
}

Key read_key(const std::string& text) {
  ERR_clear_error();
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };  // instead of asking on the terminal
  return Key(PEM_read_bio_PrivateKey(open(text).get(), nullptr, no_passphrase, nullptr));
}

Result<std::string> read_certificates(const char* flag, const std::string& path, const char* wanted) {
  Result<std::string> text = read_file(flag, path, wanted);
  if (text && !read_certificate(*text))
    return wrong(flag, path,
                 fmt::format("it does not begin with a PEM certificate (-----BEGIN CERTIFICATE-----); {} "
                             "is wanted",
                             wanted));
  return text;
}

Result<std::string> read_private_key(const std::string& path) {
  constexpr const char* kWanted = "the PEM file of the certificate's private key";
  Result<std::string> text = read_file("--tls-key", path, kWanted);
  if (!text || read_key(*text)) return text;
  if (text->find("ENCRYPTED") != std::string::npos)
    return wrong("--tls-key", path,
                 "it is under a passphrase, for which nobody is asked; a plain key is wanted");
  return wrong(
      "--tls-key", path,
      fmt::format("it holds no PEM private key (-----BEGIN PRIVATE KEY-----); {} is wanted", kWanted));
}

Status check_pair(const TlsFiles& files) {
  if (files.cert.empty() == files.key.empty()) return ok();
  return invalid(fmt::format("--tls-cert and --tls-key go together; {} is missing",
                             files.key.empty() ? "--tls-key" : "--tls-cert"));
}

// What the files of one side are, in the words of its flags.
struct Wanted {
  const char *cert, *ca_flag, *ca;
};

Result<TlsTexts> read_files(const TlsFiles& files, const Wanted& wanted) {
  TlsTexts texts;
  if (!files.cert.empty()) {
    Result<std::string> cert = read_certificates("--tls-cert", files.cert, wanted.cert);
    if (!cert) return cert.error();
    Result<std::string> key = read_private_key(files.key);
    if (!key) return key.error();
    if (X509_check_private_key(read_certificate(*cert).get(), read_key(*key).get()) != 1)
      return wrong("--tls-key", files.key,
                   fmt::format("it is not the key of the certificate in {}", files.cert));
    texts.cert = *std::move(cert);
    texts.key = *std::move(key);
  }
  if (files.ca.empty()) return texts;
  Result<std::string> ca = read_certificates(wanted.ca_flag, files.ca, wanted.ca);
  if (!ca) return ca.error();
  texts.ca = *std::move(ca);
  return texts;
}

}  // namespace

Result<TlsTexts> read_server_tls(const TlsFiles& files) {
  if (Status pair = check_pair(files); !pair) return pair.error();
  if (files.cert.empty() && !files.ca.empty())
    return invalid("--tls-client-ca needs --tls-cert and --tls-key, the server's own");
  return read_files(files, {.cert = "a PEM file of the server's certificate chain",
                            .ca_flag = "--tls-client-ca",
                            .ca = "a PEM file of the certificates that clients' are signed by"});
}

Result<TlsTexts> read_client_tls(const TlsFiles& files) {
  if (Status pair = check_pair(files); !pair) return pair.error();
  if (files.ca.empty() && !files.cert.empty())
    return invalid("--tls-cert and --tls-key need --tls-ca, the authority of the server's certificate");
  return read_files(files, {.cert = "a PEM file of the client's certificate chain",
                            .ca_flag = "--tls-ca",
                            .ca = "a PEM file of the authority that signed the server's certificate"});
}

}  // namespace quire::server
