#include "server/text_calls.h"

#include <utility>

namespace quire::server {

std::optional<TextCalls::Id> TextCalls::add(grpc::CallbackServerContext& context) {
  const std::lock_guard lock(mutex_);
  if (closed_) return {};
  calls_[++last_id_] = {.context = &context, .reactor = context.DefaultReactor()};
  return last_id_;
}

bool TextCalls::is_wanted(Id id) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(id);
  return found != calls_.end() && !found->second.context->IsCancelled();
}

grpc::ServerUnaryReactor* TextCalls::take(Id id) {
  const std::lock_guard lock(mutex_);
  const auto call = calls_.extract(id);
  return call ? call.mapped().reactor : nullptr;
}

void TextCalls::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

void TextCalls::end_all(const grpc::Status& status) {
  std::map<Id, Call> calls;
  {
    const std::lock_guard lock(mutex_);
    calls.swap(calls_);
  }
  for (const auto& [id, call] : calls) call.reactor->Finish(status);
}

}  // namespace quire::server
