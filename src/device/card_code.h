// Which of this build's code the current card takes. Every .cu file of the build is compiled for the same list of
// architectures, so one kernel answers for all.
#pragma once

#include <cuda_runtime_api.h>

namespace quire {

struct CardCode {
  cudaError_t fault = cudaSuccess;  // of finding the kernel, or of running it
  bool found = false;               // the card has code for the kernel
  bool sm90a = false;               // and it is the code made for sm_90a
};
CardCode probe_card_code();

}  // namespace quire
