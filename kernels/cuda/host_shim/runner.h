// Runs a kernel function on the host: the threads of a block are fibers of one OS thread, blocks run one
// after another.
//
// What holds: a warp operation is executed once, for all 32 lanes, by the lane that arrives last; a barrier
// opens when every thread of the block stands at it. Lanes of a warp run in order until each blocks; then the
// next warp runs. A fault (out of bounds, race, divergence...) ends the launch with ShimFault; the block's
// fibers are abandoned. One Runner per OS thread, made on first use; launches never nest.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace quire::shim {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3() = default;
  constexpr Dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

struct ShimFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ShimOptions {
  bool checking =
      false;  // shadow memory, bounds, asynchronous copies that land at their wait, launch dependencies
  uint64_t order_seed = 0;  // 0: blocks and warps in order; else a random order of both, from this seed
};
// For the calling thread, from its next launch on.
void set_shim_options(const ShimOptions& options);
const ShimOptions& shim_options();
// For threads that have launched nothing yet and set none of their own: an engine's, which a test cannot reach.
void set_default_shim_options(const ShimOptions& options);

// A stream of the host side. While `recording`, launches are kept there instead of run: that is a captured
// graph.
struct HostStream {
  std::vector<std::function<void()>>* recording = nullptr;
};
void run_or_record(void* stream, std::function<void()> work);

// ---- what kernels reach through host_side.h ----
struct WarpOp {
  const char* name;
  void (*execute)(void* const* args);  // args[lane], 32 of them
};

struct AsyncCopy {
  const void* source;  // null: zeros
  uint32_t target;     // offset in shared memory
  uint32_t bytes;
};

constexpr uint32_t kLanes = 32;
struct Fiber;

struct Warp {
  uint32_t exists = 0, ready = 0, at_op = 0, at_barrier = 0, done = 0;  // lane masks
  int line = 0;  // of the operation that lanes stand at
  const WarpOp* op = nullptr;
  Fiber* fibers = nullptr;  // of its lanes
  void* args[kLanes] = {};
  uint32_t words[kLanes] = {}, sources[kLanes] = {}, shuffled[kLanes] = {};  // of a shuffle of 32-bit words
};

struct Fiber {
  void* stack_pointer = nullptr;
  Warp* warp = nullptr;
  uint32_t thread = 0;  // linear index in the block
  Dim3 index{0, 0, 0};
  int stack = -1;
  const char* waits_at = nullptr;  // name of the barrier
  int line = 0;                    // of it
  bool waited_for_previous_kernel = false;
  std::vector<AsyncCopy> open_group;                 // not yet committed
  std::vector<std::vector<AsyncCopy>> async_groups;  // committed, oldest first
};

struct LaunchShape {
  Dim3 grid, block;
  int shared_bytes = 0;
  bool dependent = false;
  const char* name = "";
};

// The state that every access touches, flat and thread-local.
struct Hot {
  Fiber* fiber = nullptr;
  void* scheduler = nullptr;  // stack pointer of what runs the block
  char* shared = nullptr;
  uint32_t shared_bytes = 0;
  bool checking = false;
};
extern thread_local constinit Hot hot;
extern thread_local constinit Dim3 threadIdx, blockIdx, blockDim, gridDim;  // CUDA's names, for kernels

void run_grid(const LaunchShape& shape, const std::function<void()>& thread_body);

void warp_operation(const WarpOp& op, void* args, int line);
// The same for a shuffle of 32-bit words, which kernels do most: words and sources lie in the warp, and so do the words
// that come of it.
void wait_for_shuffle(const WarpOp& op, int line);
void block_barrier(const char* name, int line);
// The barrier with a vote: all threads give a value; all get whether any was true.
bool block_barrier_or(bool value, int line);
void begin_async_copy(const AsyncCopy& copy);
void commit_async_copies();
void wait_async_copies(int newest_left);
void mark_waited_for_previous_kernel();
void mark_next_kernel_may_start();
[[noreturn]] void fault(std::string what);
// "block (3,0,0) thread 17": where the running thread stands.
std::string place();

}  // namespace quire::shim
