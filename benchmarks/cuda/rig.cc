#include "benchmarks/cuda/rig.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <thread>

#include "kernels/cuda/host_device.h"

namespace quire::bench {
namespace {

std::unique_ptr<StreamDevice> open_device(const std::string& name) {
  if (name == "cuda-host") return open_cuda_host_device();
  if (name != "cuda") value_or_exit<int>(invalid("--device is `" + name + "`; it must be cuda or cuda-host"));
  return value_or_exit(open_cuda_device());
}

std::unique_ptr<BenchOps> make_ops(StreamDevice& device) {
#ifdef QUIRE_BENCH_CARD
  if (device.facts().kind == DeviceKind::kCuda) return cuda::make_bench_ops(device);
#endif
  return cuda_host::make_bench_ops(device);
}

std::string rate_of(const Line& line) {
  if (line.operations > 0) return fmt::format("{:8.1f} TFLOP/s", line.operations / line.time.us * 1e-6);
  if (line.bytes > 0) return fmt::format("{:8.1f} GB/s   ", line.bytes / line.time.us * 1e-3);
  return std::string(16, ' ');
}

double roof_of(const Line& line, const Ceilings& c) {
  if (line.roof_us > 0) return line.roof_us;
  const double by_memory = c.read > 0 ? line.bytes / c.read : 0;
  const double by_products = c.matmul > 0 ? line.operations / c.matmul : 0;
  return std::max(by_memory, by_products) * 1e6;
}

}  // namespace

Rig::Rig(const RigOptions& options)
    : device_(open_device(options.device)),
      kernels_(value_or_exit(make_cuda_kernels(*device_, {.activations = DType::kBF16}))),
      ops_(make_ops(*device_)),
      rounds_(options.rounds) {}

Timing Rig::time(int repeats, const std::function<void(int)>& work) {
  work(0);  // what is made at first use (plans of a library) must not be captured
  device_->synchronize();
  device_->begin_capture();
  for (int i = 0; i < repeats; ++i) work(i);
  const std::unique_ptr<CapturedGraph> graph = device_->end_capture();
  const std::unique_ptr<StreamEvent> begin = device_->make_event(), end = device_->make_event();
  constexpr int kWarmUp = 3;
  Timing t;
  for (int i = 0; i < rounds_ + kWarmUp; ++i) {
    begin->record();
    device_->run(*graph);
    end->record();
    end->wait();
    if (i >= kWarmUp) t.rounds_us.push_back(end->ms_since(*begin) * 1e3 / repeats);
  }
  std::vector<double> sorted = t.rounds_us;
  std::sort(sorted.begin(), sorted.end());
  t.us = sorted[sorted.size() / 2];
  t.least_us = sorted.front();
  t.most_us = sorted.back();
  return t;
}

void Rig::rest() {
  device_->synchronize();
  if (device_->facts().kind != DeviceKind::kCuda) return;
  constexpr std::chrono::milliseconds kRest(500);
  std::this_thread::sleep_for(kRest);
}

DeviceBuffer Rig::buffer(int64_t bytes, const char* what) {
  return value_or_exit(device_->allocate(bytes, what));
}

DeviceBuffer Rig::random(int64_t count, uint32_t seed, const char* what) {
  DeviceBuffer b = buffer(count * 2, what);
  ops_->fill_random(b.data(), count, seed);
  return b;
}

void Rig::measure_memory_ceilings(int64_t bytes) {
  const DeviceBuffer a = random(bytes / 2, 1, "memory to read"),
                     b = random(bytes / 2, 2, "memory to copy to");
  const auto rate = [&](double moved, const std::function<void(int)>& work) {
    return moved / time(1, work).us * 1e6;
  };
  ceilings_.read = rate(static_cast<double>(bytes), [&](int) { ops_->read_all(a.data(), bytes); });
  ceilings_.copy =
      rate(2.0 * static_cast<double>(bytes), [&](int) { ops_->copy_all(b.data(), a.data(), bytes); });
}

Report::Report(Rig& rig, std::string json_path) : rig_(rig), path_(std::move(json_path)) {
  const DeviceFacts& f = rig.device().facts();
  const Ceilings& c = rig.ceilings();
  note({{"part", "card"},
        {"name", f.name},
        {"driver", f.driver},
        {"multiprocessors", f.multiprocessors},
        {"compute_capability", f.compute_capability},
        {"read_gb_per_s", c.read * 1e-9},
        {"copy_gb_per_s", c.copy * 1e-9}});
  fmt::print("{}, {} multiprocessors, driver {}; read {:.1f} GB/s, copy {:.1f} GB/s\n", f.name,
             f.multiprocessors, f.driver, c.read * 1e-9, c.copy * 1e-9);
  fmt::print("{:<11}{:<34}{:>10} {:<21}{:>16} {:>6}  error\n", "part", "what", "us", " (least-most)", "rate",
             "share");
}

void Report::add(const Line& line) {
  const double roof_us = roof_of(line, rig_.ceilings());
  const bool wrong = !(line.error < 0) && !(line.error < line.max_error);  // NaN is wrong too
  good_ = good_ && !wrong;
  fmt::print("{:<11}{:<34}{:>10.2f} {:<21}{} {:>6}  {}{}\n", line.part, line.name, line.time.us,
             fmt::format(" ({:.2f}-{:.2f})", line.time.least_us, line.time.most_us), rate_of(line),
             roof_us > 0 ? fmt::format("{:.3f}", roof_us / line.time.us) : "",
             line.error < 0 ? "-" : fmt::format("{:.1e}", line.error), wrong ? "  WRONG" : "");
  std::fflush(stdout);
  Json j{{"part", line.part}, {"name", line.name}, {"us", line.time.us}, {"rounds_us", line.time.rounds_us}};
  if (line.bytes > 0) j["bytes"] = line.bytes;
  if (line.operations > 0) j["operations"] = line.operations;
  if (roof_us > 0) j["roof_us"] = roof_us;
  if (line.error >= 0) j["error"] = line.error;  // JSON has no NaN
  if (wrong) j["wrong"] = true;
  j.update(line.more);
  lines_.push_back(std::move(j));
}

void Report::note(Json line) {
  lines_.push_back(std::move(line));
}

bool Report::finish() {
  const Ceilings& c = rig_.ceilings();
  if (c.matmul > 0) lines_.front()["matmul_tflops"] = c.matmul * 1e-12;
  if (!path_.empty()) {
    std::ofstream file(path_);
    file << lines_.dump(1) << "\n";
    if (!file.flush()) {
      fmt::print(stderr, "{}: cannot be written\n", path_);
      good_ = false;
    }
  }
  fmt::print("{}\n", good_ ? "all checks passed" : "A CHECK FAILED");
  return good_;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& wanted) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace quire::bench
