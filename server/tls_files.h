// The PEM files of a TLS server, read and looked through before gRPC gets them: it would say no more than that it could not listen.
#pragma once

#include <string>

#include "quire/result.h"

namespace quire::server {

struct TlsFiles {
  std::string cert, key, client_ca;  // paths; client_ca may be empty
};

struct TlsTexts {
  std::string cert, key, client_ca;
};

// Errors name the flag and the file: missing, unreadable, not the PEM that is wanted, a key under a passphrase, a key of another
// certificate.
Result<TlsTexts> read_tls_files(const TlsFiles& files);

}  // namespace quire::server
