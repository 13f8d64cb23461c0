#include "kernels/workspace.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

namespace troupe {
namespace {

TEST(WorkspaceTest, SlotsAreAlignedAndApart) {
  Workspace workspace;
  float* slots[Workspace::kNumSlots];
  for (size_t s = 0; s < Workspace::kNumSlots; ++s) {
    slots[s] = workspace.Floats(s, 100 + s);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slots[s]) % 64, 0u);
    std::memset(slots[s], static_cast<int>(s), (100 + s) * sizeof(float));
  }
  for (size_t s = 0; s < Workspace::kNumSlots; ++s) {
    EXPECT_EQ(reinterpret_cast<char*>(slots[s])[(100 + s) * 4 - 1],
              static_cast<char>(s));
  }
}

TEST(WorkspaceTest, GrowsButDoesNotShrink) {
  Workspace workspace;
  float* large = workspace.Floats(2, 10'000'000);  // huge pages
  large[9'999'999] = 1.0f;
  EXPECT_EQ(workspace.Floats(2, 1), large);
  EXPECT_EQ(workspace.Floats(2, 10'000'000), large);
}

TEST(WorkspaceTest, NothingIsSomething) {
  Workspace workspace;
  EXPECT_NE(workspace.Floats(0, 0), nullptr);
}

}  // namespace
}  // namespace troupe
