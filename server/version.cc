#include "server/version.h"

namespace quire::server {

const char* const kVersion = QUIRE_VERSION;

}  // namespace quire::server
