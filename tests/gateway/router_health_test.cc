// When a router is ready, slow, silent, stuck or to be left: times of the
// test's own.
#include "gateway/router_health.h"

#include "gateway/retry_budget.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

SteadyTime At(int ms) { return SteadyTime() + milliseconds(1000000 + ms); }

v1::RouterDescription Description(v1::ServingState state) {
  v1::RouterDescription description;
  description.set_state(state);
  return description;
}

class RouterHealthTest : public testing::Test {
 protected:
  // A probe that takes `took_ms` and ends at `ms`.
  void Answer(int ms, const v1::RouterDescription& description,
              int took_ms = 1) {
    health_.OnProbeSent(At(ms - took_ms));
    health_.OnAnswer(At(ms), description, "");
  }
  void Ready(int ms) { Answer(ms, Description(v1::SERVING_STATE_READY)); }

  RouterHealth health_{RouterHealthOptions()};
};

TEST_F(RouterHealthTest, FollowsWhatTheRouterSays) {
  EXPECT_EQ(health_.state(), RouterState::kConnecting);
  v1::RouterDescription loading = Description(v1::SERVING_STATE_LOADING);
  loading.set_detail("expert 2 of layer 0 has no replica");
  Answer(10, loading);
  EXPECT_EQ(health_.state(), RouterState::kLoading);
  EXPECT_THAT(health_.reason(), HasSubstr("expert 2"));
  Ready(20);
  EXPECT_TRUE(health_.ready());
  EXPECT_EQ(health_.reason(), "");
  EXPECT_EQ(health_.failures(), 0u);
  health_.OnProbeSent(At(30));
  health_.OnAnswer(At(31), Description(v1::SERVING_STATE_READY), "not ours");
  EXPECT_EQ(health_.state(), RouterState::kRefused);
  EXPECT_EQ(health_.reason(), "not ours");
}

TEST_F(RouterHealthTest, SilenceIsAnUnansweredProbeAndNothingElse) {
  Ready(0);
  health_.OnTick(At(5000), true);
  EXPECT_TRUE(health_.ready()) << "nobody asked";
  health_.OnProbeSent(At(5000));
  health_.OnTick(At(5400), true);
  EXPECT_TRUE(health_.ready());
  health_.OnHeard(At(5390));  // a token
  health_.OnTick(At(5780), true);
  EXPECT_TRUE(health_.ready());
  EXPECT_FALSE(health_.IsToLeave(At(5780)));
  health_.OnTick(At(5791), true);
  EXPECT_EQ(health_.state(), RouterState::kSilent);
  EXPECT_TRUE(health_.IsToLeave(At(5791)));
  EXPECT_TRUE(health_.IsDoubtful());
  EXPECT_EQ(health_.failures(), 1u);
  // A late token brings it back, or the late answer.
  health_.OnHeard(At(5900));
  EXPECT_TRUE(health_.ready());
  health_.OnTick(At(6301), true);
  EXPECT_EQ(health_.state(), RouterState::kSilent);
  health_.OnAnswer(At(6500), Description(v1::SERVING_STATE_READY), "");
  EXPECT_TRUE(health_.ready());
}

TEST_F(RouterHealthTest, PatienceGrowsWithTheAnswersUpToABound) {
  EXPECT_EQ(health_.SilenceLimit(), milliseconds(400));
  Answer(300, Description(v1::SERVING_STATE_READY), 250);
  EXPECT_EQ(health_.SilenceLimit(), milliseconds(1000));
  Answer(2000, Description(v1::SERVING_STATE_READY), 900);
  EXPECT_EQ(health_.SilenceLimit(), milliseconds(2000));
  for (int i = 0; i < 100; ++i) Ready(3000 + 10 * i);
  EXPECT_EQ(health_.SilenceLimit(), milliseconds(400));
}

TEST_F(RouterHealthTest, TimeThatWeSleptIsNobodysSilence) {
  Ready(0);
  health_.OnProbeSent(At(100));
  health_.Forgive(milliseconds(10000));
  health_.OnTick(At(10100), true);
  EXPECT_TRUE(health_.ready());
  health_.OnTick(At(10501), true);
  EXPECT_EQ(health_.state(), RouterState::kSilent);
}

TEST_F(RouterHealthTest, ALongStepIsSlowAndStandingStillIsStuck) {
  v1::RouterDescription busy = Description(v1::SERVING_STATE_READY);
  busy.set_sequences(3);
  busy.set_progress(7);
  Answer(0, busy);
  for (int ms = 100; ms <= 60000; ms += 100) {
    if (ms % 10000 == 0) busy.set_progress(busy.progress() + 1);
    Answer(ms, busy);
    health_.OnTick(At(ms), true);
    ASSERT_TRUE(health_.ready()) << ms;
  }
  EXPECT_TRUE(health_.IsHeir(At(60000)));
  int ms = 60000;
  for (; health_.ready() && ms < 100000; ms += 100) {
    Answer(ms, busy);
    health_.OnTick(At(ms), true);
  }
  EXPECT_NEAR(ms, 75000, 300);
  EXPECT_EQ(health_.state(), RouterState::kStuck);
  EXPECT_THAT(health_.reason(), HasSubstr("3 sequences"));
  Answer(ms, busy);
  EXPECT_EQ(health_.state(), RouterState::kStuck) << "still the same";
  busy.set_progress(1000);
  Answer(ms + 100, busy);
  EXPECT_TRUE(health_.ready());
}

TEST_F(RouterHealthTest, WithoutSequencesNothingIsStuck) {
  for (int ms = 0; ms <= 60000; ms += 500) {
    Ready(ms);
    health_.OnTick(At(ms), true);
  }
  EXPECT_TRUE(health_.ready());
}

TEST_F(RouterHealthTest, ADrainingRouterIsLeftWhenItSays) {
  Ready(0);
  v1::RouterDescription draining = Description(v1::SERVING_STATE_DRAINING);
  draining.set_leave_in_ms(5000);
  Answer(100, draining);
  EXPECT_EQ(health_.state(), RouterState::kDraining);
  EXPECT_FALSE(health_.IsToLeave(At(5000)));
  EXPECT_TRUE(health_.IsToLeave(At(5100)));
  EXPECT_FALSE(health_.IsDoubtful());
  EXPECT_EQ(health_.failures(), 0u) << "it said so";
}

TEST_F(RouterHealthTest, ARefusalIsADrainOfUnknownLength) {
  Ready(0);
  health_.OnProbeSent(At(90));
  health_.OnRefused(At(100));
  EXPECT_EQ(health_.state(), RouterState::kDraining);
  EXPECT_FALSE(health_.IsToLeave(At(100000)));
  // What it said before it drained is old news.
  health_.OnAnswer(At(110), Description(v1::SERVING_STATE_READY), "");
  EXPECT_EQ(health_.state(), RouterState::kDraining);
}

TEST_F(RouterHealthTest, LostExpertsHaveAMomentToComeBack) {
  Ready(0);
  Answer(100, Description(v1::SERVING_STATE_LOADING));
  EXPECT_FALSE(health_.IsToLeave(At(599)));
  Answer(550, Description(v1::SERVING_STATE_LOADING));
  EXPECT_TRUE(health_.IsToLeave(At(600)));
}

TEST_F(RouterHealthTest, WhoFailsAgainAndAgainWaitsLonger) {
  Ready(0);
  health_.OnLost(At(100), "connection reset");
  EXPECT_EQ(health_.state(), RouterState::kAway);
  EXPECT_THAT(health_.reason(), HasSubstr("connection reset"));
  Ready(110);
  EXPECT_TRUE(health_.ready()) << "the first time it is back at once";
  int now = 120;
  for (const int backoff : {100, 200, 400, 800, 1600, 3200, 5000, 5000}) {
    health_.OnLost(At(now), "again");
    Ready(now + backoff - 1);
    EXPECT_FALSE(health_.ready()) << backoff;
    Ready(now + backoff);
    EXPECT_TRUE(health_.ready()) << backoff;
    now += backoff + 1;
  }
  // Ten quiet seconds.
  health_.OnLost(At(now + 10000), "once more");
  Ready(now + 10010);
  EXPECT_TRUE(health_.ready());
}

TEST_F(RouterHealthTest, AnAnswerFromBeforeALossSaysNothing) {
  Ready(0);
  health_.OnProbeSent(At(10));
  health_.OnLost(At(11), "reset");
  health_.OnAnswer(At(12), Description(v1::SERVING_STATE_READY), "");
  EXPECT_FALSE(health_.ready());
}

TEST(RetryBudgetTest, ABurstThenWhatTimeAndStreamsEarn) {
  RetryBudgetOptions options;
  options.burst = 3;
  options.per_second = 10;
  options.per_stream = 0.5;
  RetryBudget budget(options, At(0));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(budget.TryTake(At(0)));
  EXPECT_FALSE(budget.TryTake(At(50)));
  EXPECT_TRUE(budget.TryTake(At(100)));
  EXPECT_FALSE(budget.TryTake(At(100)));
  budget.OnStream();
  EXPECT_FALSE(budget.TryTake(At(100)));
  budget.OnStream();
  EXPECT_TRUE(budget.TryTake(At(100)));
  // Never more than the burst, and the clock may not run backwards.
  EXPECT_FALSE(budget.TryTake(At(0)));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(budget.TryTake(At(1000000)));
  EXPECT_FALSE(budget.TryTake(At(1000000)));
}

}  // namespace
}  // namespace troupe
