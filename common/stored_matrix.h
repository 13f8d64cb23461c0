// A weight matrix as a checkpoint stores it.
#ifndef TROUPE_COMMON_STORED_MATRIX_H_
#define TROUPE_COMMON_STORED_MATRIX_H_

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace troupe {

// How the numbers of a matrix are stored. The quantised formats cut each
// output's inputs into groups of group_size; a number q of a group stands for
//   kInt8      scale * q              q in [-127, 127]
//   kInt4      scale * (q - 8)        q in [0, 15]
//   kInt4Zero  scale * (q - zero)     q and zero in [0, 15]
enum class WeightFormat : uint8_t {
  kF32 = 0,
  kBF16 = 1,
  kF16 = 2,
  kInt8 = 3,
  kInt4 = 4,
  kInt4Zero = 5,
};

inline constexpr WeightFormat FormatOf(DataType dtype) {
  return dtype == DataType::kF32    ? WeightFormat::kF32
         : dtype == DataType::kBF16 ? WeightFormat::kBF16
                                    : WeightFormat::kF16;
}

inline constexpr bool IsQuantized(WeightFormat format) {
  return format >= WeightFormat::kInt8;
}

inline constexpr bool IsInt4(WeightFormat format) {
  return format >= WeightFormat::kInt4;
}

// "float32", "bfloat16", "float16", "int8", "int4", "int4-zero".
inline constexpr const char* Name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "float32";
    case WeightFormat::kBF16:
      return "bfloat16";
    case WeightFormat::kF16:
      return "float16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kInt4Zero:
      return "int4-zero";
  }
  return "?";
}

// A view on a matrix [n, k], row-major: n outputs, k inputs. No alignment is
// needed. Memory belongs to somebody else.
struct StoredMatrix {
  WeightFormat format = WeightFormat::kF32;
  size_t n = 0;
  size_t k = 0;
  // 32 or 64, a divisor of k; 0 where the format is not quantised.
  size_t group_size = 0;
  // Floats: [n, k] of the format. kInt8: int8_t [n, k]. int4: [n, k / 2] bytes,
  // input 2i in the lower, 2i + 1 in the upper half of byte i.
  const void* numbers = nullptr;
  // float16 [n, k / group_size], finite, not negative; null for floats.
  const void* scales = nullptr;
  // uint8_t [n, k / group_size], each in [0, 15]; kInt4Zero only.
  const void* zeros = nullptr;

  size_t num_groups() const { return group_size == 0 ? 0 : k / group_size; }
};

}  // namespace troupe

#endif  // TROUPE_COMMON_STORED_MATRIX_H_
