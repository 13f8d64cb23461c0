#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "kernels/reference/elementwise.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

// Around the vectors of 4, 8 and 16 lanes, and long.
const size_t kSizes[] = {1,  2,  3,  4,  7,  8,   9,    15,  16,
                         17, 31, 32, 33, 63, 100, 1024, 5001};

class ElementwiseTest : public ::testing::Test {
 protected:
  // run(matrix, pool) works in place on a copy of `input`; its bits must be
  // the same for every instruction set, number of threads and of rows.
  // Returns the result.
  TestMatrix RunEverywhere(
      const TestMatrix& input,
      const std::function<void(FloatMatrix, size_t, ThreadPool&)>& run) {
    TestMatrix first = input;
    run(first.view(), 0, one_);
    first.ExpectMarksUntouched();
    ForEachInstructionSet([&] {
      TestMatrix again = input;
      run(again.view(), 0, two_);
      ExpectSameBits(again.view(), first.view());
      again.ExpectMarksUntouched();
      TestMatrix by_row = input;
      for (size_t r = 0; r < by_row.view().rows; ++r) {
        run(by_row.view().Rows(r, r + 1), r, one_);
      }
      ExpectSameBits(by_row.view(), first.view());
    });
    return first;
  }

  ThreadPool one_{1};
  ThreadPool two_{2};
};

TEST_F(ElementwiseTest, RmsNorm) {
  for (const size_t size : kSizes) {
    SCOPED_TRACE(size);
    const TestMatrix input = TestMatrix::Random(5, size, 1, 3.0f);
    const std::vector<float> weight = RandomFloats(size, 2);
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          RmsNorm(x, weight.data(), 1e-5f, x, pool);
        });
    TestMatrix expected = input;
    reference::RmsNorm(input.view(), weight.data(), 1e-5f, expected.view());
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      return 8 * kEpsilon * std::abs(expected.view().row(r)[c]) + 1e-30;
    });
    // Not in place: the same.
    TestMatrix other(5, size);
    RmsNorm(input.view(), weight.data(), 1e-5f, other.view(), two_);
    ExpectSameBits(other.view(), actual.view());
  }
}

TEST_F(ElementwiseTest, RmsNormOfZerosIsZero) {
  TestMatrix zeros = TestMatrix::Random(2, 20, 1, 0.0f);
  const std::vector<float> weight = RandomFloats(20, 2);
  RmsNorm(zeros.view(), weight.data(), 1e-6f, zeros.view(), one_);
  for (size_t c = 0; c < 20; ++c) EXPECT_EQ(zeros.view().row(1)[c], 0.0f);
}

TEST_F(ElementwiseTest, RmsNormPerHead) {
  for (const size_t head_dim : {1, 4, 16, 17, 80, 128}) {
    SCOPED_TRACE(head_dim);
    const TestMatrix input = TestMatrix::Random(4, 6 * head_dim, 3);
    const std::vector<float> weight = RandomFloats(head_dim, 4);
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          RmsNormPerHead(x, 6, weight.data(), 1e-6f, pool);
        });
    TestMatrix expected = input;
    reference::RmsNormPerHead(expected.view(), 6, weight.data(), 1e-6f);
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      return 8 * kEpsilon * std::abs(expected.view().row(r)[c]) + 1e-30;
    });
  }
}

TEST_F(ElementwiseTest, ApplyRope) {
  for (const size_t half : {1, 4, 8, 9, 32, 40, 64}) {
    SCOPED_TRACE(half);
    constexpr size_t kHeads = 3;
    const TestMatrix input = TestMatrix::Random(5, kHeads * 2 * half, 5);
    TestMatrix cosines(100, half);
    TestMatrix sines(100, half);
    for (size_t p = 0; p < 100; ++p) {
      for (size_t i = 0; i < half; ++i) {
        const double angle =
            p * std::pow(10000.0,
                         -static_cast<double>(i) / static_cast<double>(half));
        cosines.view().row(p)[i] = static_cast<float>(std::cos(angle));
        sines.view().row(p)[i] = static_cast<float>(std::sin(angle));
      }
    }
    const std::vector<int32_t> positions = {0, 99, 7, 7, 50};
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          ApplyRope(x, kHeads, std::span(positions).subspan(first_row, x.rows),
                    cosines.view(), sines.view(), pool);
        });
    TestMatrix expected = input;
    reference::ApplyRope(expected.view(), kHeads, positions, cosines.view(),
                         sines.view());
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      const size_t first = c / (2 * half) * 2 * half + c % half;
      const float pair[] = {input.view().row(r)[first],
                            input.view().row(r)[first + half]};
      return 4 * kEpsilon * Norm(pair, 2);
    });
    // Position 0 turns nothing.
    ExpectSameBits(actual.view().Rows(0, 1), input.view().Rows(0, 1));
  }
}

TEST_F(ElementwiseTest, Clamp) {
  for (const size_t size : kSizes) {
    TestMatrix input = TestMatrix::Random(3, size, 6);
    input.view().row(1)[size - 1] = kNan;
    input.view().row(2)[0] = -kInfinity;
    const TestMatrix actual =
        RunEverywhere(input, [](FloatMatrix x, size_t first_row,
                                ThreadPool& pool) { Clamp(x, 0.5f, pool); });
    EXPECT_TRUE(std::isnan(actual.view().row(1)[size - 1]));
    EXPECT_EQ(actual.view().row(2)[0], -0.5f);
    TestMatrix expected = input;
    reference::Clamp(expected.view(), 0.5f);
    for (size_t r = 0; r < 3; ++r) {
      for (size_t c = 0; c < size; ++c) {
        if (r == 1 && c == size - 1) continue;
        ASSERT_EQ(actual.view().row(r)[c], expected.view().row(r)[c]);
      }
    }
  }
}

TEST_F(ElementwiseTest, AddInPlace) {
  for (const size_t size : kSizes) {
    const TestMatrix input = TestMatrix::Random(4, size, 7);
    const TestMatrix addend = TestMatrix::Random(4, size, 8);
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          AddInPlace(x, addend.view().Rows(first_row, first_row + x.rows),
                     pool);
        });
    TestMatrix expected = input;
    reference::AddInPlace(expected.view(), addend.view());
    ExpectSameBits(actual.view(), expected.view());
  }
}

TEST_F(ElementwiseTest, AddSigmoidGated) {
  for (const size_t size : kSizes) {
    SCOPED_TRACE(size);
    const TestMatrix input = TestMatrix::Random(5, size, 9);
    const TestMatrix addend = TestMatrix::Random(5, size, 10);
    const std::vector<float> gate = {0.3f, -2.0f, 200.0f, -200.0f, 0.0f};
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          AddSigmoidGated(x, std::span(gate).subspan(first_row, x.rows),
                          addend.view().Rows(first_row, first_row + x.rows),
                          pool);
        });
    TestMatrix expected = input;
    reference::AddSigmoidGated(expected.view(), gate, addend.view());
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      return 8 * kEpsilon *
             (std::abs(input.view().row(r)[c]) +
              std::abs(addend.view().row(r)[c]));
    });
    ExpectSameBits(actual.view().Rows(3, 4), input.view().Rows(3, 4));
  }
}

TEST_F(ElementwiseTest, SoftmaxRows) {
  for (const size_t size : kSizes) {
    SCOPED_TRACE(size);
    TestMatrix input = TestMatrix::Random(4, size, 11, 4.0f);
    for (size_t c = 0; c < size; ++c) input.view().row(1)[c] += 1000.0f;
    for (size_t c = 0; c + 1 < size; ++c) input.view().row(2)[c] = -kInfinity;
    const TestMatrix actual =
        RunEverywhere(input, [](FloatMatrix x, size_t first_row,
                                ThreadPool& pool) { SoftmaxRows(x, pool); });
    TestMatrix expected = input;
    reference::SoftmaxRows(expected.view());
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      // The rounding of x - max is an error of the exponent; the sum is of 16
      // partial ones, whose roundings have random signs.
      const double distance =
          std::abs(std::log(expected.view().row(r)[c] + 1e-40));
      const double sum = std::sqrt(static_cast<double>(size) / 16);
      return (8 + distance + sum) * kEpsilon * expected.view().row(r)[c] +
             1e-38;
    });
    EXPECT_EQ(actual.view().row(2)[size - 1], 1.0f);
  }
}

TEST_F(ElementwiseTest, SoftmaxOfNanIsNan) {
  ForEachInstructionSet([&] {
    TestMatrix values = TestMatrix::Random(2, 37, 12);
    values.view().row(0)[36] = kNan;
    SoftmaxRows(values.view(), one_);
    for (size_t c = 0; c < 37; ++c) {
      EXPECT_TRUE(std::isnan(values.view().row(0)[c]));
      EXPECT_TRUE(std::isfinite(values.view().row(1)[c]));
    }
  });
}

TEST_F(ElementwiseTest, LogSumExp) {
  for (const size_t size : kSizes) {
    for (const float shift : {0.0f, 500.0f, -500.0f}) {
      SCOPED_TRACE(::testing::Message() << size << " shift " << shift);
      std::vector<float> row = RandomFloats(size, 13, 5.0f);
      for (float& value : row) value += shift;
      const double actual = LogSumExp(row);
      const double expected = reference::LogSumExp(row);
      EXPECT_NEAR(actual, expected, 16 * kEpsilon);
      ForEachInstructionSet([&] { EXPECT_EQ(LogSumExp(row), actual); });
    }
  }
}

TEST_F(ElementwiseTest, LogSumExpOfSpecialValues) {
  ForEachInstructionSet([&] {
    const float none[] = {-kInfinity, -kInfinity};
    EXPECT_EQ(LogSumExp(none), -kInfinity);
    const float one[] = {-kInfinity, 3.0f, -kInfinity};
    EXPECT_EQ(LogSumExp(one), 3.0);
    const float infinite[] = {0.0f, kInfinity};
    EXPECT_EQ(LogSumExp(infinite), kInfinity);
    std::vector<float> nan = RandomFloats(40, 14);
    nan[5] = kNan;
    EXPECT_TRUE(std::isnan(LogSumExp(nan)));
  });
}

TEST_F(ElementwiseTest, ArgMax) {
  for (const size_t size : kSizes) {
    std::vector<float> row = RandomFloats(size, 19, 5.0f);
    for (size_t i = 0; i < size; i += 3) row[i] = kNan;
    for (const size_t best : {size_t{0}, size / 2, size - 1}) {
      std::vector<float> other = row;
      other[best] = 100.0f;
      other[size - 1] = 100.0f;  // of equals the first
      if (size > 2) other[1] = best == 1 ? 100.0f : -kInfinity;
      ForEachInstructionSet([&] { EXPECT_EQ(ArgMax(other), best) << size; });
    }
  }
  ForEachInstructionSet([&] {
    EXPECT_EQ(ArgMax(std::vector<float>(40, -kInfinity)), 0u);
    EXPECT_EQ(ArgMax(std::vector<float>(40, kNan)), 0u);
    EXPECT_EQ(ArgMax(std::vector<float>{-kInfinity, kNan, -3.0f}), 2u);
    EXPECT_EQ(ArgMax(std::vector<float>{kNan, 1.0f, kInfinity}), 2u);
    EXPECT_EQ(ArgMax(std::vector<float>{-0.0f, 0.0f}), 0u);
  });
}

// The exponential behind softmax over its whole range: exp(x) of a pair
// (0, x) is softmax's ratio.
TEST_F(ElementwiseTest, ExponentialIsAccurateOverItsRange) {
  ForEachInstructionSet([&] {
    double worst = 0;
    for (double x = -87.0; x <= 0.0; x += 0.0137) {
      float pair[] = {0.0f, static_cast<float>(x)};
      SoftmaxRows(FloatMatrix(pair, 1, 2), one_);
      const double expected =
          std::exp(static_cast<double>(static_cast<float>(x)));
      const double actual = static_cast<double>(pair[1]) / pair[0];
      worst = std::max(worst, std::abs(actual - expected) / expected);
    }
    EXPECT_LT(worst, 6 * kEpsilon);
    float subnormal[] = {0.0f, -100.0f, -104.5f};
    SoftmaxRows(FloatMatrix(subnormal, 1, 3), one_);
    EXPECT_NEAR(subnormal[1], std::exp(-100.0), 1e-45);
    EXPECT_EQ(subnormal[2], 0.0f);
  });
}

TEST_F(ElementwiseTest, CombineExperts) {
  for (const size_t size : kSizes) {
    SCOPED_TRACE(size);
    const TestMatrix input = TestMatrix::Random(4, size, 15);
    TestMatrix copies = TestMatrix::Random(7, size, 16);
    // Copy 6 is nobody's.
    for (size_t c = 0; c < size; ++c) copies.view().row(6)[c] = kNan;
    const TestMatrix weights = TestMatrix::Random(4, 3, 17);
    const std::vector<int32_t> copy_of_slot = {0, 3,  5, 1,  -1, 4,
                                               2, -1, 0, -1, -1, -1};
    const TestMatrix actual = RunEverywhere(
        input, [&](FloatMatrix x, size_t first_row, ThreadPool& pool) {
          CombineExperts(
              copies.view(),
              std::span(copy_of_slot).subspan(first_row * 3, x.rows * 3),
              weights.view().Rows(first_row, first_row + x.rows), x, pool);
        });
    // One chain from 0 in the order of the slots, then one add.
    TestMatrix chain = input;
    for (size_t t = 0; t < 4; ++t) {
      for (size_t c = 0; c < size; ++c) {
        float sum = 0.0f;
        for (size_t i = 0; i < 3; ++i) {
          const int32_t copy = copy_of_slot[t * 3 + i];
          if (copy < 0) continue;
          sum = std::fma(weights.view().row(t)[i], copies.view().row(copy)[c],
                         sum);
        }
        chain.view().row(t)[c] += sum;
      }
    }
    ExpectSameBits(actual.view(), chain.view());
    TestMatrix expected = input;
    reference::CombineExperts(copies.view(), copy_of_slot, weights.view(),
                              expected.view());
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      double sum = std::abs(input.view().row(r)[c]);
      for (size_t i = 0; i < 3; ++i) {
        const int32_t copy = copy_of_slot[r * 3 + i];
        if (copy < 0) continue;
        sum += std::abs(weights.view().row(r)[i] * copies.view().row(copy)[c]);
      }
      return 4 * kEpsilon * sum;
    });
  }
}

TEST_F(ElementwiseTest, CombineWithoutCopiesKeepsTheResidual) {
  TestMatrix output = TestMatrix::Random(2, 10, 18);
  const TestMatrix before = output;
  const std::vector<int32_t> copy_of_slot = {-1, -1};
  const TestMatrix weights = TestMatrix::Random(2, 1, 19);
  CombineExperts(ConstFloatMatrix(), copy_of_slot, weights.view(),
                 output.view(), two_);
  ExpectSameBits(output.view(), before.view());
}

TEST_F(ElementwiseTest, EmbedTokens) {
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    for (const size_t size : {1, 7, 8, 16, 33, 1024}) {
      SCOPED_TRACE(::testing::Message() << Name(dtype) << " " << size);
      TestWeights table(dtype, 20, size, 20);
      table.Set(3 * size, -kInfinity);
      table.Set(4 * size, std::ldexp(3.0f, -24));  // subnormal in float16
      const std::vector<int32_t> token_ids = {0, 19, 3, 3, 4};
      TestMatrix expected(5, size);
      const StoredMatrix stored = {.format = FormatOf(dtype),
                                   .n = 20,
                                   .k = size,
                                   .numbers = table.data()};
      reference::EmbedTokens(token_ids, stored, expected.view());
      EXPECT_EQ(expected.view().row(2)[0], -kInfinity);
      ForEachInstructionSet([&] {
        TestMatrix actual(5, size);
        EmbedTokens(token_ids, stored, actual.view(), two_);
        ExpectSameBits(actual.view(), expected.view());
        actual.ExpectMarksUntouched();
      });
    }
  }
}

// Every byte pattern that a checkpoint may hold, against values computed here
// from the definition of the formats; all at odd addresses.
TEST_F(ElementwiseTest, EmbedQuantizedTokens) {
  constexpr size_t kRows = 11;
  for (const WeightFormat format :
       {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kInt4Zero}) {
    for (const size_t group_size : {32, 64}) {
      for (const size_t num_groups : {1, 3, 16}) {
        SCOPED_TRACE(::testing::Message()
                     << Name(format) << " " << group_size << " " << num_groups);
        const size_t k = group_size * num_groups;
        std::mt19937 random(static_cast<uint32_t>(k));
        std::vector<uint8_t> numbers(1 + kRows * k);
        std::vector<uint8_t> scales(1 + 2 * kRows * num_groups);
        std::vector<uint8_t> zeros(1 + kRows * num_groups);
        TestMatrix all(kRows, k);
        for (size_t r = 0; r < kRows; ++r) {
          for (size_t c = 0; c < k; ++c) {
            const size_t group = r * num_groups + c / group_size;
            if (c % group_size == 0) {
              uint16_t half = static_cast<uint16_t>(random() % 0x7c00);
              if (group == 1) half = 0;       // scale 0
              if (group == 2) half = 0x7bff;  // the largest
              if (group == 3) half = 1;       // the smallest
              std::memcpy(&scales[1 + 2 * group], &half, 2);
              zeros[1 + group] = static_cast<uint8_t>(random() % 16);
            }
            uint16_t half;
            std::memcpy(&half, &scales[1 + 2 * group], 2);
            int value;
            if (format == WeightFormat::kInt8) {
              value = static_cast<int>(random() % 255) - 127;
              numbers[1 + r * k + c] = static_cast<uint8_t>(value);
            } else {
              const int number = static_cast<int>(random() % 16);
              numbers[1 + (r * k + c) / 2] |=
                  static_cast<uint8_t>(c % 2 == 0 ? number : number << 4);
              value =
                  number -
                  (format == WeightFormat::kInt4 ? 8 : int{zeros[1 + group]});
            }
            all.view().row(r)[c] = F32FromF16(half) * static_cast<float>(value);
          }
        }
        const StoredMatrix table = {.format = format,
                                    .n = kRows,
                                    .k = k,
                                    .group_size = group_size,
                                    .numbers = numbers.data() + 1,
                                    .scales = scales.data() + 1,
                                    .zeros = zeros.data() + 1};
        std::vector<int32_t> token_ids = {10, 0, 3, 3};
        for (int32_t r = 0; r < static_cast<int32_t>(kRows); ++r) {
          token_ids.push_back(r);
        }
        TestMatrix expected(token_ids.size(), k);
        for (size_t r = 0; r < token_ids.size(); ++r) {
          std::copy_n(all.view().row(static_cast<size_t>(token_ids[r])), k,
                      expected.view().row(r));
        }
        TestMatrix reference(token_ids.size(), k);
        reference::EmbedTokens(token_ids, table, reference.view());
        ExpectSameBits(reference.view(), expected.view());
        ForEachInstructionSet([&] {
          TestMatrix actual(token_ids.size(), k);
          EmbedTokens(token_ids, table, actual.view(), two_);
          ExpectSameBits(actual.view(), expected.view());
          actual.ExpectMarksUntouched();
        });
      }
    }
  }
}

TEST_F(ElementwiseTest, NoRowsDoNothing) {
  const FloatMatrix none(nullptr, 0, 8);
  const float weight[8] = {};
  RmsNorm(none, weight, 1e-5f, none, two_);
  Clamp(none, 1.0f, two_);
  AddInPlace(none, none, two_);
  SoftmaxRows(none, two_);
  const StoredMatrix table = {.n = 1, .k = 8, .numbers = weight};
  EmbedTokens({}, table, none, two_);
  CombineExperts(ConstFloatMatrix(), {}, ConstFloatMatrix(nullptr, 0, 2), none,
                 two_);
}

}  // namespace
}  // namespace troupe
