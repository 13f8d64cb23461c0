// Rounds rows of floats to the quantised formats of common/stored_matrix.h.
//
// int8: the largest magnitude of a group becomes 127. int4: the scale (and zero
// point) with the least sum of squared errors among a fixed list of candidates,
// which holds the one that clips nothing. The result depends on the values
// alone: no randomness, and one order of summation.
#ifndef TROUPE_MODEL_QUANTIZER_H_
#define TROUPE_MODEL_QUANTIZER_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/stored_matrix.h"

namespace troupe {

// Bytes of a row of k numbers in a quantised format.
inline size_t NumberBytes(WeightFormat format, size_t k) {
  return IsInt4(format) ? k / 2 : k;
}

// values [k], k a multiple of group_size (32 or 64); numbers
// [NumberBytes(format, k)], scales and zeros [k / group_size], zeros of
// kInt4Zero only. InvalidArgument that names the column when a value is NaN or
// infinite, or so large (above about 450,000 for int4, 8.3 million for int8)
// that its scale is no float16.
absl::Status QuantizeRow(const float* values, size_t k, WeightFormat format,
                         size_t group_size, uint8_t* numbers, uint16_t* scales,
                         uint8_t* zeros);

}  // namespace troupe

#endif  // TROUPE_MODEL_QUANTIZER_H_
