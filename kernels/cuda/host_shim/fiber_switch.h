// Switching between stacks of one OS thread: callee-saved registers and the stack pointer, nothing else.
// x86-64 by hand; elsewhere ucontext.
#pragma once

#include <cstddef>

namespace quire::shim {

// A stack that will run entry() on the first switch to it; entry never returns. The result is its stack
// pointer.
void* prepare_stack(char* stack, size_t bytes, void (*entry)());
// Saves the running context, asks `next` which to continue, and continues that one: another, or the same.
using NextContext = void* (*)(const void* a, void* b, int c, void* context);
void switch_by(const void* a, void* b, int c, NextContext next);

}  // namespace quire::shim
