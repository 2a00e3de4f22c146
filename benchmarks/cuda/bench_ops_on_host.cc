// The same for the host shim: a source's language is a property of its file.
#include "benchmarks/cuda/bench_ops.cu"
