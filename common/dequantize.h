// A row of a matrix as a checkpoint stores it, as floats. Plain and exact: a
// scale has 11 bits, a number at most 8, so that their product is a float.
#ifndef TROUPE_COMMON_DEQUANTIZE_H_
#define TROUPE_COMMON_DEQUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/stored_matrix.h"

namespace troupe {

// values [matrix.k]
inline void DequantizeRow(const StoredMatrix& matrix, size_t row,
                          float* values) {
  const size_t k = matrix.k;
  const auto* numbers = static_cast<const uint8_t*>(matrix.numbers);
  if (matrix.format == WeightFormat::kF32) {
    std::memcpy(values, numbers + row * k * 4, k * 4);
    return;
  }
  if (!IsQuantized(matrix.format)) {
    for (size_t i = 0; i < k; ++i) {
      uint16_t half;
      std::memcpy(&half, numbers + (row * k + i) * 2, 2);
      values[i] = matrix.format == WeightFormat::kBF16 ? F32FromBF16(half)
                                                       : F32FromF16(half);
    }
    return;
  }
  const size_t first_group = row * matrix.num_groups();
  for (size_t group = 0; group < matrix.num_groups(); ++group) {
    uint16_t half;
    std::memcpy(
        &half,
        static_cast<const uint8_t*>(matrix.scales) + 2 * (first_group + group),
        2);
    const float scale = F32FromF16(half);
    int zero = 8;
    if (matrix.format == WeightFormat::kInt8) zero = 0;
    if (matrix.format == WeightFormat::kInt4Zero) {
      zero = static_cast<const uint8_t*>(matrix.zeros)[first_group + group];
    }
    const size_t begin = group * matrix.group_size;
    for (size_t i = begin; i < begin + matrix.group_size; ++i) {
      int number;
      if (IsInt4(matrix.format)) {
        const int pair = numbers[(row * k + i) / 2];  // k is even
        number = i % 2 == 0 ? pair & 15 : pair >> 4;
      } else {
        number = static_cast<int8_t>(numbers[row * k + i]);
      }
      values[i] = scale * static_cast<float>(number - zero);
    }
  }
}

}  // namespace troupe

#endif  // TROUPE_COMMON_DEQUANTIZE_H_
