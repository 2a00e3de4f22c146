// The part of cuBLASLt that quire uses, stated here so that no header or wheel of it is needed to build, and
// found at run time with dlopen. Names, types and values are those of the cuBLASLt API, version 13.1
// (unchanged since 11.0 but for additions); the library is asked for its version when it is opened.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

#include "quire/result.h"

namespace quire::cublaslt {

using Handle = void*;      // cublasLtHandle_t
using Desc = void*;        // cublasLtMatmulDesc_t
using Layout = void*;      // cublasLtMatrixLayout_t
using Preference = void*;  // cublasLtMatmulPreference_t
using StatusCode = int;    // cublasStatus_t; 0 = success

struct Algo {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algo algo;
  size_t workspace_bytes;
  StatusCode state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

inline constexpr int kCompute32F = 68;               // CUBLAS_COMPUTE_32F
inline constexpr int kOpTranspose = 1;               // CUBLAS_OP_T
inline constexpr int kDescTransA = 3;                // CUBLASLT_MATMUL_DESC_TRANSA, int32
inline constexpr int kPreferenceMaxWorkspace = 1;    // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64
inline constexpr int kPreferenceReductions = 3;      // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32
inline constexpr uint32_t kReduceInComputeType = 2;  // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE

struct Api {
  size_t (*get_version)();
  StatusCode (*create)(Handle*);
  StatusCode (*destroy)(Handle);
  StatusCode (*desc_create)(Desc*, int compute, cudaDataType_t scale);
  StatusCode (*desc_destroy)(Desc);
  StatusCode (*desc_set)(Desc, int attribute, const void* value, size_t bytes);
  StatusCode (*layout_create)(Layout*, cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t leading);
  StatusCode (*layout_destroy)(Layout);
  StatusCode (*preference_create)(Preference*);
  StatusCode (*preference_destroy)(Preference);
  StatusCode (*preference_set)(Preference, int attribute, const void* value, size_t bytes);
  StatusCode (*get_heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                              Heuristic* results, int* found);
  StatusCode (*algo_check)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, const Algo*,
                           Heuristic* result);
  StatusCode (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout,
                       const void* beta, const void* c, Layout, void* d, Layout, const Algo*, void* workspace,
                       size_t workspace_bytes, cudaStream_t);
};

// Looks beside the program (../lib, .), in /usr/local/cuda/lib64, then where the loader looks. Stays open
// until the end.
Result<Api> load();

}  // namespace quire::cublaslt
