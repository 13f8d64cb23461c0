#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "kernels/reference/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

class PackedMatrixTest : public ::testing::TestWithParam<DataType> {
 protected:
  ThreadPool pool_{2};
};

// Every number is at its place with its bits, and outputs past n are zero.
void ExpectHolds(const PackedMatrix& packed, size_t part,
                 const TestWeights& weights) {
  const size_t padded = packed.num_panels() / (packed.is_gate_up() ? 2 : 1) *
                        PackedMatrix::kPanelCols;
  ASSERT_LT(padded - weights.n(), PackedMatrix::kPanelCols);
  for (size_t output = 0; output < padded; ++output) {
    for (size_t k = 0; k < weights.k(); ++k) {
      const float value =
          output < weights.n() ? weights.view().row(output)[k] : 0.0f;
      ASSERT_EQ(std::bit_cast<uint32_t>(static_cast<float>(
                    reference::PackedWeight(packed, part, output, k))),
                std::bit_cast<uint32_t>(value))
          << "output " << output << " k " << k;
    }
  }
}

TEST_P(PackedMatrixTest, HoldsEachWeightAtItsPlace) {
  ForEachInstructionSet([&] {
    for (const auto& [n, k] : {std::pair<size_t, size_t>{1, 1},
                               {31, 5},
                               {32, 8},
                               {33, 32},
                               {64, 33},
                               {95, 71},
                               {100, 100}}) {
      SCOPED_TRACE(::testing::Message() << n << " x " << k);
      const TestWeights weights(GetParam(), n, k, 1);
      const PackedMatrix packed =
          PackedMatrix::Pack(GetParam(), weights.data(), n, k, pool_);
      EXPECT_FALSE(packed.empty());
      EXPECT_FALSE(packed.is_gate_up());
      EXPECT_EQ(packed.n(), n);
      EXPECT_EQ(packed.k(), k);
      EXPECT_EQ(packed.format(), FormatOf(GetParam()));
      EXPECT_EQ(packed.group_size(), 0u);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(packed.panel(0)) % 64, 0u);
      ExpectHolds(packed, 0, weights);
    }
  });
}

TEST_P(PackedMatrixTest, AlternatesGateAndUp) {
  const TestWeights gate(GetParam(), 70, 45, 2);
  const TestWeights up(GetParam(), 70, 45, 3);
  const PackedMatrix packed = PackedMatrix::PackGateUp(
      GetParam(), gate.data(), up.data(), 70, 45, pool_);
  EXPECT_TRUE(packed.is_gate_up());
  EXPECT_EQ(packed.n(), 70u);
  EXPECT_EQ(packed.num_panels(), 6u);
  EXPECT_EQ(packed.num_bytes(), 6 * 32 * 45 * SizeOf(GetParam()));
  ExpectHolds(packed, 0, gate);
  ExpectHolds(packed, 1, up);
}

// Large enough for huge pages.
TEST_P(PackedMatrixTest, PacksALargeMatrix) {
  const TestWeights weights(GetParam(), 1000, 2100, 4);
  const PackedMatrix packed =
      PackedMatrix::Pack(GetParam(), weights.data(), 1000, 2100, pool_);
  for (size_t output = 0; output < 1000; output += 37) {
    for (size_t k = 0; k < 2100; ++k) {
      ASSERT_EQ(reference::PackedWeight(packed, 0, output, k),
                weights.view().row(output)[k]);
    }
  }
}

TEST_P(PackedMatrixTest, MovesWithItsMemory) {
  const TestWeights weights(GetParam(), 40, 10, 5);
  PackedMatrix a =
      PackedMatrix::Pack(GetParam(), weights.data(), 40, 10, pool_);
  const uint8_t* panel = a.panel(0);
  PackedMatrix b = std::move(a);
  EXPECT_TRUE(a.empty());  // NOLINT: the state after a move is promised
  EXPECT_EQ(b.panel(0), panel);
  PackedMatrix c =
      PackedMatrix::Pack(GetParam(), weights.data(), 40, 10, pool_);
  c = std::move(b);
  EXPECT_TRUE(b.empty());  // NOLINT
  EXPECT_EQ(c.panel(0), panel);
  ExpectHolds(c, 0, weights);
}

INSTANTIATE_TEST_SUITE_P(DataTypes, PackedMatrixTest,
                         ::testing::Values(DataType::kF32, DataType::kBF16,
                                           DataType::kF16),
                         [](const auto& test) { return Name(test.param); });

class PackedQuantizedTest : public ::testing::TestWithParam<QuantizedParam> {
 protected:
  ThreadPool pool_{2};
};

void ExpectHolds(const PackedMatrix& packed, size_t part,
                 const TestQuantized& weights) {
  const StoredMatrix stored = weights.stored();
  const std::vector<double> values = weights.values();
  const size_t padded = packed.num_panels() / (packed.is_gate_up() ? 2 : 1) *
                        PackedMatrix::kPanelCols;
  for (size_t output = 0; output < padded; ++output) {
    for (size_t k = 0; k < stored.k; ++k) {
      ASSERT_EQ(reference::PackedWeight(packed, part, output, k),
                output < stored.n ? values[output * stored.k + k] : 0.0)
          << "output " << output << " k " << k;
    }
  }
}

TEST_P(PackedQuantizedTest, HoldsEachWeightAtItsPlace) {
  const auto [format, group_size] = GetParam();
  ForEachInstructionSet([&, format = format, group_size = group_size] {
    for (const size_t num_groups : {1, 2, 3, 7, 8, 9, 33}) {
      for (const size_t n : {1, 31, 32, 33, 100}) {
        const size_t k = num_groups * group_size;
        SCOPED_TRACE(::testing::Message() << n << " x " << k);
        const TestQuantized weights(format, group_size, n, k, 6);
        const PackedMatrix packed = PackedMatrix::Pack(weights.stored(), pool_);
        EXPECT_EQ(packed.format(), format);
        EXPECT_EQ(packed.group_size(), group_size);
        EXPECT_EQ(packed.n(), n);
        EXPECT_EQ(packed.k(), k);
        const size_t bits = format == WeightFormat::kInt8 ? 8 : 4;
        EXPECT_EQ(
            packed.num_bytes(),
            packed.num_panels() * 32 *
                (k * bits / 8 +
                 num_groups * (format == WeightFormat::kInt4Zero ? 3 : 2)));
        ExpectHolds(packed, 0, weights);
      }
    }
  });
}

TEST_P(PackedQuantizedTest, AlternatesGateAndUp) {
  const auto [format, group_size] = GetParam();
  const TestQuantized gate(format, group_size, 70, 192, 7);
  const TestQuantized up(format, group_size, 70, 192, 8);
  const PackedMatrix packed =
      PackedMatrix::PackGateUp(gate.stored(), up.stored(), pool_);
  EXPECT_TRUE(packed.is_gate_up());
  EXPECT_EQ(packed.num_panels(), 6u);
  ExpectHolds(packed, 0, gate);
  ExpectHolds(packed, 1, up);
}

TEST_P(PackedQuantizedTest, RefusesHalfAGroup) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto [format, group_size] = GetParam();
  const TestQuantized weights(format, group_size, 8, 2 * group_size, 9);
  StoredMatrix stored = weights.stored();
  stored.k -= group_size / 2;
  EXPECT_DEATH(PackedMatrix::Pack(stored, pool_), "group_size");
  stored = weights.stored();
  stored.group_size = 16;
  EXPECT_DEATH(PackedMatrix::Pack(stored, pool_), "group_size");
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedQuantizedTest,
                         ::testing::ValuesIn(AllQuantized()),
                         [](const auto& test) { return NameOf(test.param); });

}  // namespace
}  // namespace troupe
