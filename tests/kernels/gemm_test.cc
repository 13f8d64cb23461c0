#include "kernels/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/reference/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

struct Shape {
  size_t num_rows;
  size_t n;
  size_t k;
};

// Remainders of the panel (32), of the vectors, of the row blocks (6 and 12),
// of the column block (512), and one of each large enough for many tasks.
const Shape kShapes[] = {
    {1, 1, 1},     {1, 32, 7},     {1, 129, 65},  {1, 256, 1040}, {2, 33, 16},
    {2, 64, 515},  {3, 31, 40},    {3, 96, 33},   {4, 40, 129},   {5, 32, 64},
    {6, 65, 31},   {7, 34, 100},   {8, 128, 8},   {9, 1, 513},    {10, 48, 3},
    {11, 63, 17},  {12, 32, 1025}, {13, 70, 511}, {14, 8, 1024},  {24, 33, 30},
    {25, 47, 512}, {37, 224, 530}, {97, 8, 768},  {130, 95, 1100}};

class GemmTest : public ::testing::TestWithParam<DataType> {
 protected:
  ThreadPool one_{1};
  ThreadPool two_{2};
  Workspace workspace_;
};

// acc = fma(x[i], w[i], acc) along k, then + bias.
void ScalarGemm(ConstFloatMatrix input, ConstFloatMatrix weights,
                const float* bias, FloatMatrix output) {
  for (size_t r = 0; r < input.rows; ++r) {
    for (size_t c = 0; c < weights.rows; ++c) {
      float acc = 0.0f;
      for (size_t i = 0; i < input.cols; ++i) {
        acc = std::fma(input.row(r)[i], weights.row(c)[i], acc);
      }
      output.row(r)[c] = bias == nullptr ? acc : acc + bias[c];
    }
  }
}

TEST_P(GemmTest, IsCloseToTheReference) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(::testing::Message()
                 << s.num_rows << " x " << s.n << " x " << s.k);
    const TestMatrix input = TestMatrix::Random(s.num_rows, s.k, 1);
    const TestWeights weights(GetParam(), s.n, s.k, 2, 0.1f);
    const std::vector<float> bias = RandomFloats(s.n, 3);
    TestMatrix expected(s.num_rows, s.n);
    reference::Gemm(input.view(), weights.view(), bias.data(), expected.view());
    const PackedMatrix packed =
        PackedMatrix::Pack(GetParam(), weights.data(), s.n, s.k, two_);
    TestMatrix actual(s.num_rows, s.n);
    Gemm(input.view(), packed, bias.data(), actual.view(), workspace_, two_);
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      return DotTolerance(Norm(input.view().row(r), s.k),
                          Norm(weights.view().row(c), s.k)) +
             2 * kEpsilon * std::abs(expected.view().row(r)[c]);
    });
  }
}

TEST_P(GemmTest, IsOneScalarChainWhateverTheInstructionSetAndThreads) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(::testing::Message()
                 << s.num_rows << " x " << s.n << " x " << s.k);
    const TestMatrix input = TestMatrix::Random(s.num_rows, s.k, 4);
    const TestWeights weights(GetParam(), s.n, s.k, 5, 0.1f);
    const std::vector<float> bias = RandomFloats(s.n, 6);
    for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
      TestMatrix expected(s.num_rows, s.n);
      ScalarGemm(input.view(), weights.view(), b, expected.view());
      ForEachInstructionSet([&] {
        for (ThreadPool* pool : {&one_, &two_}) {
          const PackedMatrix packed =
              PackedMatrix::Pack(GetParam(), weights.data(), s.n, s.k, *pool);
          TestMatrix actual(s.num_rows, s.n);
          Gemm(input.view(), packed, b, actual.view(), workspace_, *pool);
          ExpectSameBits(actual.view(), expected.view());
          actual.ExpectMarksUntouched();
        }
      });
    }
  }
}

TEST_P(GemmTest, RowsDoNotDependOnTheirNumber) {
  constexpr size_t kRows = 140;
  constexpr size_t kN = 200;
  constexpr size_t kK = 1030;
  const TestMatrix input = TestMatrix::Random(kRows, kK, 7);
  const TestWeights weights(GetParam(), kN, kK, 8);
  const PackedMatrix packed =
      PackedMatrix::Pack(GetParam(), weights.data(), kN, kK, two_);
  ForEachInstructionSet([&] {
    TestMatrix all(kRows, kN);
    Gemm(input.view(), packed, nullptr, all.view(), workspace_, two_);
    for (size_t rows = 1; rows <= kRows; rows += rows < 27 ? 1 : 37) {
      TestMatrix some(rows, kN);
      const size_t first = (kRows - rows) / 2;
      Gemm(input.view().Rows(first, first + rows), packed, nullptr, some.view(),
           workspace_, two_);
      ExpectSameBits(some.view(),
                     ConstFloatMatrix(all.view()).Rows(first, first + rows));
    }
  });
}

TEST_P(GemmTest, NoRowsWriteNothing) {
  const TestWeights weights(GetParam(), 40, 50, 9);
  const PackedMatrix packed =
      PackedMatrix::Pack(GetParam(), weights.data(), 40, 50, two_);
  Gemm(ConstFloatMatrix(nullptr, 0, 50), packed, nullptr,
       FloatMatrix(nullptr, 0, 40), workspace_, two_);
}

TEST_P(GemmTest, NanAndInfinityStayInTheirRowAndColumn) {
  constexpr size_t kRows = 15;
  constexpr size_t kN = 70;
  constexpr size_t kK = 600;
  ForEachInstructionSet([&] {
    TestMatrix input = TestMatrix::Random(kRows, kK, 10);
    TestWeights weights(GetParam(), kN, kK, 11);
    input.view().row(2)[599] = kNan;
    input.view().row(14)[0] = kInfinity;
    weights.Set(69 * kK + 300, kNan);
    weights.Set(33 * kK + 17, -kInfinity);
    const PackedMatrix packed =
        PackedMatrix::Pack(GetParam(), weights.data(), kN, kK, two_);
    TestMatrix output(kRows, kN);
    Gemm(input.view(), packed, nullptr, output.view(), workspace_, two_);
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t c = 0; c < kN; ++c) {
        const float value = output.view().row(r)[c];
        if (r == 2 || c == 69) {
          EXPECT_TRUE(std::isnan(value)) << r << " " << c;
        } else {
          EXPECT_EQ(std::isfinite(value), r != 14 && c != 33) << r << " " << c;
        }
      }
    }
  });
}

// Numbers below the normal range of the weights' format, and float sums below
// that of float.
TEST_P(GemmTest, KeepsSubnormals) {
  constexpr size_t kK = 64;
  TestMatrix input(3, kK);
  for (size_t r = 0; r < 3; ++r) {
    for (size_t i = 0; i < kK; ++i) {
      input.view().row(r)[i] = r == 0 ? 1.0f : std::ldexp(1.0f, -120);
    }
  }
  const float tiny = GetParam() == DataType::kF16 ? std::ldexp(3.0f, -24)
                                                  : std::ldexp(3.0f, -130);
  TestWeights weights(GetParam(), 40, kK, 12);
  for (size_t i = 0; i < 40 * kK; ++i) weights.Set(i, tiny);
  TestMatrix expected(3, 40);
  ScalarGemm(input.view(), weights.view(), nullptr, expected.view());
  ASSERT_EQ(expected.view().row(0)[0], 64 * tiny);
  const PackedMatrix packed =
      PackedMatrix::Pack(GetParam(), weights.data(), 40, kK, one_);
  ForEachInstructionSet([&] {
    TestMatrix actual(3, 40);
    Gemm(input.view(), packed, nullptr, actual.view(), workspace_, one_);
    ExpectSameBits(actual.view(), expected.view());
  });
}

INSTANTIATE_TEST_SUITE_P(DataTypes, GemmTest,
                         ::testing::Values(DataType::kF32, DataType::kBF16,
                                           DataType::kF16),
                         [](const auto& test) { return Name(test.param); });

}  // namespace
}  // namespace troupe
