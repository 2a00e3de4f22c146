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
                 "it is under a passphrase, which a server cannot be asked for; a plain key is wanted");
  return wrong(
      "--tls-key", path,
      fmt::format("it holds no PEM private key (-----BEGIN PRIVATE KEY-----); {} is wanted", kWanted));
}

}  // namespace

Result<TlsTexts> read_tls_files(const TlsFiles& files) {
  Result<std::string> cert =
      read_certificates("--tls-cert", files.cert, "a PEM file of the server's certificate chain");
  if (!cert) return cert.error();
  Result<std::string> key = read_private_key(files.key);
  if (!key) return key.error();
  if (X509_check_private_key(read_certificate(*cert).get(), read_key(*key).get()) != 1)
    return wrong("--tls-key", files.key,
                 fmt::format("it is not the key of the certificate in {}", files.cert));
  TlsTexts texts{.cert = std::move(*cert), .key = std::move(*key), .client_ca = {}};
  if (files.client_ca.empty()) return texts;
  Result<std::string> ca = read_certificates("--tls-client-ca", files.client_ca,
                                             "a PEM file of the certificates that clients' are signed by");
  if (!ca) return ca.error();
  texts.client_ca = std::move(*ca);
  return texts;
}

}  // namespace quire::server
