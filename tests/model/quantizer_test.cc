#include "model/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/dequantize.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4,
                                     WeightFormat::kInt4Zero};

// A row in a quantised format.
struct Row {
  WeightFormat format;
  size_t group_size;
  size_t k;
  std::vector<uint8_t> numbers;
  std::vector<uint16_t> scales;
  std::vector<uint8_t> zeros;

  Row(const std::vector<float>& values, WeightFormat f, size_t g)
      : format(f),
        group_size(g),
        k(values.size()),
        numbers(NumberBytes(f, k)),
        scales(k / g),
        zeros(k / g) {
    status = QuantizeRow(values.data(), k, f, g, numbers.data(), scales.data(),
                         zeros.data());
  }
  std::vector<float> Values() const {
    const StoredMatrix matrix = {.format = format,
                                 .n = 1,
                                 .k = k,
                                 .group_size = group_size,
                                 .numbers = numbers.data(),
                                 .scales = scales.data(),
                                 .zeros = zeros.data()};
    std::vector<float> values(k);
    DequantizeRow(matrix, 0, values.data());
    return values;
  }
  absl::Status status;
};

std::vector<float> Normal(size_t count, uint32_t seed, float deviation) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = deviation * normal(generator);
  return values;
}

double SquaredError(const std::vector<float>& a, const std::vector<float>& b,
                    size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) {
    sum +=
        (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  }
  return sum;
}

// Relative root of the mean square.
double RelativeError(const std::vector<float>& values,
                     const std::vector<float>& rounded) {
  const std::vector<float> zeros(values.size());
  return std::sqrt(SquaredError(values, rounded, 0, values.size()) /
                   SquaredError(values, zeros, 0, values.size()));
}

TEST(QuantizerTest, Int8IsWithinHalfAStep) {
  for (const size_t group_size : {32, 64}) {
    for (const float deviation : {1e-3f, 0.02f, 1.0f, 1e4f}) {
      const std::vector<float> values = Normal(64 * 40, 1, deviation);
      const Row row(values, WeightFormat::kInt8, group_size);
      ASSERT_TRUE(row.status.ok()) << row.status;
      const std::vector<float> rounded = row.Values();
      for (size_t i = 0; i < values.size(); ++i) {
        // Half a step, and what rounding the scale to 11 bits moves 127 by.
        const float step = F32FromF16(row.scales[i / group_size]);
        ASSERT_LE(std::abs(values[i] - rounded[i]), 0.5f * step * 1.13f) << i;
        ASSERT_NE(static_cast<int8_t>(row.numbers[i]), -128);
      }
    }
  }
}

// Never worse than the scale that clips nothing.
TEST(QuantizerTest, Int4BeatsPlainRounding) {
  for (const WeightFormat format :
       {WeightFormat::kInt4, WeightFormat::kInt4Zero}) {
    for (const size_t group_size : {32, 64}) {
      for (const float shift : {0.0f, 3.0f, -3.0f}) {
        std::vector<float> values = Normal(64 * 40, 2, 0.05f);
        for (float& value : values) value += 0.05f * shift;
        const Row row(values, format, group_size);
        ASSERT_TRUE(row.status.ok()) << row.status;
        const std::vector<float> rounded = row.Values();
        for (size_t begin = 0; begin < values.size(); begin += group_size) {
          float low = 0, high = 0;
          for (size_t i = begin; i < begin + group_size; ++i) {
            low = std::min(low, values[i]);
            high = std::max(high, values[i]);
          }
          const bool with_zero = format == WeightFormat::kInt4Zero;
          const float scale = F32FromF16(F16FromF32(
              with_zero ? (high - low) / 15 : std::max(-low / 8, high / 7)));
          const float zero = with_zero ? std::round(-low / scale) : 8.0f;
          double plain = 0;
          for (size_t i = begin; i < begin + group_size; ++i) {
            const float q = std::clamp(std::nearbyint(values[i] / scale), -zero,
                                       15.0f - zero);
            plain += std::pow(static_cast<double>(values[i]) - scale * q, 2);
          }
          // The sums are of floats.
          ASSERT_LE(SquaredError(values, rounded, begin, begin + group_size),
                    plain * (1 + 1e-5))
              << begin;
        }
      }
    }
  }
}

// Of a normal distribution. Plain rounding has 0.091 and 0.102 for int4, 0.081
// and 0.091 for int4 with zero point (groups of 32 and 64): the search must be
// worth having.
TEST(QuantizerTest, ErrorOfANormalDistribution) {
  const std::vector<float> values = Normal(1 << 16, 3, 0.02f);
  const auto error = [&](WeightFormat format, size_t group_size) {
    return RelativeError(values, Row(values, format, group_size).Values());
  };
  EXPECT_LT(error(WeightFormat::kInt8, 32), 0.0055);
  EXPECT_LT(error(WeightFormat::kInt8, 64), 0.0062);
  EXPECT_LT(error(WeightFormat::kInt4, 32), 0.087);
  EXPECT_LT(error(WeightFormat::kInt4, 64), 0.095);
  EXPECT_LT(error(WeightFormat::kInt4Zero, 32), 0.078);
  EXPECT_LT(error(WeightFormat::kInt4Zero, 64), 0.088);
}

TEST(QuantizerTest, ValuesOnTheGridComeBackExactly) {
  std::mt19937 random(4);
  for (const WeightFormat format : kFormats) {
    std::vector<float> values(96);
    for (size_t i = 0; i < values.size(); ++i) {
      const float scale = i < 32 ? 0.25f : i < 64 ? 0x1p-20f : 3.0f;
      int number = static_cast<int>(random() % 255) - 127;
      if (i % 32 == 0) number = 127;
      if (format == WeightFormat::kInt4) {
        number = i % 32 == 0 ? 7 : i % 32 == 1 ? -8 : number % 8;
      }
      if (format == WeightFormat::kInt4Zero) {
        number = i % 32 == 0 ? 11 : i % 32 == 1 ? -4 : std::abs(number) % 12;
      }
      values[i] = scale * static_cast<float>(number);
    }
    const Row row(values, format, 32);
    EXPECT_EQ(row.Values(), values) << Name(format);
  }
}

TEST(QuantizerTest, TheSameValuesGiveTheSameBytes) {
  const std::vector<float> values = Normal(640, 5, 0.1f);
  for (const WeightFormat format : kFormats) {
    const Row a(values, format, 64), b(values, format, 64);
    EXPECT_EQ(a.numbers, b.numbers);
    EXPECT_EQ(a.scales, b.scales);
    EXPECT_EQ(a.zeros, b.zeros);
    // A group does not see its neighbours.
    std::vector<float> more(values.begin() + 64, values.begin() + 128);
    const Row c(more, format, 64);
    EXPECT_EQ(c.scales[0], a.scales[1]);
  }
}

TEST(QuantizerTest, GroupsOfZerosAndSingleValues) {
  for (const WeightFormat format : kFormats) {
    for (const float alone : {0.0f, -0.0f, 1.0f, -1.0f, 1e-3f, -2000.0f}) {
      std::vector<float> values(64, 0.0f);
      values[37] = alone;
      const Row row(values, format, 32);
      ASSERT_TRUE(row.status.ok());
      const std::vector<float> rounded = row.Values();
      for (size_t i = 0; i < 64; ++i) {
        // The scale has 11 bits.
        EXPECT_NEAR(rounded[i], values[i], std::abs(values[i]) * 1e-3)
            << Name(format) << " " << alone << " " << i;
      }
    }
  }
}

// Scales far below the normal numbers of float16: the error is a step of the
// smallest one, never a group that clips.
TEST(QuantizerTest, TinyValuesUnderflowGracefully) {
  for (const WeightFormat format : kFormats) {
    for (const float deviation : {1e-5f, 1e-6f, 1e-7f, 1e-9f, 1e-30f, 1e-42f}) {
      const std::vector<float> values = Normal(320, 6, deviation);
      const Row row(values, format, 32);
      ASSERT_TRUE(row.status.ok()) << row.status;
      const std::vector<float> rounded = row.Values();
      for (size_t i = 0; i < values.size(); ++i) {
        const float step = std::max(F32FromF16(row.scales[i / 32]), 0x1p-24f);
        ASSERT_LE(std::abs(values[i] - rounded[i]),
                  // int4 may choose to clip where that is better in the square
                  (format == WeightFormat::kInt8 ? 0.6f : 4.0f) * step)
            << Name(format) << " " << deviation << " " << i;
      }
    }
  }
}

TEST(QuantizerTest, LargeValues) {
  for (const WeightFormat format : kFormats) {
    std::vector<float> values(64, 1.0f);
    values[40] = -4.5e5f;
    EXPECT_TRUE(Row(values, format, 32).status.ok());
    values[40] = format == WeightFormat::kInt8 ? 8.4e6f : 1e6f;
    const absl::Status status = Row(values, format, 32).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("columns 32 to 63"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("beyond float16"));
  }
}

TEST(QuantizerTest, NanAndInfinityAreRefused) {
  for (const WeightFormat format : kFormats) {
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(96, 0.5f);
      values[70] = wrong;
      const absl::Status status = Row(values, format, 32).status;
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("column 70"));
    }
  }
}

}  // namespace
}  // namespace troupe
