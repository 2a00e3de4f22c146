// What the kernel benchmarks stand on: a device (a card, or the host shim for dry runs), its kernels, random
// memory, timed graphs, the card's ceilings, and the report.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "benchmarks/cuda/bench_ops.h"

namespace quire::bench {

using Json = nlohmann::ordered_json;

struct RigOptions {
  std::string device = "cuda";  // cuda | cuda-host
  int rounds = 9;               // timed; three before them warm up
};

struct Timing {
  double us = 0, least_us = 0, most_us = 0;  // of one repeat: median, least, most
  std::vector<double> rounds_us;
};

struct Ceilings {  // bytes/s and operations/s
  double read = 0, copy = 0, matmul = 0;
};

// The value of a Result, or the end of the program with its message: a benchmark has nobody else to tell.
template <class T>
T value_or_exit(Result<T> result);

class Rig {
 public:
  explicit Rig(const RigOptions& options);

  StreamDevice& device() { return *device_; }
  Kernels& kernels() { return *kernels_; }  // activations bf16
  BenchOps& ops() { return *ops_; }

  // work(i) for i in [0, repeats), captured in one graph and replayed.
  Timing time(int repeats, const std::function<void(int)>& work);

  // After much work of tensor cores, which takes a card to its power limit: what comes next would be timed at a lower clock (H100: 1410 to
  // 1770 MHz 0.02 s later, 1965 to 1980 after this).
  void rest();

  DeviceBuffer buffer(int64_t bytes, const char* what);
  DeviceBuffer random(int64_t count, uint32_t seed, const char* what);  // bf16
  template <class T>
  DeviceBuffer upload(const std::vector<T>& values, const char* what) {
    DeviceBuffer b = buffer(static_cast<int64_t>(values.size() * sizeof(T)), what);
    device_->copy_to_device(b.data(), values.data(), b.bytes());
    device_->synchronize();
    return b;
  }
  template <class T>
  std::vector<T> download(const T* source, size_t count) {
    std::vector<T> values(count);
    device_->copy_to_host(values.data(), source, static_cast<int64_t>(count * sizeof(T)));
    device_->synchronize();
    return values;
  }

  void measure_memory_ceilings(int64_t bytes);  // over `bytes` of memory, read and copied
  void set_matmul_ceiling(double operations_per_s) { ceilings_.matmul = operations_per_s; }
  const Ceilings& ceilings() const { return ceilings_; }

 private:
  std::unique_ptr<StreamDevice> device_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<BenchOps> ops_;
  int rounds_;
  Ceilings ceilings_;
};

// One measured thing. Figures of 0 are left out.
struct Line {
  std::string part, name;
  Timing time;
  double bytes = 0, operations = 0;  // that it must move, that it must do
  double roof_us = 0;  // 0: bytes over the read ceiling, operations over the product's, whichever is longer
  double error = -1;   // against float64, relative; below 0: not checked
  double max_error = 1e-2;     // bf16 inputs, probabilities and results
  Json more = Json::object();  // further keys
};

// Prints each line as it comes and keeps it; writes a JSON array at the end. A failed check is in good().
class Report {
 public:
  Report(Rig& rig, std::string json_path);
  void add(const Line& line);
  void note(Json line);  // an object without a timing
  bool finish();         // writes the file; false where a check failed

 private:
  Rig& rig_;
  std::string path_;
  Json lines_ = Json::array();
  bool good_ = true;
};

double relative_error(const std::vector<double>& got,
                      const std::vector<double>& wanted);  // |got - wanted| / |wanted|

}  // namespace quire::bench

#include <cstdio>
#include <cstdlib>

template <class T>
T quire::bench::value_or_exit(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "%s\n", result.error().message.c_str());
  std::exit(1);
}
