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

extern "C" void quire_shim_switch_by(const void* a, void* b, int c, NextContext next);
// A context is the registers that a function must keep, and the address behind them. It is continued by a jump: the
// processor foresees that a return goes to where the last call came from, which is another fiber's call, and 32 lanes
// that stand at one operation and go on to the next one after another would have each of their returns foreseen wrongly.
asm(R"(
.text
.globl quire_shim_switch_by
.hidden quire_shim_switch_by
.type quire_shim_switch_by,@function
quire_shim_switch_by:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rcx, %rax
  movq %rsp, %rcx
  subq $8, %rsp
  call *%rax
  movq %rax, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size quire_shim_switch_by,.-quire_shim_switch_by
)");

void switch_by(const void* a, void* b, int c, NextContext next) {
  quire_shim_switch_by(a, b, c, next);
}

void* prepare_stack(char* stack, size_t bytes, void (*entry)()) {
  forget_frames(stack, bytes);
  // Six zero registers, then the address that is jumped to; at entry the stack is 8 below a multiple of 16.
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  auto* sp = reinterpret_cast<void**>(top - 8 * sizeof(void*));
  std::memset(sp, 0, 8 * sizeof(void*));
  sp[6] = reinterpret_cast<void*>(entry);
  return sp;
}

#else

// A suspended context lies on its own stack, a new one at the base of its own.
void switch_by(const void* a, void* b, int c, NextContext next) {
  ucontext_t here;
  void* to = next(a, b, c, &here);
  if (to != &here) swapcontext(&here, static_cast<ucontext_t*>(to));
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
