// Whether this build can run on this machine's card, decided from what the CUDA runtime reports. Plain values, so that
// every refusal is tested where there is no card; cuda_device.cc fills them. Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace quire {

// Versions as CUDA writes them: 13020 is 13.2.
struct CudaPlatform {
  int toolkit_version = 0;
  int driver_version = 0;  // the newest CUDA that the driver serves; 0: no driver
  int num_cards = 0;
  std::string fault;  // what the runtime said when asked for the number of cards; empty: nothing went wrong
};

struct CudaCard {
  std::string name;
  int capability = 0;  // 89 = 8.9
  // What the runtime said when asked for a kernel of this build; empty: the card has code for it.
  std::string no_code;
};

std::string cuda_version_text(int version);
// nullopt where a card can be asked for; else one line that says why not.
std::optional<std::string> why_no_card(const CudaPlatform& platform);
// nullopt where the card runs this build's kernels, which were made for `architectures` (QUIRE_CUDA_ARCHITECTURES).
std::optional<std::string> why_card_unfit(const CudaCard& card, std::string_view architectures);
// The compute capability whose kernels the card runs: 90 only where it takes this build's code for sm_90a, without
// which the kernels of Hopper's own instructions are empty.
int kernel_capability(int card_capability, bool takes_sm90a_code);

}  // namespace quire
