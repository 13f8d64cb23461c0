#include "kernels/cpu_features.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cpu/instruction_set.h"

namespace troupe {
namespace {

TEST(CpuFeaturesTest, ThisProcessorRunsTheKernels) {
  EXPECT_EQ(MissingCpuFeatures(), "");
}

TEST(CpuFeaturesTest, TheBestInstructionSetIsChosen) {
  const std::vector<std::string> names = AvailableInstructionSets();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(ChosenInstructionSet(), names[0]);
  for (const std::string& name : names) {
    UseInstructionSetForTest(name);
    EXPECT_EQ(ChosenInstructionSet(), name);
  }
  UseInstructionSetForTest("");
  EXPECT_EQ(ChosenInstructionSet(), names[0]);
}

#if defined(__x86_64__)
TEST(CpuFeaturesTest, Avx2IsTheLeast) {
  EXPECT_EQ(AvailableInstructionSets().back(), "AVX2");
}
#endif

}  // namespace
}  // namespace troupe
