// Prompts are never logged. What the engine refuses a request with is told to its client whole, and logged unless it may quote the
// prompt: what a chat template raises (field "messages"), and what a library stumbled on in a text (kInternal).
#pragma once

#include <string>

#include "quire/result.h"

namespace quire {

inline bool may_quote_prompt(const Error& refusal) {
  return refusal.field == "messages" || refusal.code == Code::kInternal;
}
inline std::string loggable_message(const Error& refusal) {
  return may_quote_prompt(refusal) ? "not logged: it may quote the prompt" : refusal.message;
}

}  // namespace quire
