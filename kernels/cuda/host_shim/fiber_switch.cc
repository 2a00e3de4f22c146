#include "kernels/cuda/host_shim/fiber_switch.h"

#include <cstdint>
#include <cstring>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quire::shim {
namespace {

// A fiber that a fault abandoned leaves its frames' red zones behind.
void forget_frames([[maybe_unused]] char* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);
#endif
}

}  // namespace

#if defined(__x86_64__)

extern "C" void quire_shim_switch_stack(void** from, void* to);
asm(R"(
.text
.globl quire_shim_switch_stack
.hidden quire_shim_switch_stack
.type quire_shim_switch_stack,@function
quire_shim_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size quire_shim_switch_stack,.-quire_shim_switch_stack
)");

void switch_stack(void** from, void* to) {
  quire_shim_switch_stack(from, to);
}

void* prepare_stack(char* stack, size_t bytes, void (*entry)()) {
  forget_frames(stack, bytes);
  // Six zero registers, then the address that `ret` takes; at entry the stack is 8 below a multiple of 16.
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  auto* sp = reinterpret_cast<void**>(top - 8 * sizeof(void*));
  std::memset(sp, 0, 8 * sizeof(void*));
  sp[6] = reinterpret_cast<void*>(entry);
  return sp;
}

#else

// A suspended context lies on its own stack, a new one at the base of its own.
void switch_stack(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void* prepare_stack(char* stack, size_t bytes, void (*entry)()) {
  forget_frames(stack, bytes);
  auto* context = reinterpret_cast<ucontext_t*>(stack);
  getcontext(context);
  context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
  context->uc_stack.ss_size = bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

}  // namespace quire::shim
