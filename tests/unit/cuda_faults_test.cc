// A call of CUDA's that fails after the start ends the process: with the error's name, number and text, the place, and the plan that the
// runner noted (tests/golden/device_faults_test.cc has the whole way, on the host shim). Needs no card: the error is made up.
#include <gtest/gtest.h>

#include <csignal>

#include "src/base/check_note.h"
#include "src/device/cuda_handles.h"

namespace quire {
namespace {

TEST(CudaFault, EndsTheProcessWithTheErrorAndThePlan) {
  const auto fault = [] {
    note_for_check("plan queued last: step=7 sequences=1");
    check_cuda_call(cudaErrorIllegalAddress);
  };
  EXPECT_EXIT(fault(), testing::KilledBySignal(SIGABRT),
              "check failed at [^\n]*cuda_faults_test.cc:[0-9]+: CUDA call failed: cudaErrorIllegalAddress "
              "\\(700\\): "
              "an illegal memory access was encountered\nquire: plan queued last: step=7 sequences=1\n$");
}

TEST(CudaFault, IsNoneWhereACallSucceeds) {
  check_cuda_call(cudaSuccess);
}

}  // namespace
}  // namespace quire
