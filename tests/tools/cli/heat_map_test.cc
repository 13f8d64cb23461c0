#include "tools/cli/heat_map.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

TEST(ImbalanceTest, MaxOverMean) {
  EXPECT_EQ(Imbalance({5, 5, 5, 5}), 1);
  EXPECT_EQ(Imbalance({20, 0, 0, 0}), 4);
  EXPECT_EQ(Imbalance({3, 1}), 1.5);
  EXPECT_EQ(Imbalance({0, 0}), 0);
  EXPECT_EQ(Imbalance({}), 0);
}

TEST(LayersTest, MergeAddsRoutersUp) {
  const std::vector<HeatMapRow> merged =
      MergeLayers({{1, {1, 2}}, {0, {5, 5}}, {1, {10, 20}}});
  ASSERT_THAT(merged, SizeIs(2));
  EXPECT_EQ(merged[0].layer, 0u);
  EXPECT_EQ(merged[1].tokens_per_expert, (std::vector<uint64_t>{11, 22}));
}

TEST(LayersTest, SubtractTakesRestartedCountersAsTheyAre) {
  const std::vector<HeatMapRow> rest =
      SubtractLayers({{0, {10, 3}}, {1, {4, 4}}}, {{0, {6, 9}}});
  EXPECT_EQ(rest[0].tokens_per_expert, (std::vector<uint64_t>{4, 3}));
  EXPECT_EQ(rest[1].tokens_per_expert, (std::vector<uint64_t>{4, 4}));
}

TEST(RenderHeatMapTest, FewExpertsAreNumbers) {
  EXPECT_EQ(RenderHeatMap({{0, {10, 10}}, {3, {30, 10}}}, {}),
            "              0    1  max/mean\n"
            "layer   0  1.00 1.00      1.00\n"
            "layer   3  1.50 0.50      1.50\n");
}

TEST(RenderHeatMapTest, ManyExpertsAreShades) {
  std::vector<uint64_t> tokens(40, 10);
  tokens[0] = 0;
  tokens[39] = 20;
  const std::string map = RenderHeatMap({{7, tokens}}, {});
  EXPECT_THAT(map, HasSubstr("layer   7  "));
  EXPECT_THAT(map, HasSubstr("+@  "));
  EXPECT_THAT(map, HasSubstr(" +"));
  EXPECT_THAT(map, HasSubstr("2.00\n"));
}

TEST(RenderHeatMapTest, NeighboursShareACellWhenThereIsNoRoom) {
  const std::string map =
      RenderHeatMap({{0, std::vector<uint64_t>(256, 3)}}, {.columns = 60});
  size_t begin = 0;
  while (begin < map.size()) {
    const size_t end = map.find('\n', begin);
    EXPECT_LE(end - begin, 60u);
    begin = end + 1;
  }
  EXPECT_THAT(map, HasSubstr("255"));
}

TEST(RenderHeatMapTest, ColourOnlyWhenAsked) {
  const std::vector<HeatMapRow> rows = {{0, {1, 9}}};
  EXPECT_THAT(RenderHeatMap(rows, {}), Not(HasSubstr("\x1b")));
  EXPECT_THAT(RenderHeatMap(rows, {.colour = true}), HasSubstr("\x1b[48;5;"));
}

TEST(RenderHeatMapTest, NoTokensYet) {
  EXPECT_THAT(RenderHeatMap({}, {}), HasSubstr("no expert"));
  EXPECT_THAT(RenderHeatMap({{0, {0, 0}}}, {}), HasSubstr("0.00 0.00"));
}

}  // namespace
}  // namespace troupe
