#include "cluster/collapse_detector.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

SteadyTime At(int seconds) {
  return SteadyTime() + std::chrono::seconds(1000 + seconds);
}

CollapseOptions Bound() {
  CollapseOptions options;
  options.share = 0.8;
  options.margin = 0.1;
  options.min_copies = 100;
  options.warn_every = milliseconds(10000);
  return options;
}

TEST(CollapseDetector, SaysWhichExpertsAndHowMuch) {
  CollapseDetector detector(Bound(), 3, 2);
  EXPECT_EQ(detector.Look(1, {30, 30, 30, 30}, At(0)), "");
  EXPECT_TRUE(detector.Collapsed(At(0)).empty());
  EXPECT_THAT(detector.Look(1, {100, 5, 5, 90}, At(1)),
              HasSubstr("95% of the copies of layer 1 go to 2 of 4 experts "
                        "(0, 3; bound 80%)"));
  const auto collapsed = detector.Collapsed(At(3));
  ASSERT_EQ(collapsed.size(), 1u);
  EXPECT_EQ(collapsed[0].layer(), 1u);
  EXPECT_THAT(collapsed[0].experts(), ElementsAre(0, 3));
  EXPECT_DOUBLE_EQ(collapsed[0].share(), 0.95);
  EXPECT_DOUBLE_EQ(collapsed[0].for_seconds(), 2);
  EXPECT_EQ(detector.num_collapses(), 1u);
}

TEST(CollapseDetector, ExactlyTheBoundIsAllowed) {
  CollapseDetector detector(Bound(), 1, 2);
  EXPECT_EQ(detector.Look(0, {80, 80, 20, 20}, At(0)), "");
  EXPECT_NE(detector.Look(0, {81, 80, 20, 19}, At(0)), "");
}

TEST(CollapseDetector, NeedsAMinimumOfCopies) {
  CollapseDetector detector(Bound(), 1, 1);
  EXPECT_EQ(detector.Look(0, {99, 0}, At(0)), "");
  EXPECT_NE(detector.Look(0, {100, 0}, At(0)), "");
  // Faded away: nothing is known any more.
  EXPECT_EQ(detector.Look(0, {50, 0}, At(1)), "");
  EXPECT_TRUE(detector.Collapsed(At(1)).empty());
}

TEST(CollapseDetector, WarnsOfALayerOnlyFromTimeToTime) {
  CollapseDetector detector(Bound(), 2, 1);
  EXPECT_NE(detector.Look(0, {100, 1}, At(0)), "");
  EXPECT_EQ(detector.Look(0, {100, 1}, At(9)), "");
  // Another layer is other news.
  EXPECT_NE(detector.Look(1, {100, 1}, At(9)), "");
  EXPECT_NE(detector.Look(0, {100, 1}, At(10)), "");
  // Nor does a layer that comes and goes warn more often.
  EXPECT_EQ(detector.Look(0, {60, 60}, At(11)), "");
  EXPECT_EQ(detector.Look(0, {100, 1}, At(12)), "");
  EXPECT_EQ(detector.num_collapses(), 3u);
}

TEST(CollapseDetector, EndsOnlyWellBelowTheBound) {
  CollapseDetector detector(Bound(), 1, 1);
  detector.Look(0, {85, 15}, At(0));
  detector.Look(0, {75, 25}, At(1));
  EXPECT_EQ(detector.Collapsed(At(1)).size(), 1u);
  detector.Look(0, {70, 30}, At(2));
  EXPECT_TRUE(detector.Collapsed(At(2)).empty());
  detector.Look(0, {75, 25}, At(3));
  EXPECT_TRUE(detector.Collapsed(At(3)).empty());
  EXPECT_EQ(detector.num_collapses(), 1u);
}

TEST(CollapseDetector, TokensThatGoToAllExpertsAreNoCollapse) {
  CollapseDetector detector(Bound(), 1, 2);
  EXPECT_EQ(detector.Look(0, {1000, 1000}, At(0)), "");
}

}  // namespace
}  // namespace troupe
