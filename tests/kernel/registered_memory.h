// Memory of a test that kernels may touch while the host shim checks.
#pragma once

#include <vector>

#include "kernels/cuda/host_shim/memory_check.h"

namespace quire {

class Registered {
 public:
  template <class T>
  explicit Registered(const std::vector<T>& buffer) : data_(buffer.data()) {
    shim::register_memory(data_, static_cast<int64_t>(buffer.size() * sizeof(T)));
  }
  Registered(const Registered&) = delete;
  ~Registered() { shim::unregister_memory(data_); }

 private:
  const void* data_;
};

}  // namespace quire
