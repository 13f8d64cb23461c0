// Naive GEMM that accumulates in double; tests compare the kernels with it.
#ifndef TROUPE_KERNELS_REFERENCE_GEMM_H_
#define TROUPE_KERNELS_REFERENCE_GEMM_H_

#include <cstddef>
#include <vector>

#include "common/dtype.h"
#include "common/stored_matrix.h"
#include "common/views.h"
#include "kernels/packed_matrix.h"

namespace troupe::reference {

// `count` numbers of `dtype`, no alignment needed, as float.
std::vector<float> ToFloats(DataType dtype, const void* numbers, size_t count);

// A stored matrix as numbers [n, k]: exact in double, in float the product of
// scale and integer.
std::vector<double> ToDoubles(const StoredMatrix& matrix);

// The weight of (output, k) in a matrix that is packed; of gate and up,
// `part` 0 is gate and 1 is up. Of quantised weights the product of scale and
// integer, exact.
double PackedWeight(const PackedMatrix& matrix, size_t part, size_t output,
                    size_t k);

// output[r][c] = sum over i of input[r][i] * weights[c][i] + bias[c].
// input [num_rows, k], weights [n, k], bias [n] or null, output [num_rows, n]
void Gemm(ConstFloatMatrix input, ConstFloatMatrix weights, const float* bias,
          FloatMatrix output);

// A group of a row of inputs, quantised as the kernels do it.
struct QuantizedGroup {
  std::vector<int> numbers;  // [group_size]
  float scale;
};
QuantizedGroup QuantizeGroup(const float* row, size_t group_size);

// The arithmetic of the kernels on quantised weights, step by step: inputs
// rounded to int8 by group, exact integer dot products, one chain
// acc = fma(float(dot), weight_scale * input_scale, acc), then + bias. Their
// outputs have these bits.
void QuantizedGemm(ConstFloatMatrix input, const StoredMatrix& weights,
                   const float* bias, FloatMatrix output);

}  // namespace troupe::reference

#endif  // TROUPE_KERNELS_REFERENCE_GEMM_H_
