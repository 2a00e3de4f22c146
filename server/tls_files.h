// The PEM files of a TLS server, and of its client (quire healthcheck), read and looked through before gRPC gets them: it would say no more
// than that it could not listen, or that its list of addresses is empty.
#pragma once

#include <string>

#include "quire/result.h"

namespace quire::server {

// Paths; "" = none was given.
struct TlsFiles {
  std::string cert, key;  // one's own
  std::string ca;         // whom the other side's is signed by
};

// What is in them, "" where none was given.
struct TlsTexts {
  std::string cert, key, ca;
};

// Errors name the flag and the file: one that needs another, missing, unreadable, not the PEM that is wanted, a key under a passphrase, a
// key of another certificate.
// Of --tls-cert, --tls-key and --tls-client-ca, which is of no use without the two.
Result<TlsTexts> read_server_tls(const TlsFiles& files);
// Of --tls-cert, --tls-key and --tls-ca, without which the two are of no use.
Result<TlsTexts> read_client_tls(const TlsFiles& files);

}  // namespace quire::server
