#include "src/cache/namespaces.h"

#include "src/base/check.h"
#include "src/cache/hash.h"

namespace quire {

std::string encode(const NamespaceKey& key) {
  std::string text;
  for (const std::string* field : {&key.model, &key.lora, &key.salt, &key.spec, &key.codec, &key.policy}) {
    text += std::to_string(field->size());
    text += ':';
    text += *field;
  }
  return text;
}

uint64_t identity_of(std::string_view encoded_key) {
  uint64_t hash = kHashSeed;
  for (const char c : encoded_key) hash = mix(hash, static_cast<uint8_t>(c));
  return hash;
}

NamespaceId Namespaces::open_encoded(std::string text) {
  if (const auto known = by_key_.find(text); known != by_key_.end()) {
    ++entries_.at(value(known->second)).users;
    return known->second;
  }
  uint64_t id = identity_(text);
  while (entries_.contains(id)) ++id;  // another key has this identity
  entries_[id] = {.key = text, .users = 1};
  by_key_.emplace(std::move(text), NamespaceId{id});
  return NamespaceId{id};
}

bool Namespaces::close(NamespaceId id) {
  Entry& entry = entries_.at(value(id));
  check(entry.users > 0, "a namespace is closed as often as it was opened");
  return --entry.users == 0;
}

bool Namespaces::in_use(NamespaceId id) const {
  const auto found = entries_.find(value(id));
  return found != entries_.end() && found->second.users > 0;
}

void Namespaces::forget(NamespaceId id) {
  check(!in_use(id), "a namespace in use is not forgotten");
  const auto found = entries_.find(value(id));
  by_key_.erase(found->second.key);
  entries_.erase(found);
}

}  // namespace quire
