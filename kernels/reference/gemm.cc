#include "kernels/reference/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

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

namespace {

uint16_t Half(const void* halves, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const uint8_t*>(halves) + 2 * index, 2);
  return bits;
}

// The integer that a quantised weight is times its scale.
int Number(const StoredMatrix& m, size_t output, size_t k) {
  const size_t index = output * m.k + k;
  if (m.format == WeightFormat::kInt8) {
    return static_cast<const int8_t*>(m.numbers)[index];
  }
  const uint8_t both = static_cast<const uint8_t*>(m.numbers)[index / 2];
  const int nibble = index % 2 == 0 ? both & 15 : both >> 4;
  if (m.format == WeightFormat::kInt4) return nibble - 8;
  return nibble - static_cast<const uint8_t*>(
                      m.zeros)[output * m.num_groups() + k / m.group_size];
}

float Scale(const StoredMatrix& m, size_t output, size_t group) {
  return F32FromF16(Half(m.scales, output * m.num_groups() + group));
}

double PackedQuantizedWeight(const PackedMatrix& matrix, const uint8_t* panel,
                             size_t col, size_t k) {
  constexpr size_t kCols = PackedMatrix::kPanelCols;
  const size_t group_size = matrix.group_size();
  const uint8_t* group = panel + k / group_size * matrix.step_bytes();
  const size_t i = k % group_size;
  const bool is_int4 = IsInt4(matrix.format());
  const uint8_t* scales = group + group_size * kCols / (is_int4 ? 2 : 1);
  const double scale = F32FromF16(Half(scales, col));
  if (!is_int4) {
    return scale *
           static_cast<int8_t>(group[(i / 4 * kCols + col) * 4 + i % 4]);
  }
  const uint8_t both = group[(i / 8 * kCols + col) * 4 + i % 4];
  const int number = i % 8 < 4 ? both & 15 : both >> 4;
  const int zero =
      matrix.format() == WeightFormat::kInt4 ? 8 : scales[2 * kCols + col];
  return scale * (number - zero);
}

}  // namespace

std::vector<double> ToDoubles(const StoredMatrix& m) {
  if (!IsQuantized(m.format)) {
    const std::vector<float> floats =
        ToFloats(static_cast<DataType>(m.format), m.numbers, m.n * m.k);
    return {floats.begin(), floats.end()};
  }
  std::vector<double> numbers(m.n * m.k);
  for (size_t output = 0; output < m.n; ++output) {
    for (size_t k = 0; k < m.k; ++k) {
      numbers[output * m.k + k] =
          static_cast<double>(Scale(m, output, k / m.group_size)) *
          Number(m, output, k);
    }
  }
  return numbers;
}

double PackedWeight(const PackedMatrix& matrix, size_t part, size_t output,
                    size_t k) {
  constexpr size_t kCols = PackedMatrix::kPanelCols;
  const size_t pair = output / kCols;
  const size_t panel = matrix.is_gate_up() ? 2 * pair + part : pair;
  size_t position = output % kCols;
  if (IsQuantized(matrix.format())) {
    return PackedQuantizedWeight(matrix, matrix.panel(panel), position, k);
  }
  const DataType dtype = static_cast<DataType>(matrix.format());
  if (dtype == DataType::kBF16) {
    position = position % (kCols / 2) * 2 + position / (kCols / 2);
  }
  return ToFloat(dtype,
                 matrix.panel(panel) + (k * kCols + position) * SizeOf(dtype));
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

QuantizedGroup QuantizeGroup(const float* row, size_t group_size) {
  QuantizedGroup group = {std::vector<int>(group_size, 0), 0.0f};
  float max = 0.0f;
  for (size_t i = 0; i < group_size; ++i) {
    if (!std::isfinite(row[i])) {
      group.scale = std::numeric_limits<float>::quiet_NaN();
      return group;
    }
    max = std::max(max, std::abs(row[i]));
  }
  if (max < 0x1p-100f) return group;  // its reciprocal may overflow
  group.scale = max / 127.0f;
  const float factor = 127.0f / max;
  for (size_t i = 0; i < group_size; ++i) {
    group.numbers[i] = static_cast<int>(std::nearbyint(row[i] * factor));
  }
  return group;
}

void QuantizedGemm(ConstFloatMatrix input, const StoredMatrix& weights,
                   const float* bias, FloatMatrix output) {
  const size_t group_size = weights.group_size;
  for (size_t r = 0; r < input.rows; ++r) {
    std::vector<QuantizedGroup> groups;
    for (size_t g = 0; g < weights.num_groups(); ++g) {
      groups.push_back(
          QuantizeGroup(input.row(r) + g * group_size, group_size));
    }
    for (size_t c = 0; c < weights.n; ++c) {
      float acc = 0.0f;
      for (size_t g = 0; g < weights.num_groups(); ++g) {
        int dot = 0;
        for (size_t i = 0; i < group_size; ++i) {
          dot += groups[g].numbers[i] * Number(weights, c, g * group_size + i);
        }
        acc = std::fma(static_cast<float>(dot),
                       Scale(weights, c, g) * groups[g].scale, acc);
      }
      output.row(r)[c] = bias == nullptr ? acc : acc + bias[c];
    }
  }
}

}  // namespace troupe::reference
