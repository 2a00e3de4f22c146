#include "src/device/card_code.h"

namespace quire {
namespace {

__device__ int ran_sm90a_code;

__global__ void report_code() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ran_sm90a_code = 1;
#else
  ran_sm90a_code = 0;
#endif
}

}  // namespace

CardCode probe_card_code() {
  CardCode code;
  cudaFuncAttributes attributes{};
  code.fault = cudaFuncGetAttributes(&attributes, report_code);
  if (code.fault != cudaSuccess) return code;
  code.found = true;
  int sm90a = 0;
  report_code<<<1, 1>>>();
  code.fault = cudaGetLastError();
  if (code.fault == cudaSuccess) code.fault = cudaMemcpyFromSymbol(&sm90a, ran_sm90a_code, sizeof(sm90a));
  code.sm90a = sm90a != 0;
  return code;
}

}  // namespace quire
