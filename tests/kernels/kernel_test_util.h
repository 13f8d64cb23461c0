// What the tests of kernels share: inputs, comparisons, instruction sets.
#ifndef TROUPE_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
#define TROUPE_TESTS_KERNELS_KERNEL_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/stored_matrix.h"
#include "common/views.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/reference/gemm.h"

namespace troupe {

// Half the distance from 1 to the next float: the error of one rounding.
inline constexpr double kEpsilon = 1.0 / (1 << 24);
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// body() for every instruction set that this processor runs.
template <typename Body>
void ForEachInstructionSet(const Body& body) {
  for (const std::string& name : AvailableInstructionSets()) {
    SCOPED_TRACE(name);
    UseInstructionSetForTest(name);
    body();
  }
  UseInstructionSetForTest("");
}

// Normally distributed with this standard deviation.
inline std::vector<float> RandomFloats(size_t count, uint32_t seed,
                                       float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& value : floats) value = deviation * normal(generator);
  return floats;
}

// A matrix whose rows are neither aligned nor next to each other. What lies
// between them holds a mark that kernels must leave alone.
class TestMatrix {
 public:
  TestMatrix(size_t rows, size_t cols, size_t padding = 3)
      : rows_(rows),
        cols_(cols),
        stride_(cols + padding),
        storage_(1 + rows * stride_, kMark) {}

  static TestMatrix Random(size_t rows, size_t cols, uint32_t seed,
                           float deviation = 1.0f) {
    TestMatrix matrix(rows, cols);
    const std::vector<float> values =
        RandomFloats(rows * cols, seed, deviation);
    for (size_t r = 0; r < rows; ++r) {
      std::copy_n(values.data() + r * cols, cols, matrix.view().row(r));
    }
    return matrix;
  }

  FloatMatrix view() { return {storage_.data() + 1, rows_, cols_, stride_}; }
  ConstFloatMatrix view() const {
    return {storage_.data() + 1, rows_, cols_, stride_};
  }

  // That nothing was written outside of the rows.
  void ExpectMarksUntouched() const {
    EXPECT_EQ(storage_[0], kMark);
    for (size_t r = 0; r < rows_; ++r) {
      for (size_t c = cols_; c < stride_; ++c) {
        ASSERT_EQ(view().row(r)[c], kMark) << "row " << r << " column " << c;
      }
    }
  }

 private:
  static constexpr float kMark = -123456.0f;
  size_t rows_;
  size_t cols_;
  size_t stride_;
  std::vector<float> storage_;
};

// Weights as a checkpoint holds them, at an odd address.
class TestWeights {
 public:
  TestWeights(DataType dtype, size_t n, size_t k, uint32_t seed,
              float deviation = 1.0f)
      : dtype_(dtype), n_(n), k_(k), bytes_(1 + n * k * SizeOf(dtype)) {
    const std::vector<float> values = RandomFloats(n * k, seed, deviation);
    for (size_t i = 0; i < values.size(); ++i) Set(i, values[i]);
  }

  void Set(size_t index, float value) {
    uint8_t* to = bytes_.data() + 1 + index * SizeOf(dtype_);
    if (dtype_ == DataType::kF32) {
      std::memcpy(to, &value, 4);
    } else {
      const uint16_t half =
          dtype_ == DataType::kBF16 ? BF16FromF32(value) : F16FromF32(value);
      std::memcpy(to, &half, 2);
    }
    floats_.clear();
  }

  DataType dtype() const { return dtype_; }
  size_t n() const { return n_; }
  size_t k() const { return k_; }
  const void* data() const { return bytes_.data() + 1; }
  // [n, k], as float.
  ConstFloatMatrix view() const {
    if (floats_.empty()) {
      floats_ = reference::ToFloats(dtype_, data(), n_ * k_);
    }
    return {floats_.data(), n_, k_};
  }

 private:
  DataType dtype_;
  size_t n_;
  size_t k_;
  std::vector<uint8_t> bytes_;
  mutable std::vector<float> floats_;
};

// Quantised weights as a checkpoint holds them, at odd addresses: numbers over
// the whole range, scales about `deviation`.
class TestQuantized {
 public:
  TestQuantized(WeightFormat format, size_t group_size, size_t n, size_t k,
                uint32_t seed, float deviation = 1.0f)
      : format_(format), group_size_(group_size), n_(n), k_(k) {
    std::mt19937 generator(seed);
    const size_t num_groups = n * (k / group_size);
    numbers_.resize(1 + (IsInt4(format) ? n * k / 2 : n * k));
    for (uint8_t& byte : numbers_) {
      byte = static_cast<uint8_t>(generator());
      // -128 is no number of the format.
      if (format == WeightFormat::kInt8 && byte == 0x80) byte = 0x81;
    }
    scales_.resize(1 + 2 * num_groups);
    const float range = IsInt4(format) ? 8.0f : 127.0f;
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    for (size_t i = 0; i < num_groups; ++i) {
      SetScale(i, deviation / range * uniform(generator));
    }
    zeros_.resize(1 + num_groups);
    for (uint8_t& zero : zeros_) zero = generator() % 16;
  }

  void SetScale(size_t group, float scale) {
    const uint16_t half = F16FromF32(scale);
    std::memcpy(scales_.data() + 1 + 2 * group, &half, 2);
  }
  void FillNumbers(uint8_t byte) {
    std::fill(numbers_.begin(), numbers_.end(), byte);
  }
  void FillZeros(uint8_t zero) {
    std::fill(zeros_.begin(), zeros_.end(), zero);
  }

  StoredMatrix stored() const {
    return {.format = format_,
            .n = n_,
            .k = k_,
            .group_size = group_size_,
            .numbers = numbers_.data() + 1,
            .scales = scales_.data() + 1,
            .zeros = format_ == WeightFormat::kInt4Zero ? zeros_.data() + 1
                                                        : nullptr};
  }
  // [n, k]
  std::vector<double> values() const { return reference::ToDoubles(stored()); }

 private:
  WeightFormat format_;
  size_t group_size_;
  size_t n_;
  size_t k_;
  std::vector<uint8_t> numbers_;
  std::vector<uint8_t> scales_;
  std::vector<uint8_t> zeros_;
};

// The quantised formats, for tests that take one as a parameter.
struct QuantizedParam {
  WeightFormat format;
  size_t group_size;
};
inline std::vector<QuantizedParam> AllQuantized() {
  std::vector<QuantizedParam> all;
  for (const WeightFormat format :
       {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kInt4Zero}) {
    for (const size_t group_size : {32, 64})
      all.push_back({format, group_size});
  }
  return all;
}
inline std::string NameOf(const QuantizedParam& param) {
  return (param.format == WeightFormat::kInt8   ? "int8_"
          : param.format == WeightFormat::kInt4 ? "int4_"
                                                : "int4zero_") +
         std::to_string(param.group_size);
}

inline double Norm(const float* values, size_t size) {
  double squares = 0;
  for (size_t i = 0; i < size; ++i) {
    squares += static_cast<double>(values[i]) * values[i];
  }
  return std::sqrt(squares);
}

// How far a dot product of floats may be from the exact one: each step of the
// chain rounds a partial sum, whose size the norms bound. The errors have
// random signs, so that the sum is a small multiple of one rounding of the
// product of norms; a wrong or missing term is far beyond it.
inline double DotTolerance(double x_norm, double w_norm) {
  return 8 * kEpsilon * x_norm * w_norm;
}

// tolerance(row, column) > 0. Prints the worst element.
template <typename Tolerance>
void ExpectClose(ConstFloatMatrix actual, ConstFloatMatrix expected,
                 const Tolerance& tolerance) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  double worst = 0;
  size_t worst_row = 0;
  size_t worst_col = 0;
  for (size_t r = 0; r < actual.rows; ++r) {
    for (size_t c = 0; c < actual.cols; ++c) {
      const double error =
          std::abs(static_cast<double>(actual.row(r)[c]) - expected.row(r)[c]);
      double ratio = error / tolerance(r, c);
      if (std::isnan(ratio)) ratio = std::numeric_limits<double>::infinity();
      if (ratio > worst) {
        worst = ratio;
        worst_row = r;
        worst_col = c;
      }
    }
  }
  EXPECT_LE(worst, 1.0) << "worst element [" << worst_row << "][" << worst_col
                        << "] of [" << actual.rows << ", " << actual.cols
                        << "]: " << actual.row(worst_row)[worst_col]
                        << " instead of " << expected.row(worst_row)[worst_col]
                        << ", tolerance " << tolerance(worst_row, worst_col);
}

inline void ExpectSameBits(ConstFloatMatrix actual, ConstFloatMatrix expected) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  for (size_t r = 0; r < actual.rows; ++r) {
    for (size_t c = 0; c < actual.cols; ++c) {
      ASSERT_EQ(std::bit_cast<uint32_t>(actual.row(r)[c]),
                std::bit_cast<uint32_t>(expected.row(r)[c]))
          << "[" << r << "][" << c << "] of [" << actual.rows << ", "
          << actual.cols << "]: " << actual.row(r)[c] << " instead of "
          << expected.row(r)[c];
    }
  }
}

}  // namespace troupe

#endif  // TROUPE_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
