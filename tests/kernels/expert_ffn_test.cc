#include "kernels/expert_ffn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/reference/expert_ffn.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

// One expert: its weights as a checkpoint has them, and packed.
struct TestExpert {
  TestExpert(DataType dtype, size_t hidden_size, size_t intermediate_size,
             uint32_t seed, ThreadPool& pool)
      : gate(dtype, intermediate_size, hidden_size, seed,
             1.0f / std::sqrt(static_cast<float>(hidden_size))),
        up(dtype, intermediate_size, hidden_size, seed + 1,
           1.0f / std::sqrt(static_cast<float>(hidden_size))),
        down(dtype, hidden_size, intermediate_size, seed + 2,
             1.0f / std::sqrt(static_cast<float>(intermediate_size))) {
    packed.gate_up = PackedMatrix::PackGateUp(
        dtype, gate.data(), up.data(), intermediate_size, hidden_size, pool);
    packed.down = PackedMatrix::Pack(dtype, down.data(), hidden_size,
                                     intermediate_size, pool);
  }

  reference::GatedMlpWeights views() const {
    return {gate.view(), up.view(), down.view()};
  }

  TestWeights gate;
  TestWeights up;
  TestWeights down;
  GatedMlpWeights packed;
};

// The error of gate and up goes through the activation (silu' <= 1.1) and the
// down projection; the norms of both parts add up.
std::vector<double> RowTolerances(ConstFloatMatrix input,
                                  const TestExpert& expert) {
  std::vector<double> tolerances;
  const size_t hidden_size = input.cols;
  for (size_t r = 0; r < input.rows; ++r) {
    const double x_norm = Norm(input.row(r), hidden_size);
    double squares = 0;
    double error_squares = 0;
    for (size_t i = 0; i < expert.gate.n(); ++i) {
      double gate = 0;
      double up = 0;
      for (size_t k = 0; k < hidden_size; ++k) {
        gate +=
            static_cast<double>(input.row(r)[k]) * expert.gate.view().row(i)[k];
        up += static_cast<double>(input.row(r)[k]) * expert.up.view().row(i)[k];
      }
      const double silu = gate / (1 + std::exp(-gate));
      const double gate_error =
          DotTolerance(x_norm, Norm(expert.gate.view().row(i), hidden_size));
      const double up_error =
          DotTolerance(x_norm, Norm(expert.up.view().row(i), hidden_size));
      const double error = 1.1 * gate_error * std::abs(up) +
                           up_error * std::abs(silu) +
                           8 * kEpsilon * std::abs(silu * up);
      squares += silu * up * silu * up;
      error_squares += error * error;
    }
    tolerances.push_back(8 * kEpsilon * std::sqrt(squares) +
                         std::sqrt(error_squares));
  }
  return tolerances;
}

class ExpertFfnTest : public ::testing::TestWithParam<DataType> {
 protected:
  ThreadPool one_{1};
  ThreadPool two_{2};
  Workspace workspace_;
};

TEST_P(ExpertFfnTest, GatedMlpIsCloseToTheReference) {
  struct Shape {
    size_t rows, hidden_size, intermediate_size;
  };
  for (const Shape& s :
       {Shape{1, 1, 1}, Shape{1, 96, 300}, Shape{2, 33, 31}, Shape{3, 40, 64},
        Shape{5, 128, 70}, Shape{7, 65, 33}, Shape{13, 64, 545},
        Shape{30, 530, 128}, Shape{61, 100, 1025}}) {
    SCOPED_TRACE(::testing::Message() << s.rows << " rows, " << s.hidden_size
                                      << " x " << s.intermediate_size);
    const TestExpert expert(GetParam(), s.hidden_size, s.intermediate_size, 1,
                            two_);
    const TestMatrix input = TestMatrix::Random(s.rows, s.hidden_size, 9);
    TestMatrix expected(s.rows, s.hidden_size);
    reference::GatedMlp(input.view(), expert.views(), expected.view());
    const std::vector<double> tolerances = RowTolerances(input.view(), expert);
    ForEachInstructionSet([&] {
      TestMatrix actual(s.rows, s.hidden_size);
      GatedMlp(input.view(), expert.packed, actual.view(), workspace_, two_);
      actual.ExpectMarksUntouched();
      ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
        return tolerances[r] *
               Norm(expert.down.view().row(c), s.intermediate_size);
      });
    });
  }
}

// Experts with many copies, one, and none, first and last too.
struct Routing {
  Routing(std::vector<uint32_t> copies_per_expert, size_t num_tokens) {
    expert_offsets.push_back(0);
    for (const uint32_t count : copies_per_expert) {
      expert_offsets.push_back(expert_offsets.back() + count);
    }
    std::mt19937 generator(7);
    for (uint32_t i = 0; i < expert_offsets.back(); ++i) {
      row_of_copy.push_back(generator() % num_tokens);
    }
  }

  std::vector<uint32_t> expert_offsets;
  std::vector<uint32_t> row_of_copy;
};

const std::vector<std::vector<uint32_t>> kCopiesPerExpert = {
    {1},       {0, 1, 0},          {2, 0, 3},
    {5, 6, 7}, {0, 25, 1, 12, 0},  {1, 1, 1, 1, 1, 1, 1, 1},
    {0, 0},    {100, 0, 13, 1, 4}, {512, 3}};

TEST_P(ExpertFfnTest, GroupedIsCloseToTheReference) {
  constexpr size_t kHidden = 72;
  constexpr size_t kIntermediate = 100;
  constexpr size_t kTokens = 40;
  const TestMatrix hidden_states = TestMatrix::Random(kTokens, kHidden, 20);
  for (const std::vector<uint32_t>& copies : kCopiesPerExpert) {
    SCOPED_TRACE(::testing::PrintToString(copies));
    const Routing routing(copies, kTokens);
    std::vector<std::unique_ptr<TestExpert>> experts;
    std::vector<reference::GatedMlpWeights> views;
    std::vector<const GatedMlpWeights*> packed;
    for (size_t e = 0; e < copies.size(); ++e) {
      experts.push_back(std::make_unique<TestExpert>(
          GetParam(), kHidden, kIntermediate, 30 + 3 * e, one_));
      views.push_back(experts.back()->views());
      packed.push_back(&experts.back()->packed);
    }
    const size_t num_copies = routing.row_of_copy.size();
    TestMatrix expected(num_copies, kHidden);
    reference::GroupedGatedMlp(hidden_states.view(), routing.row_of_copy,
                               routing.expert_offsets, views, expected.view());
    TestMatrix actual(num_copies, kHidden);
    GroupedGatedMlp(hidden_states.view(), routing.row_of_copy,
                    routing.expert_offsets, packed, actual.view(), workspace_,
                    two_);
    actual.ExpectMarksUntouched();
    std::vector<std::vector<double>> tolerances;
    for (const auto& expert : experts) {
      tolerances.push_back(RowTolerances(hidden_states.view(), *expert));
    }
    size_t expert = 0;
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      expert = 0;
      while (routing.expert_offsets[expert + 1] <= r) ++expert;
      return tolerances[expert][routing.row_of_copy[r]] *
             Norm(experts[expert]->down.view().row(c), kIntermediate);
    });
  }
}

TEST_P(ExpertFfnTest, CopiesDoNotDependOnOthersThreadsOrInstructionSet) {
  constexpr size_t kHidden = 550;
  constexpr size_t kIntermediate = 600;
  constexpr size_t kTokens = 50;
  constexpr size_t kExperts = 5;
  const TestMatrix hidden_states = TestMatrix::Random(kTokens, kHidden, 40);
  const Routing routing({60, 0, 14, 1, 7}, kTokens);
  std::vector<std::unique_ptr<TestExpert>> experts;
  std::vector<const GatedMlpWeights*> packed;
  for (size_t e = 0; e < kExperts; ++e) {
    experts.push_back(std::make_unique<TestExpert>(
        GetParam(), kHidden, kIntermediate, 50 + 3 * e, two_));
    packed.push_back(&experts.back()->packed);
  }

  // One by one, on one thread, with the first instruction set.
  const size_t num_copies = routing.row_of_copy.size();
  TestMatrix expected(num_copies, kHidden);
  for (size_t e = 0; e < kExperts; ++e) {
    for (uint32_t copy = routing.expert_offsets[e];
         copy < routing.expert_offsets[e + 1]; ++copy) {
      const uint32_t row = routing.row_of_copy[copy];
      GatedMlp(hidden_states.view().Rows(row, row + 1), *packed[e],
               expected.view().Rows(copy, copy + 1), workspace_, one_);
    }
  }

  ForEachInstructionSet([&] {
    for (ThreadPool* pool : {&one_, &two_}) {
      TestMatrix actual(num_copies, kHidden);
      GroupedGatedMlp(hidden_states.view(), routing.row_of_copy,
                      routing.expert_offsets, packed, actual.view(), workspace_,
                      *pool);
      ExpectSameBits(actual.view(), expected.view());
    }
  });
}

TEST_P(ExpertFfnTest, NoCopiesWriteNothing) {
  const TestExpert expert(GetParam(), 32, 64, 60, two_);
  const GatedMlpWeights* experts[] = {&expert.packed, &expert.packed};
  const uint32_t expert_offsets[] = {0, 0, 0};
  GroupedGatedMlp(ConstFloatMatrix(nullptr, 0, 32), {}, expert_offsets, experts,
                  FloatMatrix(nullptr, 0, 32), workspace_, two_);
  GatedMlp(ConstFloatMatrix(nullptr, 0, 32), expert.packed,
           FloatMatrix(nullptr, 0, 32), workspace_, two_);
}

TEST_P(ExpertFfnTest, NanStaysInItsRow) {
  const TestExpert expert(GetParam(), 48, 80, 70, two_);
  ForEachInstructionSet([&] {
    TestMatrix input = TestMatrix::Random(15, 48, 71);
    input.view().row(4)[47] = kNan;
    input.view().row(9)[0] = kInfinity;
    TestMatrix output(15, 48);
    GatedMlp(input.view(), expert.packed, output.view(), workspace_, two_);
    for (size_t r = 0; r < 15; ++r) {
      for (size_t c = 0; c < 48; ++c) {
        EXPECT_EQ(std::isfinite(output.view().row(r)[c]), r != 4 && r != 9)
            << r << " " << c;
      }
    }
  });
}

// silu far from 0: x on the right, 0 on the left, no overflow on the way.
TEST_P(ExpertFfnTest, ActivationSaturates) {
  for (const float gate : {100.0f, 1e30f, -100.0f, -1e30f, -80.0f}) {
    const size_t kSize = 32;
    TestWeights zero(GetParam(), kSize, kSize, 80, 0.0f);
    TestWeights one = zero;
    for (size_t i = 0; i < kSize; ++i) one.Set(i * kSize + i, 1.0f);
    TestWeights first = zero;  // up = 1: the last input
    for (size_t i = 0; i < kSize; ++i) first.Set(i * kSize + kSize - 1, 1.0f);
    GatedMlpWeights weights;
    weights.gate_up = PackedMatrix::PackGateUp(
        GetParam(), one.data(), first.data(), kSize, kSize, one_);
    weights.down =
        PackedMatrix::Pack(GetParam(), one.data(), kSize, kSize, one_);
    TestMatrix input(1, kSize);
    for (size_t i = 0; i < kSize; ++i) input.view().row(0)[i] = gate;
    input.view().row(0)[kSize - 1] = 1.0f;
    TestMatrix output(1, kSize);
    ForEachInstructionSet([&] {
      GatedMlp(input.view(), weights, output.view(), workspace_, one_);
      const double expected = gate / (1 + std::exp(-static_cast<double>(gate)));
      // Where exp(-x) overflows, below x = -88.7, silu is 0.
      EXPECT_NEAR(output.view().row(0)[0], expected,
                  8 * kEpsilon * std::abs(expected) + 3e-37);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(DataTypes, ExpertFfnTest,
                         ::testing::Values(DataType::kF32, DataType::kBF16,
                                           DataType::kF16),
                         [](const auto& test) { return Name(test.param); });

}  // namespace
}  // namespace troupe
