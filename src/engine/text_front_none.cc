// For builds without src/text (QUIRE_SERVER=OFF, or no Rust).
#include "src/engine/text_front.h"

namespace quire {

Result<std::unique_ptr<TextFront>> open_text_front(const std::string&, int32_t) {
  return make_ids_only_front("this build has no tokenizers (QUIRE_SERVER=OFF): prompts must be token ids");
}

}  // namespace quire
