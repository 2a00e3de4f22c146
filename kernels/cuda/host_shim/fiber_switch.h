// Switching between stacks of one OS thread: callee-saved registers and the stack pointer, nothing else.
// x86-64 by hand (about 2 ns); elsewhere ucontext.
#pragma once

#include <cstddef>

namespace quire::shim {

// A stack that will run entry() on the first switch to it; entry never returns. The result is its stack
// pointer.
void* prepare_stack(char* stack, size_t bytes, void (*entry)());
// Saves the running context to *from and continues `to`.
void switch_stack(void** from, void* to);

}  // namespace quire::shim
