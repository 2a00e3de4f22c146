// What the tests of the CUDA row ops share: the back end's own seam on the host shim with all its checks on, memory of that device, and
// kernels/reference (float64 sums) to compare with. Activations are rounded to their type before either side sees them; outputs are
// poisoned first, and what must not be written is compared after.
#pragma once

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/host_shim/runner.h"
#include "tests/kernel/cpu_test_rig.h"

namespace quire {

inline StreamDevice& shim_device() {
  static StreamDevice* const opened = open_cuda_host_device().release();  // lives until the process ends
  return *opened;
}

class CudaOps : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    shim::set_shim_options({.checking = true, .order_seed = 3});
    kernels_ = std::move(make_cuda_kernels(shim_device(), {.activations = GetParam()})).value();
  }
  void TearDown() override { shim::set_shim_options({}); }

  DType act() const { return GetParam(); }

  DeviceBuffer upload(const void* data, int64_t bytes) {
    DeviceBuffer buffer = std::move(shim_device().allocate(bytes, "test")).value();
    shim_device().copy_to_device(buffer.data(), data, bytes);
    shim_device().synchronize();
    return buffer;
  }
  DeviceBuffer upload(const Tensor& t) {
    return upload(t.data(), static_cast<int64_t>(t.all_bytes().size()));
  }
  template <class T>
  DeviceBuffer upload(const std::vector<T>& v) {
    return upload(v.data(), static_cast<int64_t>(v.size() * sizeof(T)));
  }
  void download(const DeviceBuffer& buffer, void* to) {
    shim_device().copy_to_host(to, buffer.data(), buffer.bytes());
    shim_device().synchronize();
  }

  std::unique_ptr<Kernels> kernels_;
};

inline std::string name_of_activations(const testing::TestParamInfo<DType>& info) {
  return std::string(name_of(info.param));
}

}  // namespace quire
