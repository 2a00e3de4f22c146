// The ops' inner loops without any instruction set beyond the compiler's baseline.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/element.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/simd_plain.h"
#include "kernels/cpu/tile_table.h"

namespace quire::cpu {
const OpTable& plain_ops() {
  static constexpr OpTable kTable = make_table<PlainVec>();
  return kTable;
}

}  // namespace quire::cpu
