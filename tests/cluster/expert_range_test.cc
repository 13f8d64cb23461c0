#include "cluster/expert_range.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

HalfOpenRange Range(size_t begin, size_t end) { return {begin, end}; }

TEST(ParseRangesTest, NumbersAndRangesAscending) {
  EXPECT_THAT(*ParseRanges("5", 6), ElementsAre(Range(5, 6)));
  EXPECT_THAT(*ParseRanges("0-3", 4), ElementsAre(Range(0, 4)));
  EXPECT_THAT(*ParseRanges("7-7", 8), ElementsAre(Range(7, 8)));
  EXPECT_THAT(*ParseRanges("6,0-3", 8), ElementsAre(Range(0, 4), Range(6, 7)));
  EXPECT_THAT(*ParseRanges("4-5,2-3", 8),
              ElementsAre(Range(2, 4), Range(4, 6)));
  EXPECT_THAT(*ParseRanges("007", 8), ElementsAre(Range(7, 8)));
}

TEST(ParseRangesTest, NamesThePartThatIsNoRange) {
  for (const char* bad : {"a", "-1", "1-", "-", "3-1", "1-2-3", " 1", "1 ",
                          "+1", "0x1", "1.5", "99999999999", "0--1"}) {
    SCOPED_TRACE(bad);
    const auto ranges = ParseRanges(absl::StrCat("0,", bad), 1000);
    ASSERT_FALSE(ranges.ok());
    EXPECT_EQ(ranges.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ranges.status().message()),
                HasSubstr(absl::StrCat("\"", bad, "\" in \"0,", bad, "\"")));
  }
  EXPECT_FALSE(ParseRanges("", 8).ok());
  EXPECT_FALSE(ParseRanges(",", 8).ok());
  EXPECT_FALSE(ParseRanges("1,", 8).ok());
}

TEST(ParseRangesTest, NamesThePartThatIsNotBelowTheLimit) {
  for (const char* bad : {"8", "7-8", "999999999"}) {
    const auto ranges = ParseRanges(bad, 8);
    ASSERT_FALSE(ranges.ok()) << bad;
    EXPECT_THAT(std::string(ranges.status().message()),
                HasSubstr("the model has only 8"));
  }
}

TEST(ParseRangesTest, NamesWhatIsTwice) {
  for (const char* bad : {"3,3", "0-3,3", "3,0-5", "0-7,2-4", "2-4,0-7"}) {
    const auto ranges = ParseRanges(bad, 8);
    ASSERT_FALSE(ranges.ok()) << bad;
    EXPECT_THAT(std::string(ranges.status().message()), HasSubstr("twice"));
  }
}

TEST(SplitExpertsTest, LargerOnesFirst) {
  EXPECT_THAT(SplitExperts(8, 3), ElementsAre("0-2", "3-5", "6-7"));
  EXPECT_THAT(SplitExperts(8, 1), ElementsAre("0-7"));
  EXPECT_THAT(SplitExperts(3, 3), ElementsAre("0", "1", "2"));
}

TEST(SplitExpertsTest, CoversAllExpertsEvenly) {
  for (size_t experts = 1; experts <= 40; ++experts) {
    for (size_t processes = 1; processes <= experts; ++processes) {
      SCOPED_TRACE(absl::StrCat(experts, " in ", processes));
      const std::vector<std::string> split = SplitExperts(experts, processes);
      ASSERT_EQ(split.size(), processes);
      size_t end = 0;
      size_t last_size = experts;
      for (const std::string& part : split) {
        const auto ranges = ParseRanges(part, experts);
        ASSERT_TRUE(ranges.ok()) << ranges.status();
        ASSERT_EQ(ranges->size(), 1u);
        EXPECT_EQ(ranges->front().begin, end);
        end = ranges->front().end;
        const size_t size = end - ranges->front().begin;
        EXPECT_LE(size, last_size);
        EXPECT_GE(size, experts / processes);
        EXPECT_LE(size, experts / processes + 1);
        last_size = size;
      }
      EXPECT_EQ(end, experts);
    }
  }
}

TEST(ExpertRangeTest, ToStringHasInclusiveEnds) {
  v1::ExpertRange range;
  range.set_layer_end(12);
  range.set_expert_begin(4);
  range.set_expert_end(6);
  EXPECT_EQ(ToString(range), "experts 4-5 of layers 0-11");
}

}  // namespace
}  // namespace troupe
