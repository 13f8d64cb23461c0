#include "tests/robustness/chaos_report.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/robustness/process_watch.h"

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

// Quiet from 10 s, the period of the fault from 20 s, the fault at 21 s.
FaultWindow Window() {
  FaultWindow window;
  window.fault = "expert_kill";
  window.victim = "expert-0a";
  window.quiet_begin_s = 10;
  window.begin_s = 20;
  window.fault_at_s = 21;
  window.whole_at_s = 23;
  window.end_s = 30;
  window.period_s = 10;
  window.streaming = 3;
  return window;
}

StreamRecord Stream(std::vector<double> token_s) {
  StreamRecord record;
  record.due_s = token_s.front() - 0.5;
  record.end_s = token_s.back();
  record.token_s = std::move(token_s);
  record.ok = true;
  return record;
}

TEST(ChaosReportTest, TheLongestGapOfEachStreamAroundTheFaultIsItsStall) {
  const FaultResult result =
      Measure(Window(), {Stream({20.5, 20.75, 21.5, 21.625}),  // over the fault
                         Stream({22, 22.25}),                  // after it
                         Stream({11.5, 11.625, 14.625}),       // quiet
                         Stream({20.25, 20.5})});              // before it
  EXPECT_THAT(result.stalls_ms, ElementsAre(250, 750));
  EXPECT_THAT(result.quiet_stalls_ms, ElementsAre(3000));
  EXPECT_EQ(result.tokens, 8u);
  EXPECT_EQ(result.quiet_tokens, 3u);
  EXPECT_EQ(result.requests, 3u);
  EXPECT_DOUBLE_EQ(result.first_token_ms_max, 500);
  EXPECT_DOUBLE_EQ(result.quiet_first_token_ms_max, 500);
  EXPECT_THAT(Problems(result, {.min_streaming = 3, .max_stall_ms = 800}),
              IsEmpty());
}

TEST(ChaosReportTest, AStreamThatStillWaitsHasWaitedUntilTheEnd) {
  StreamRecord record = Stream({20.5, 20.75});
  record.end_s = -1;
  const FaultResult result = Measure(Window(), {record});
  EXPECT_THAT(result.stalls_ms, ElementsAre(9250));
  EXPECT_THAT(Problems(result, {.min_streaming = 1, .max_stall_ms = 800}),
              ElementsAre(StartsWith("stall: 9250")));
}

TEST(ChaosReportTest, EveryKindOfProblemIsSeen) {
  StreamRecord failed = Stream({20.5, 21.5});
  failed.ok = false;
  failed.broken_s = 21.5;
  failed.error = "14 gone";
  StreamRecord wrong = Stream({20.5, 21.5});
  wrong.same_bytes = false;
  StreamRecord lost = Stream({20.5, 21.5});
  lost.accounted = false;
  FaultWindow window = Window();
  window.streaming = 1;
  window.errors = {"exit status 1"};
  const std::vector<std::string> problems =
      Problems(Measure(window, {failed, wrong, lost}),
               {.min_streaming = 2, .max_stall_ms = 500});
  EXPECT_THAT(problems,
              ElementsAre(StartsWith("load: 1 "), StartsWith("failed: 1 "),
                          StartsWith("bytes: 1 "), StartsWith("copies: 1 "),
                          StartsWith("stall: 1000 "),
                          StartsWith("fault: exit status 1")));
  EXPECT_THAT(problems[1], HasSubstr("14 gone"));
}

// Also one that was answered in the end: nobody should have to call again.
TEST(ChaosReportTest, ACutStreamHasFailedUnlessTheGatewayWasLost) {
  StreamRecord again = Stream({20.5, 24});
  again.broken_s = 21.5;
  again.attempts = 2;
  FaultWindow window = Window();
  EXPECT_EQ(Measure(window, {again}).failed, 1u);
  window.cuts_streams = true;
  EXPECT_EQ(Measure(window, {again}).failed, 0u);
  EXPECT_EQ(Measure(window, {again}).called_again, 1u);
  again.ok = false;
  EXPECT_EQ(Measure(window, {again}).failed, 1u);
  // Of another period.
  again.broken_s = 15;
  EXPECT_EQ(Measure(window, {again}).failed, 0u);
}

TEST(ChaosReportTest, JsonKeepsEverythingThatTheTableNeeds) {
  StreamRecord wrong = Stream({20.5, 21.25});
  wrong.same_bytes = false;
  FaultResult result = Measure(Window(), {wrong, Stream({11.5, 11.625})});
  result.first_error = "\xff is no UTF-8";
  const auto back = FromJson(ToJson(result));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(MarkdownTable({*back}), MarkdownTable({result}));
  EXPECT_THAT(MarkdownTable({result, result}),
              HasSubstr("| expert_kill | 2 | 2 | 0 | 2 | 0 | 750 / 750 / 750 | "
                        "125 / 125 / 125 | +0.0% | 2.0 |"));
  EXPECT_FALSE(FromJson("{\"fault\": 3}").ok());
  EXPECT_FALSE(FromJson("[]").ok());
  EXPECT_FALSE(FromJson("{").ok());
}

TEST(ProcessWatchTest, GrowthIsSeenAndPeaksAreNot) {
  const GrowthLimits limits = {
      .resident_mib = 10, .descriptors = 4, .threads = 4, .num_warm = 2};
  const auto problems = [&](std::vector<ProcessSize> sizes) {
    ProcessWatch watch;
    for (const ProcessSize& size : sizes) watch.Add("router-0", 1, size);
    return watch.Problems(limits);
  };
  EXPECT_THAT(
      problems({{50, 9, 9}, {90, 9, 9}, {95, 9, 9}, {99, 9, 9}, {95, 9, 9}}),
      IsEmpty());
  EXPECT_THAT(
      problems(
          {{50, 9, 9}, {90, 9, 9}, {190, 99, 99}, {99, 9, 9}, {180, 99, 99}}),
      IsEmpty());
  EXPECT_THAT(problems({{50, 9, 9},
                        {90, 9, 9},
                        {101, 14, 14},
                        {102, 15, 14},
                        {103, 16, 14}}),
              ElementsAre(HasSubstr("resident MiB of router-0 from 90 to 101"),
                          HasSubstr("descriptors of router-0 from 9 to 14"),
                          HasSubstr("threads of router-0 from 9 to 14")));
  // Too short a life to say.
  EXPECT_THAT(problems({{50, 9, 9}, {900, 9, 9}}), IsEmpty());
}

}  // namespace
}  // namespace troupe
