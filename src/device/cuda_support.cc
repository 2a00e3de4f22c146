#include "src/device/cuda_support.h"

#include <fmt/format.h>

namespace quire {
namespace {

constexpr int kLeastCapability = 80;  // cp.async, bf16 tensor cores
constexpr int kHopper = 90;

std::string capability_text(int capability) {
  return fmt::format("{}.{}", capability / 10, capability % 10);
}

}  // namespace

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::optional<std::string> why_no_card(const CudaPlatform& p) {
  if (p.driver_version == 0) return "no NVIDIA driver is installed";
  // Within a major version an older driver serves a newer toolkit.
  if (p.driver_version / 1000 < p.toolkit_version / 1000)
    return fmt::format("the driver serves CUDA {}, this build needs {} or newer",
                       cuda_version_text(p.driver_version),
                       cuda_version_text(p.toolkit_version / 1000 * 1000));
  if (!p.fault.empty()) return p.fault;
  if (p.num_cards == 0) return "the driver reports no card";
  return std::nullopt;
}

std::optional<std::string> why_card_unfit(const CudaCard& card, std::string_view architectures) {
  const std::string capability = capability_text(card.capability);
  if (card.capability < kLeastCapability)
    return fmt::format("{} has compute capability {}, at least {} is needed", card.name, capability,
                       capability_text(kLeastCapability));
  if (card.no_code.empty()) return std::nullopt;
  return fmt::format(
      "{} has compute capability {}, and this build holds code for {} only; configure with "
      "-DQUIRE_CUDA_ARCHITECTURES={}{}-real [{}]",
      card.name, capability, architectures, card.capability, card.capability == kHopper ? "a" : "",
      card.no_code);
}

int kernel_capability(int card_capability, bool takes_sm90a_code) {
  return card_capability == kHopper && !takes_sm90a_code ? kLeastCapability : card_capability;
}

}  // namespace quire
