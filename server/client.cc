#include "server/client.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <variant>

namespace quire::server {
namespace {

constexpr size_t kBytesPerToken = 4;

int64_t estimated_tokens(size_t bytes) {
  return static_cast<int64_t>((bytes + kBytesPerToken - 1) / kBytesPerToken);
}

int64_t prompt_tokens(const Prompt& prompt) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) return static_cast<int64_t>(ids->size());
  if (const auto* text = std::get_if<std::string>(&prompt)) return estimated_tokens(text->size());
  size_t bytes = 0;
  for (const ChatMessage& message : std::get<std::vector<ChatMessage>>(prompt))
    bytes += message.role.size() + message.content.size();
  return estimated_tokens(bytes);
}

// "%5B::1%5D:4711" or "[::1]:4711" -> "::1"
std::string_view host_of_ipv6(std::string_view address) {
  for (const auto& [open, close] : {std::pair("%5B", "%5D"), std::pair("[", "]")})
    if (address.starts_with(open)) {
      address.remove_prefix(std::string_view(open).size());
      return address.substr(0, address.find(close));
    }
  return address.substr(0, address.rfind(':'));
}

std::string network_of_ipv6(std::string_view address) {
  const std::string host(address.substr(0, address.find('%')));  // without its zone
  in6_addr bytes{};
  if (inet_pton(AF_INET6, host.c_str(), &bytes) != 1) return std::string(address);
  if (IN6_IS_ADDR_V4MAPPED(&bytes))
    return fmt::format("{}.{}.{}.{}", bytes.s6_addr[12], bytes.s6_addr[13], bytes.s6_addr[14],
                       bytes.s6_addr[15]);
  std::fill(bytes.s6_addr + 8, bytes.s6_addr + 16, uint8_t{0});
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(AF_INET6, &bytes, text.data(), text.size());
  return fmt::format("{}/64", text.data());
}

std::string address_of(std::string_view peer) {
  const size_t colon = peer.find(':');
  const std::string_view scheme = peer.substr(0, colon);
  const std::string_view address = colon == std::string_view::npos ? "" : peer.substr(colon + 1);
  if (scheme == "ipv4") return std::string(address.substr(0, address.rfind(':')));
  if (scheme == "ipv6") return network_of_ipv6(host_of_ipv6(address));
  return std::string(scheme);
}

}  // namespace

std::string client_of(const std::string& tenant, const std::string& peer) {
  return tenant.empty() ? "clientip:" + address_of(peer) : "tenant:" + tenant;
}

int64_t most_tokens(const Request& request, const SamplingLimits& limits) {
  const SamplingParams& sampling = request.sampling;  // not validated yet
  const int64_t most_sequences = std::max({limits.max_n, limits.max_beam_width, 1});
  const int64_t sequences = std::clamp<int64_t>(sampling.num_sequences(), 1, most_sequences);
  return prompt_tokens(request.prompt) + sequences * std::max(sampling.max_tokens, 0);
}

}  // namespace quire::server
