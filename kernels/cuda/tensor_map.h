// Maps for tensor copies (wgmma.h): rows of 16-bit elements in device memory, fetched in boxes of 64 columns, swizzled
// by 128 bytes. Host code; the driver's encoder is found at run time, since nothing links libcuda.
#pragma once

#include <cuda.h>

#include "kernels/cuda/portable.h"
#include "src/base/check.h"
#include "src/base/dtype.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kMapColumns = 64;  // of a box: the 128 bytes of the swizzle

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

inline EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* p = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &found));
    check(found == cudaDriverEntryPointSuccess && p != nullptr, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(p);
  }();
  return function;
}

struct MapOfRows {
  const void* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;  // elements; what a box reaches beyond them are zeros
  int box_rows = 0;                           // at most 256

  CUtensorMap encode(DType dtype) const {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                     strides[1] = {static_cast<cuuint64_t>(stride) * 2};
    const cuuint32_t box[2] = {kMapColumns, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
    CUtensorMap map;
    const CUresult result = encode_tiled()(
        &map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
        const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refused a map of rows");
    return map;
  }
};

}  // namespace quire::QUIRE_SIDE
