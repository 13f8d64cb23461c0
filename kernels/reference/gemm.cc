#include "kernels/reference/gemm.h"

#include <cstdint>
#include <cstring>

namespace troupe::reference {
namespace {

float ToFloat(DataType dtype, const uint8_t* number) {
  if (dtype == DataType::kF32) {
    float value;
    std::memcpy(&value, number, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, number, sizeof(bits));
  return dtype == DataType::kBF16 ? F32FromBF16(bits) : F32FromF16(bits);
}

}  // namespace

std::vector<float> ToFloats(DataType dtype, const void* numbers, size_t count) {
  const uint8_t* bytes = static_cast<const uint8_t*>(numbers);
  std::vector<float> floats(count);
  for (size_t i = 0; i < count; ++i) {
    floats[i] = ToFloat(dtype, bytes + i * SizeOf(dtype));
  }
  return floats;
}

float PackedWeight(const PackedMatrix& matrix, size_t part, size_t output,
                   size_t k) {
  constexpr size_t kCols = PackedMatrix::kPanelCols;
  const size_t pair = output / kCols;
  const size_t panel = matrix.is_gate_up() ? 2 * pair + part : pair;
  size_t position = output % kCols;
  if (matrix.dtype() == DataType::kBF16) {
    position = position % (kCols / 2) * 2 + position / (kCols / 2);
  }
  return ToFloat(
      matrix.dtype(),
      matrix.panel(panel) + (k * kCols + position) * SizeOf(matrix.dtype()));
}

void Gemm(ConstFloatMatrix input, ConstFloatMatrix weights, const float* bias,
          FloatMatrix output) {
  for (size_t r = 0; r < input.rows; ++r) {
    for (size_t c = 0; c < weights.rows; ++c) {
      double sum = 0;
      for (size_t i = 0; i < input.cols; ++i) {
        sum += static_cast<double>(input.row(r)[i]) * weights.row(c)[i];
      }
      if (bias != nullptr) sum += bias[c];
      output.row(r)[c] = static_cast<float>(sum);
    }
  }
}

}  // namespace troupe::reference
