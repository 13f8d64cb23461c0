#include "kernels/reference/elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/dequantize.h"

namespace troupe::reference {
namespace {

void RmsNormRow(const float* input, const float* weight, double epsilon,
                size_t size, float* output) {
  double squares = 0;
  for (size_t i = 0; i < size; ++i) {
    squares += static_cast<double>(input[i]) * input[i];
  }
  const double root = std::sqrt(squares / static_cast<double>(size) + epsilon);
  for (size_t i = 0; i < size; ++i) {
    output[i] = static_cast<float>(weight[i] * (input[i] / root));
  }
}

}  // namespace

void RmsNorm(ConstFloatMatrix input, const float* weight, float epsilon,
             FloatMatrix output) {
  for (size_t r = 0; r < input.rows; ++r) {
    RmsNormRow(input.row(r), weight, epsilon, input.cols, output.row(r));
  }
}

void RmsNormPerHead(FloatMatrix heads, size_t num_heads, const float* weight,
                    float epsilon) {
  const size_t head_dim = heads.cols / num_heads;
  for (size_t r = 0; r < heads.rows; ++r) {
    for (size_t h = 0; h < num_heads; ++h) {
      float* head = heads.row(r) + h * head_dim;
      RmsNormRow(head, weight, epsilon, head_dim, head);
    }
  }
}

void ApplyRope(FloatMatrix heads, size_t num_heads,
               std::span<const int32_t> positions, ConstFloatMatrix cosines,
               ConstFloatMatrix sines) {
  const size_t half = cosines.cols;
  for (size_t r = 0; r < heads.rows; ++r) {
    const float* cosine = cosines.row(positions[r]);
    const float* sine = sines.row(positions[r]);
    for (size_t h = 0; h < num_heads; ++h) {
      float* a = heads.row(r) + h * 2 * half;
      float* b = a + half;
      for (size_t i = 0; i < half; ++i) {
        const double x = a[i];
        const double y = b[i];
        a[i] = static_cast<float>(x * cosine[i] - y * sine[i]);
        b[i] = static_cast<float>(y * cosine[i] + x * sine[i]);
      }
    }
  }
}

void Clamp(FloatMatrix values, float limit) {
  for (size_t r = 0; r < values.rows; ++r) {
    for (size_t c = 0; c < values.cols; ++c) {
      float& value = values.row(r)[c];
      if (value > limit) value = limit;
      if (value < -limit) value = -limit;
    }
  }
}

void AddInPlace(FloatMatrix output, ConstFloatMatrix addend) {
  for (size_t r = 0; r < output.rows; ++r) {
    for (size_t c = 0; c < output.cols; ++c) {
      output.row(r)[c] += addend.row(r)[c];
    }
  }
}

void AddSigmoidGated(FloatMatrix output, std::span<const float> gate,
                     ConstFloatMatrix addend) {
  for (size_t r = 0; r < output.rows; ++r) {
    const double factor = 1 / (1 + std::exp(-static_cast<double>(gate[r])));
    for (size_t c = 0; c < output.cols; ++c) {
      float& value = output.row(r)[c];
      value = static_cast<float>(value + factor * addend.row(r)[c]);
    }
  }
}

void SoftmaxRows(FloatMatrix values) {
  for (size_t r = 0; r < values.rows; ++r) {
    float* row = values.row(r);
    const double total = LogSumExp({row, values.cols});
    for (size_t c = 0; c < values.cols; ++c) {
      row[c] = static_cast<float>(std::exp(row[c] - total));
    }
  }
}

double LogSumExp(std::span<const float> row) {
  double max = -std::numeric_limits<double>::infinity();
  for (const float value : row) max = std::max<double>(max, value);
  if (std::isinf(max)) return max;
  double sum = 0;
  for (const float value : row) sum += std::exp(value - max);
  return max + std::log(sum);
}

void CombineExperts(ConstFloatMatrix copies,
                    std::span<const int32_t> copy_of_slot,
                    ConstFloatMatrix topk_weights, FloatMatrix output) {
  const size_t top_k = topk_weights.cols;
  for (size_t t = 0; t < output.rows; ++t) {
    for (size_t c = 0; c < output.cols; ++c) {
      double sum = 0;
      for (size_t i = 0; i < top_k; ++i) {
        const int32_t copy = copy_of_slot[t * top_k + i];
        if (copy < 0) continue;
        sum += static_cast<double>(topk_weights.row(t)[i]) *
               copies.row(static_cast<size_t>(copy))[c];
      }
      float& value = output.row(t)[c];
      value = static_cast<float>(value + sum);
    }
  }
}

void EmbedTokens(std::span<const int32_t> token_ids, const StoredMatrix& table,
                 FloatMatrix output) {
  for (size_t r = 0; r < output.rows; ++r) {
    DequantizeRow(table, static_cast<size_t>(token_ids[r]), output.row(r));
  }
}

}  // namespace troupe::reference
