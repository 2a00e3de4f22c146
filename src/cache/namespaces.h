// Who may share with whom: two prompts share cached blocks only inside one namespace. The 64-bit identity
// finds it, the whole key confirms it: a tenant who makes two keys collide gains nothing. Engine thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace quire {

enum class NamespaceId : uint64_t {};
constexpr uint64_t value(NamespaceId id) {
  return static_cast<uint64_t>(id);
}

// All that K and V depend on besides the tokens (src/policy/README.md, Publishing). Equal keys, equal bytes.
struct NamespaceKey {
  std::string model;   // name and weights identity
  std::string lora;    // "" = none
  std::string salt;    // tenants with different salts never share
  std::string spec;    // what a slot holds
  std::string codec;   // how it is stored: "bf16"
  std::string policy;  // "" unless the policy changed the hidden states behind K and V
};

std::string encode(const NamespaceKey& key);         // injective: every field with its length
uint64_t identity_of(std::string_view encoded_key);  // the same on every machine

class Namespaces {
 public:
  using Identity = uint64_t (*)(std::string_view encoded_key);
  explicit Namespaces(Identity identity = identity_of) : identity_(identity) {}

  // Each open is matched by a close. Two keys with one identity get two ids.
  NamespaceId open(const NamespaceKey& key) { return open_encoded(encode(key)); }
  NamespaceId open_encoded(std::string key);
  void open_again(NamespaceId id) { ++entries_.at(value(id)).users; }  // of one in use
  // True when that was the last user.
  bool close(NamespaceId id);
  bool in_use(NamespaceId id) const;
  const std::string& key_of(NamespaceId id) const { return entries_.at(value(id)).key; }  // encoded
  void forget(NamespaceId id);  // no user, and nothing of it cached
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    std::string key;
    int64_t users = 0;
  };
  Identity identity_;
  std::unordered_map<uint64_t, Entry> entries_;
  std::unordered_map<std::string, NamespaceId> by_key_;
};

}  // namespace quire
