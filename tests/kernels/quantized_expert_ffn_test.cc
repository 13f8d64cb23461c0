// Experts on quantised weights, formats and group sizes mixed.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/expert_ffn.h"
#include "kernels/reference/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

// A matrix of any format, as a checkpoint holds it.
class AnyMatrix {
 public:
  // group_size 0 where the format is not quantised.
  AnyMatrix(WeightFormat format, size_t group_size, size_t n, size_t k,
            uint32_t seed) {
    const float deviation = 1.0f / std::sqrt(static_cast<float>(k));
    if (IsQuantized(format)) {
      quantized_ = std::make_unique<TestQuantized>(format, group_size, n, k,
                                                   seed, deviation);
    } else {
      floats_ = std::make_unique<TestWeights>(static_cast<DataType>(format), n,
                                              k, seed, deviation);
    }
  }

  StoredMatrix stored() const {
    if (quantized_) return quantized_->stored();
    return {.format = FormatOf(floats_->dtype()),
            .n = floats_->n(),
            .k = floats_->k(),
            .numbers = floats_->data()};
  }

  // input x this^T in the arithmetic of the kernels, one row.
  std::vector<float> Multiply(const std::vector<float>& input) const {
    const StoredMatrix m = stored();
    std::vector<float> output(m.n);
    if (quantized_) {
      reference::QuantizedGemm({input.data(), 1, m.k}, m, nullptr,
                               {output.data(), 1, m.n});
      return output;
    }
    for (size_t c = 0; c < m.n; ++c) {
      for (size_t i = 0; i < m.k; ++i) {
        output[c] = std::fma(input[i], floats_->view().row(c)[i], output[c]);
      }
    }
    return output;
  }

 private:
  std::unique_ptr<TestWeights> floats_;
  std::unique_ptr<TestQuantized> quantized_;
};

struct ExpertFormats {
  WeightFormat gate_up;
  size_t gate_up_group;
  WeightFormat down;
  size_t down_group;
};

const ExpertFormats kFormats[] = {
    {WeightFormat::kInt8, 32, WeightFormat::kInt8, 32},
    {WeightFormat::kInt8, 64, WeightFormat::kInt8, 64},
    {WeightFormat::kInt4, 32, WeightFormat::kInt4, 32},
    {WeightFormat::kInt4, 64, WeightFormat::kInt8, 32},
    {WeightFormat::kInt4Zero, 32, WeightFormat::kInt4Zero, 64},
    {WeightFormat::kInt4Zero, 64, WeightFormat::kInt4Zero, 32},
    {WeightFormat::kInt4, 32, WeightFormat::kBF16, 0},
    {WeightFormat::kF16, 0, WeightFormat::kInt4, 64},
    {WeightFormat::kF32, 0, WeightFormat::kInt8, 64},
    {WeightFormat::kBF16, 0, WeightFormat::kBF16, 0},
};

struct TestExpert {
  TestExpert(const ExpertFormats& f, size_t hidden_size,
             size_t intermediate_size, uint32_t seed, ThreadPool& pool)
      : gate(f.gate_up, f.gate_up_group, intermediate_size, hidden_size, seed),
        up(f.gate_up, f.gate_up_group, intermediate_size, hidden_size,
           seed + 1),
        down(f.down, f.down_group, hidden_size, intermediate_size, seed + 2) {
    packed.gate_up = PackedMatrix::PackGateUp(gate.stored(), up.stored(), pool);
    packed.down = PackedMatrix::Pack(down.stored(), pool);
  }

  AnyMatrix gate;
  AnyMatrix up;
  AnyMatrix down;
  GatedMlpWeights packed;
};

class QuantizedExpertFfnTest : public ::testing::Test {
 protected:
  // silu(gate x) * (up x) of one row with the kernels' bits: a down projection
  // that is the identity passes them on.
  std::vector<float> Activations(const TestExpert& expert, const float* input,
                                 size_t hidden_size, size_t intermediate_size) {
    GatedMlpWeights weights;
    weights.gate_up = PackedMatrix::PackGateUp(expert.gate.stored(),
                                               expert.up.stored(), one_);
    // The identity takes hidden_size outputs at a time.
    std::vector<float> activations(intermediate_size);
    for (size_t first = 0; first < intermediate_size; first += hidden_size) {
      std::vector<float> identity(hidden_size * intermediate_size, 0.0f);
      const size_t count = std::min(hidden_size, intermediate_size - first);
      for (size_t i = 0; i < count; ++i) {
        identity[i * intermediate_size + first + i] = 1.0f;
      }
      weights.down = PackedMatrix::Pack(DataType::kF32, identity.data(),
                                        hidden_size, intermediate_size, one_);
      std::vector<float> output(hidden_size);
      GatedMlp({input, 1, hidden_size}, weights,
               {output.data(), 1, hidden_size}, workspace_, one_);
      std::copy_n(output.data(), count, activations.data() + first);
    }
    return activations;
  }

  ThreadPool one_{1};
  ThreadPool two_{2};
  Workspace workspace_;
};

// gate and up, the activation and down in turn give the bits of the whole; the
// activation itself is close to that in double.
TEST_F(QuantizedExpertFfnTest, IsItsThreePartsInTurn) {
  constexpr size_t kHidden = 128;
  constexpr size_t kIntermediate = 448;
  for (const ExpertFormats& formats : kFormats) {
    SCOPED_TRACE(::testing::Message()
                 << Name(formats.gate_up) << " " << formats.gate_up_group
                 << ", down " << Name(formats.down) << " "
                 << formats.down_group);
    const TestExpert expert(formats, kHidden, kIntermediate, 20, two_);
    const TestMatrix input = TestMatrix::Random(3, kHidden, 21);
    TestMatrix expected(3, kHidden);
    for (size_t r = 0; r < 3; ++r) {
      const float* row = input.view().row(r);
      const std::vector<float> activations =
          Activations(expert, row, kHidden, kIntermediate);
      const std::vector<float> x(row, row + kHidden);
      const std::vector<float> gate = expert.gate.Multiply(x);
      const std::vector<float> up = expert.up.Multiply(x);
      for (size_t i = 0; i < kIntermediate; ++i) {
        const double silu =
            gate[i] / (1 + std::exp(-static_cast<double>(gate[i])));
        ASSERT_NEAR(activations[i], silu * up[i],
                    8 * kEpsilon * std::abs(silu * up[i]));
      }
      const std::vector<float> output = expert.down.Multiply(activations);
      std::copy_n(output.data(), kHidden, expected.view().row(r));
    }
    ForEachInstructionSet([&] {
      for (ThreadPool* pool : {&one_, &two_}) {
        TestMatrix actual(3, kHidden);
        GatedMlp(input.view(), expert.packed, actual.view(), workspace_, *pool);
        actual.ExpectMarksUntouched();
        ExpectSameBits(actual.view(), expected.view());
      }
    });
  }
}

// Every expert of the call has formats of its own; some have no copies, some
// one, some many. Each copy has the bits that it has alone.
TEST_F(QuantizedExpertFfnTest, FormatsMixInOneCall) {
  constexpr size_t kHidden = 192;
  constexpr size_t kIntermediate = 320;
  constexpr size_t kTokens = 40;
  const TestMatrix hidden_states = TestMatrix::Random(kTokens, kHidden, 22);
  std::vector<std::unique_ptr<TestExpert>> experts;
  std::vector<const GatedMlpWeights*> packed;
  std::vector<uint32_t> row_of_copy;
  std::vector<uint32_t> offsets = {0};
  const size_t copies_of[] = {1, 37, 0, 8, 2, 16, 5, 129, 3, 40};
  for (const ExpertFormats& formats : kFormats) {
    const size_t e = experts.size();
    experts.push_back(std::make_unique<TestExpert>(
        formats, kHidden, kIntermediate, 30 + 3 * e, two_));
    packed.push_back(&experts.back()->packed);
    for (size_t i = 0; i < copies_of[e]; ++i) {
      row_of_copy.push_back(static_cast<uint32_t>((7 * i + e) % kTokens));
    }
    offsets.push_back(static_cast<uint32_t>(row_of_copy.size()));
  }
  TestMatrix expected(row_of_copy.size(), kHidden);
  for (size_t e = 0; e < experts.size(); ++e) {
    for (uint32_t copy = offsets[e]; copy < offsets[e + 1]; ++copy) {
      const uint32_t row = row_of_copy[copy];
      GatedMlp(hidden_states.view().Rows(row, row + 1), *packed[e],
               expected.view().Rows(copy, copy + 1), workspace_, one_);
    }
  }
  ForEachInstructionSet([&] {
    for (ThreadPool* pool : {&one_, &two_}) {
      TestMatrix actual(row_of_copy.size(), kHidden);
      GroupedGatedMlp(hidden_states.view(), row_of_copy, offsets, packed,
                      actual.view(), workspace_, *pool);
      actual.ExpectMarksUntouched();
      ExpectSameBits(actual.view(), expected.view());
    }
  });
}

TEST_F(QuantizedExpertFfnTest, RowsDoNotDependOnTheirNumber) {
  constexpr size_t kHidden = 96;
  constexpr size_t kIntermediate = 576;
  const TestMatrix input = TestMatrix::Random(512, kHidden, 23);
  for (const ExpertFormats& formats :
       {ExpertFormats{WeightFormat::kInt8, 32, WeightFormat::kInt8, 64},
        ExpertFormats{WeightFormat::kInt4, 32, WeightFormat::kInt4Zero, 64}}) {
    const TestExpert expert(formats, kHidden, kIntermediate, 24, two_);
    TestMatrix all(512, kHidden);
    GatedMlp(input.view(), expert.packed, all.view(), workspace_, one_);
    ForEachInstructionSet([&] {
      for (const size_t rows :
           {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 25, 32, 64, 129}) {
        TestMatrix some(rows, kHidden);
        GatedMlp(input.view().Rows(100, 100 + rows), expert.packed, some.view(),
                 workspace_, two_);
        ExpectSameBits(some.view(),
                       ConstFloatMatrix(all.view()).Rows(100, 100 + rows));
      }
    });
  }
}

TEST_F(QuantizedExpertFfnTest, NanStaysInItsRow) {
  const TestExpert expert(kFormats[2], 64, 96, 25, two_);
  TestMatrix input = TestMatrix::Random(9, 64, 26);
  input.view().row(4)[63] = kNan;
  input.view().row(7)[0] = -kInfinity;
  ForEachInstructionSet([&] {
    TestMatrix output(9, 64);
    GatedMlp(input.view(), expert.packed, output.view(), workspace_, two_);
    for (size_t r = 0; r < 9; ++r) {
      for (size_t c = 0; c < 64; ++c) {
        EXPECT_EQ(std::isnan(output.view().row(r)[c]), r == 4 || r == 7);
      }
    }
  });
}

}  // namespace
}  // namespace troupe
