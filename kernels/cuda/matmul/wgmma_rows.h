// wgmma with both operands in shared memory, k along their rows (wgmma.h): 64 rows of a times 8 to 224 rows of b, at most 112
// accumulators a thread. Macros list them.
#pragma once

#include "kernels/cuda/wgmma.h"

namespace quire::QUIRE_SIDE {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// d (+)= A (64 x 16) x B (16 x 8 * kUnits); d[n][0..3]: columns 8n of this thread, as in mma_16816.
template <class T, int kUnits>
__device__ void wgmma_rows(float (&d)[kUnits][4], uint64_t a, uint64_t b, int accumulate);

#define QUIRE_SUMS1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define QUIRE_SUMS2(n) QUIRE_SUMS1(n), QUIRE_SUMS1(n + 1)
#define QUIRE_SUMS4(n) QUIRE_SUMS2(n), QUIRE_SUMS2(n + 2)
#define QUIRE_SUMS8(n) QUIRE_SUMS4(n), QUIRE_SUMS4(n + 4)
#define QUIRE_SUMS16(n) QUIRE_SUMS8(n), QUIRE_SUMS8(n + 8)
#define QUIRE_NAMES1 "%0, %1, %2, %3"
#define QUIRE_NAMES2 QUIRE_NAMES1 ", %4, %5, %6, %7"
#define QUIRE_NAMES4 QUIRE_NAMES2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define QUIRE_NAMES8 \
  QUIRE_NAMES4 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_NAMES12 \
  QUIRE_NAMES8 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define QUIRE_NAMES16 \
  QUIRE_NAMES12 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QUIRE_NAMES24                                                                \
  QUIRE_NAMES16                                                                      \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define QUIRE_NAMES28                                                                \
  QUIRE_NAMES24                                                                      \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109" \
  ", %110, %111"

// a, b and accumulate are the operands behind the accumulators.
#define QUIRE_WGMMA(T, type, units, columns, a_name, b_name, accumulate_name, ...)                           \
  template <>                                                                                                \
  __device__ inline void wgmma_rows<T, units>(float(&d)[units][4], uint64_t a, uint64_t b, int accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate_name                                         \
                 ", 0;\n"                                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type                        \
                 " {" QUIRE_NAMES##units "}, " a_name ", " b_name ", p, 1, 1, 0, 0;\n}\n"                    \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"(accumulate));                                                         \
  }
#define QUIRE_WGMMAS(T, type)                                                            \
  QUIRE_WGMMA(T, type, 1, "8", "%4", "%5", "%6", QUIRE_SUMS1(0))                         \
  QUIRE_WGMMA(T, type, 2, "16", "%8", "%9", "%10", QUIRE_SUMS2(0))                       \
  QUIRE_WGMMA(T, type, 4, "32", "%16", "%17", "%18", QUIRE_SUMS4(0))                     \
  QUIRE_WGMMA(T, type, 8, "64", "%32", "%33", "%34", QUIRE_SUMS8(0))                     \
  QUIRE_WGMMA(T, type, 16, "128", "%64", "%65", "%66", QUIRE_SUMS16(0))                  \
  QUIRE_WGMMA(T, type, 24, "192", "%96", "%97", "%98", QUIRE_SUMS16(0), QUIRE_SUMS8(16)) \
  QUIRE_WGMMA(T, type, 28, "224", "%112", "%113", "%114", QUIRE_SUMS16(0), QUIRE_SUMS8(16), QUIRE_SUMS4(24))
QUIRE_WGMMAS(bf16, "bf16")
QUIRE_WGMMAS(f16, "f16")

#undef QUIRE_SUMS1
#undef QUIRE_SUMS2
#undef QUIRE_SUMS4
#undef QUIRE_SUMS8
#undef QUIRE_SUMS16
#undef QUIRE_NAMES1
#undef QUIRE_NAMES2
#undef QUIRE_NAMES4
#undef QUIRE_NAMES8
#undef QUIRE_NAMES12
#undef QUIRE_NAMES16
#undef QUIRE_NAMES24
#undef QUIRE_NAMES28
#undef QUIRE_WGMMA
#undef QUIRE_WGMMAS

#endif  // sm_90a

}  // namespace quire::QUIRE_SIDE
