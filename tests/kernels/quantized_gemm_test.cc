// The GEMM on quantised weights: bitwise equal to the scalar model of its
// arithmetic, whatever the rows, threads and instructions; close to double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/gemm.h"
#include "kernels/reference/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

class QuantizedGemmTest : public ::testing::TestWithParam<QuantizedParam> {
 protected:
  WeightFormat format() const { return GetParam().format; }
  size_t group_size() const { return GetParam().group_size; }

  TestQuantized Weights(size_t n, size_t k, uint32_t seed) const {
    return TestQuantized(format(), group_size(), n, k, seed, 0.1f);
  }

  // Runs on every instruction set and with the emulated dot product, on one
  // thread and on two.
  template <typename Check>
  void ForEachWay(ConstFloatMatrix input, const StoredMatrix& weights,
                  const float* bias, const Check& check) {
    const auto run = [&](const GemmKernels& kernels) {
      for (ThreadPool* pool : {&one_, &two_}) {
        SCOPED_TRACE(pool->num_threads());
        const PackedMatrix packed = PackedMatrix::Pack(weights, *pool);
        TestMatrix output(input.rows, weights.n);
        GemmWith(kernels, input, packed, bias, output.view(), workspace_,
                 *pool);
        output.ExpectMarksUntouched();
        check(ConstFloatMatrix(output.view()));
      }
    };
    ForEachInstructionSet(
        [&] { run(QuantizedKernels(format(), group_size())); });
    SCOPED_TRACE("emulated");
    run(EmulatedDotKernels(format(), group_size()));
  }

  void ExpectModelBits(ConstFloatMatrix input, const TestQuantized& weights,
                       const float* bias) {
    const StoredMatrix stored = weights.stored();
    TestMatrix expected(input.rows, stored.n);
    reference::QuantizedGemm(input, stored, bias, expected.view());
    ForEachWay(input, stored, bias, [&](ConstFloatMatrix output) {
      ExpectSameBits(output, expected.view());
    });
  }

  ThreadPool one_{1};
  ThreadPool two_{2};
  Workspace workspace_;
};

// Remainders of the panel and of the row blocks; one group, one more than a
// block of k, and shapes with many tasks.
TEST_P(QuantizedGemmTest, HasTheBitsOfTheScalarModel) {
  struct Shape {
    size_t num_rows, n, num_groups;
  };
  for (const Shape& s :
       {Shape{1, 1, 1}, {1, 33, 17},  {1, 256, 33}, {2, 31, 3},
        {2, 200, 18},   {3, 64, 5},   {4, 40, 16},  {5, 100, 1},
        {6, 32, 17},    {7, 65, 2},   {8, 8, 9},    {9, 160, 7},
        {11, 63, 1},    {12, 34, 20}, {13, 70, 4},  {17, 96, 6},
        {25, 47, 11},   {37, 224, 3}, {97, 8, 24},  {130, 95, 2}}) {
    const size_t k = s.num_groups * group_size();
    SCOPED_TRACE(::testing::Message()
                 << s.num_rows << " x " << s.n << " x " << k);
    const TestMatrix input = TestMatrix::Random(s.num_rows, k, 1);
    const TestQuantized weights = Weights(s.n, k, 2);
    const std::vector<float> bias = RandomFloats(s.n, 3);
    ExpectModelBits(input.view(), weights, bias.data());
    ExpectModelBits(input.view(), weights, nullptr);
  }
}

TEST_P(QuantizedGemmTest, RowsDoNotDependOnTheirNumber) {
  constexpr size_t kRows = 512;
  constexpr size_t kN = 200;
  const size_t k = 9 * group_size();
  const TestMatrix input = TestMatrix::Random(kRows, k, 4);
  const TestQuantized weights = Weights(kN, k, 5);
  TestMatrix all(kRows, kN);
  Gemm(input.view(), PackedMatrix::Pack(weights.stored(), two_), nullptr,
       all.view(), workspace_, two_);
  for (size_t rows = 1; rows <= kRows;) {
    const size_t first = (kRows - rows) / 2;
    ForEachWay(input.view().Rows(first, first + rows), weights.stored(),
               nullptr, [&](ConstFloatMatrix output) {
                 ExpectSameBits(
                     output,
                     ConstFloatMatrix(all.view()).Rows(first, first + rows));
               });
    rows = rows < 32 ? rows + 1 : rows < 64 ? 64 : rows < 129 ? 129 : 4 * rows;
  }
}

// Rounding an input to int8 is off by up to half its group's scale, uniformly;
// the errors have random signs, so that eight standard deviations bound their
// sum. The rest is the chain's rounding.
TEST_P(QuantizedGemmTest, IsCloseToDouble) {
  constexpr size_t kRows = 9;
  constexpr size_t kN = 70;
  for (const size_t num_groups : {1, 5, 32}) {
    const size_t k = num_groups * group_size();
    const TestMatrix input = TestMatrix::Random(kRows, k, 6);
    const TestQuantized weights = Weights(kN, k, 7);
    const std::vector<double> values = weights.values();
    const PackedMatrix packed = PackedMatrix::Pack(weights.stored(), two_);
    TestMatrix output(kRows, kN);
    Gemm(input.view(), packed, nullptr, output.view(), workspace_, two_);
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t c = 0; c < kN; ++c) {
        double sum = 0;
        double variance = 0;
        double w_squares = 0;
        for (size_t i = 0; i < k; ++i) {
          const double w = values[c * k + i];
          sum += input.view().row(r)[i] * w;
          const float scale =
              reference::QuantizeGroup(
                  input.view().row(r) + i / group_size() * group_size(),
                  group_size())
                  .scale;
          variance += scale * scale / 12.0 * w * w;
          w_squares += w * w;
        }
        const double tolerance =
            8 * std::sqrt(variance) +
            DotTolerance(Norm(input.view().row(r), k), std::sqrt(w_squares));
        ASSERT_NEAR(output.view().row(r)[c], sum, tolerance) << r << " " << c;
      }
    }
  }
}

// The largest sums of pairs and of groups.
TEST_P(QuantizedGemmTest, ExtremesDoNotSaturate) {
  const size_t k = 3 * group_size();
  TestMatrix input(3, k);
  for (size_t i = 0; i < k; ++i) {
    input.view().row(0)[i] = 127.0f;
    input.view().row(1)[i] = -127.0f;
    input.view().row(2)[i] = i % 2 == 0 ? 127.0f : -127.0f;
  }
  for (const uint8_t zero : {0, 15}) {
    for (const uint8_t numbers : {0x7f, 0x81, 0x80, 0x00, 0xff, 0x0f, 0xf0}) {
      SCOPED_TRACE(::testing::Message() << "numbers " << int{numbers});
      TestQuantized weights(format(), group_size(), 40, k, 8);
      weights.FillNumbers(numbers);
      weights.FillZeros(zero);
      for (size_t i = 0; i < 40 * 3; ++i) weights.SetScale(i, 1.0f);
      ExpectModelBits(input.view(), weights, nullptr);
      // With scales of 1 all of it is exact.
      const std::vector<double> values = weights.values();
      TestMatrix output(3, 40);
      Gemm(input.view(), PackedMatrix::Pack(weights.stored(), one_), nullptr,
           output.view(), workspace_, one_);
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += 127.0 * values[i];
      EXPECT_EQ(output.view().row(0)[0], sum);
      EXPECT_EQ(output.view().row(1)[39], -sum);
    }
  }
}

// Ties go to the even number; rounding is that of the product with 127 / max.
TEST_P(QuantizedGemmTest, RoundsTiesToEven) {
  const size_t k = group_size();
  TestMatrix input(2, k);
  for (size_t i = 0; i < k; ++i) {
    input.view().row(0)[i] = static_cast<float>(i) - 10.5f;
    input.view().row(1)[i] = 0.5f - static_cast<float>(i);
  }
  input.view().row(0)[3] = 127.0f;
  input.view().row(1)[5] = -127.0f;
  ExpectModelBits(input.view(), Weights(33, k, 9), nullptr);
}

TEST_P(QuantizedGemmTest, GroupsOfZerosAndTinyNumbers) {
  const size_t k = 4 * group_size();
  TestMatrix input(4, k);
  const float tiny[] = {0.0f, std::ldexp(1.0f, -149), std::ldexp(1.0f, -101),
                        std::ldexp(1.0f, -99)};
  for (size_t r = 0; r < 4; ++r) {
    for (size_t i = 0; i < k; ++i) {
      const size_t group = i / group_size();
      // Row 0: zeros of both signs alone; else a group of each kind.
      const float value = r == 0 ? 0.0f : tiny[(group + r) % 4];
      input.view().row(r)[i] = i % 2 == 0 ? value : -value;
    }
    if (r == 3) input.view().row(r)[k - 1] = 1.0f;
  }
  const TestQuantized weights = Weights(40, k, 10);
  ExpectModelBits(input.view(), weights, nullptr);
  TestMatrix output(4, 40);
  Gemm(input.view(), PackedMatrix::Pack(weights.stored(), one_), nullptr,
       output.view(), workspace_, one_);
  for (size_t c = 0; c < 40; ++c) EXPECT_EQ(output.view().row(0)[c], 0.0f);
  EXPECT_NE(output.view().row(1)[0], 0.0f);  // 2^-99 is kept
}

TEST_P(QuantizedGemmTest, HugeNumbersAreKept) {
  const size_t k = 2 * group_size();
  TestMatrix input(1, k);
  for (size_t i = 0; i < k; ++i) {
    input.view().row(0)[i] =
        i % 3 == 0 ? std::numeric_limits<float>::max() : -1e37f;
  }
  TestQuantized weights = Weights(40, k, 11);
  for (size_t i = 0; i < 40 * 2; ++i) weights.SetScale(i, 1e-5f);
  ExpectModelBits(input.view(), weights, nullptr);
}

TEST_P(QuantizedGemmTest, NanAndInfinityMakeTheirRowNan) {
  constexpr size_t kRows = 15;
  constexpr size_t kN = 70;
  const size_t k = 5 * group_size();
  TestMatrix input = TestMatrix::Random(kRows, k, 12);
  input.view().row(2)[k - 1] = kNan;
  input.view().row(7)[40] = -kNan;
  input.view().row(9)[5] = -kInfinity;
  input.view().row(14)[0] = kInfinity;
  TestQuantized weights = Weights(kN, k, 13);
  weights.SetScale(0, 0.0f);
  TestMatrix expected(kRows, kN);
  reference::QuantizedGemm(input.view(), weights.stored(), nullptr,
                           expected.view());
  ForEachWay(
      input.view(), weights.stored(), nullptr, [&](ConstFloatMatrix output) {
        for (size_t r = 0; r < kRows; ++r) {
          const bool bad = r == 2 || r == 7 || r == 9 || r == 14;
          for (size_t c = 0; c < kN; ++c) {
            ASSERT_EQ(std::isnan(output.row(r)[c]), bad) << r << " " << c;
          }
          if (bad) continue;
          ExpectSameBits(output.Rows(r, r + 1),
                         ConstFloatMatrix(expected.view()).Rows(r, r + 1));
        }
      });
}

// Scales of 0 and below the normal range of float16 are numbers like others.
TEST_P(QuantizedGemmTest, SmallWeightScales) {
  const size_t k = 2 * group_size();
  const TestMatrix input = TestMatrix::Random(5, k, 14);
  TestQuantized weights = Weights(33, k, 15);
  for (size_t i = 0; i < 33 * 2; ++i) {
    weights.SetScale(i, i % 3 == 0 ? 0.0f : std::ldexp(i % 7 + 1.0f, -24));
  }
  ExpectModelBits(input.view(), weights, nullptr);
}

TEST_P(QuantizedGemmTest, NoRowsWriteNothing) {
  const PackedMatrix packed =
      PackedMatrix::Pack(Weights(40, group_size(), 16).stored(), two_);
  Gemm(ConstFloatMatrix(nullptr, 0, group_size()), packed, nullptr,
       FloatMatrix(nullptr, 0, 40), workspace_, two_);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedGemmTest,
                         ::testing::ValuesIn(AllQuantized()),
                         [](const auto& test) { return NameOf(test.param); });

TEST(DotProductInstructionsTest, RunHere) {
  const std::vector<std::string> sets = AvailableInstructionSets();
  if (std::find(sets.begin(), sets.end(), "AVX3_DL") == sets.end()) {
    GTEST_SKIP() << "this processor has no AVX-512 dot products (VNNI): their "
                    "path was tested with the instruction emulated";
  }
}

}  // namespace
}  // namespace troupe
