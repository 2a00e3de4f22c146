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

struct MapShape {
  const void* data = nullptr;
  int rank = 0;
  cuuint64_t sizes[4] = {}, strides[3] = {};  // innermost first; strides in bytes, of all dimensions but that
  cuuint32_t box[4] = {};

  CUtensorMap encode(DType dtype) const {
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    CUtensorMap map;
    const CUresult result = encode_tiled()(
        &map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refused a map");
    return map;
  }
};

struct MapOfRows {
  const void* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;  // elements; what a box reaches beyond them are zeros
  int box_rows = 0;                           // at most 256

  CUtensorMap encode(DType dtype) const {
    return MapShape{.data = data,
                    .rank = 2,
                    .sizes = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                    .strides = {static_cast<cuuint64_t>(stride) * 2},
                    .box = {kMapColumns, static_cast<cuuint32_t>(box_rows)}}
        .encode(dtype);
  }
};

// Rows of `columns` elements without gaps, by eights. A box is whole rows, and lands as [row / 8][column / 64][row % 8][64
// columns]: its bytes lie in one piece whatever `columns` is, where a box of MapOfRows holds 64 columns.
struct MapOfEights {
  const void* data = nullptr;
  int64_t eights = 0, columns = 0;
  int box_rows = 0;

  CUtensorMap encode(DType dtype) const {
    const auto row_bytes = static_cast<cuuint64_t>(columns) * 2,
               panels = static_cast<cuuint64_t>(columns) / kMapColumns;
    return MapShape{
        .data = data,
        .rank = 4,
        .sizes = {kMapColumns, 8, panels, static_cast<cuuint64_t>(eights)},
        .strides = {row_bytes, kMapColumns * 2, 8 * row_bytes},
        .box = {kMapColumns, 8, static_cast<cuuint32_t>(panels), static_cast<cuuint32_t>(box_rows / 8)}}
        .encode(dtype);
  }
};

}  // namespace quire::QUIRE_SIDE
