#include "model/quantizer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/dtype.h"

namespace troupe {
namespace {

constexpr size_t kMaxGroup = 64;
constexpr size_t kPartialSums = 8;
constexpr float kLargestScale = 65504.0f;  // of float16
// Candidates for the scale of an int4 group: the one that clips nothing times
// 1 - i / kSearchDivisor. Clipping the largest values of a normal distribution
// of 32 pays down to about 0.8.
constexpr int kSearchSteps = 16;
constexpr float kSearchDivisor = 40.0f;
constexpr int kRefinements = 2;

// Nearest integer, ties to even, of |x| < 2^22; unlike std::nearbyint it is
// vectorised without SSE 4.1. Larger x stay beyond every clamp below.
inline float Round(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

inline float Clamp(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// What a scale and a zero point make of a group.
struct Candidate {
  uint16_t scale = 0;  // float16
  float zero = 0;      // integer
  float error = 0;     // sum of squares
};

// Numbers 0 to 15 less `zero`, that is from -zero to 15 - zero.
struct Int4Group {
  const float* values;
  size_t size;
  float num[kMaxGroup];  // of the last call

  float Error(uint16_t half, float zero) {
    const float scale = F32FromF16(half);
    const float inverse = 1.0f / scale;
    float sums[kPartialSums] = {};
    for (size_t i = 0; i < size; i += kPartialSums) {
      for (size_t j = 0; j < kPartialSums; ++j) {
        // Clamped before rounding, which needs small numbers.
        const float q =
            Round(Clamp(values[i + j] * inverse, -zero, 15.0f - zero));
        num[i + j] = q;
        const float difference = values[i + j] - scale * q;
        sums[j] += difference * difference;
      }
    }
    float sum = 0;
    for (const float partial : sums) sum += partial;
    return sum;
  }

  void Try(uint16_t half, float zero, Candidate& best) {
    if (half == 0) return;
    const float error = Error(half, zero);
    if (error < best.error) best = {half, zero, error};
  }

  // The scale of the least squares for the numbers as they are rounded now.
  void Refine(Candidate& best) {
    for (int step = 0; step < kRefinements; ++step) {
      Error(best.scale, best.zero);
      double product = 0;
      double square = 0;
      for (size_t i = 0; i < size; ++i) {
        product += static_cast<double>(values[i]) * num[i];
        square += static_cast<double>(num[i]) * num[i];
      }
      if (!(product > 0)) return;
      const double scale = product / square;
      if (scale > kLargestScale) return;
      const uint16_t half = F16FromF32(static_cast<float>(scale));
      if (half == best.scale) return;
      Try(half, best.zero, best);
    }
  }
};

// The float16 nearest to `scale`, or the next above it when that one is so far
// below (subnormals are) that the largest number would not round to `limit`.
uint16_t ScaleFor(float scale, float limit) {
  uint16_t half = F16FromF32(scale);
  if (F32FromF16(half) * (limit + 0.5f) < scale * limit) ++half;
  return half;
}

absl::Status TooLarge(float value) {
  return absl::InvalidArgumentError(
      absl::StrCat("is ", value, ", whose scale is beyond float16"));
}

absl::Status QuantizeInt8(const float* values, size_t size, uint8_t* numbers,
                          uint16_t* scale) {
  float largest = 0;
  for (size_t i = 0; i < size; ++i) {
    largest = std::max(largest, std::abs(values[i]));
  }
  if (largest / 127.0f > kLargestScale) return TooLarge(largest);
  *scale = ScaleFor(largest / 127.0f, 127.0f);
  const float step = F32FromF16(*scale);
  const float inverse = *scale == 0 ? 0.0f : 1.0f / step;
  for (size_t i = 0; i < size; ++i) {
    const float q = Round(Clamp(values[i] * inverse, -127.0f, 127.0f));
    numbers[i] = static_cast<uint8_t>(static_cast<int8_t>(q));
  }
  return absl::OkStatus();
}

absl::Status QuantizeInt4(const float* values, size_t size, bool with_zero,
                          uint8_t* numbers, uint16_t* scale, uint8_t* zero) {
  float low = 0;
  float high = 0;
  for (size_t i = 0; i < size; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  // The scale that clips nothing, and how far up its numbers go.
  float widest = std::max(-low / 8.0f, high / 7.0f);
  float limit = high / 7.0f >= -low / 8.0f ? 7.0f : 8.0f;
  float middle = 8.0f;
  if (with_zero) {
    widest = (high - low) / 15.0f;
    limit = 15.0f;
    middle = widest > 0 ? Clamp(Round(-low / widest), 0.0f, 15.0f) : 0.0f;
  }
  if (!(widest <= kLargestScale)) return TooLarge(std::max(-low, high));

  Int4Group group;
  group.values = values;
  group.size = size;
  Candidate best;
  best.zero = middle;
  best.scale = ScaleFor(widest, limit);
  if (best.scale > 0) {
    best.error = group.Error(best.scale, middle);
    for (int i = 1; i < kSearchSteps; ++i) {
      const float factor = 1.0f - static_cast<float>(i) / kSearchDivisor;
      group.Try(F16FromF32(widest * factor), middle, best);
    }
    if (with_zero) {
      if (middle > 0) group.Try(best.scale, middle - 1, best);
      if (middle < 15) group.Try(best.scale, middle + 1, best);
    }
    group.Refine(best);
    group.Error(best.scale, best.zero);
  } else {
    std::fill_n(group.num, size, 0.0f);
  }
  *scale = best.scale;
  if (with_zero) *zero = static_cast<uint8_t>(best.zero);
  for (size_t i = 0; i < size; i += 2) {
    const int a = static_cast<int>(group.num[i] + best.zero);
    const int b = static_cast<int>(group.num[i + 1] + best.zero);
    numbers[i / 2] = static_cast<uint8_t>(a | b << 4);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QuantizeRow(const float* values, size_t k, WeightFormat format,
                         size_t group_size, uint8_t* numbers, uint16_t* scales,
                         uint8_t* zeros) {
  CHECK(IsQuantized(format));
  CHECK(group_size == 32 || group_size == 64);
  CHECK_EQ(k % group_size, 0u);
  for (size_t i = 0; i < k; ++i) {
    if (!std::isfinite(values[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("column ", i, ": is ", values[i]));
    }
  }
  for (size_t begin = 0, group = 0; begin < k; begin += group_size, ++group) {
    const absl::Status status =
        format == WeightFormat::kInt8
            ? QuantizeInt8(values + begin, group_size, numbers + begin,
                           scales + group)
            : QuantizeInt4(values + begin, group_size,
                           format == WeightFormat::kInt4Zero,
                           numbers + begin / 2, scales + group,
                           zeros == nullptr ? nullptr : zeros + group);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("columns ", begin, " to ", begin + group_size - 1,
                       ": the largest ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace troupe
