#include "cluster/peer_health.h"

#include <chrono>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const SteadyTime kStart = SteadyTime() + std::chrono::hours(1);

PeerHealthOptions Options() {
  PeerHealthOptions options;
  options.max_troubles = 3;
  options.max_overdue = milliseconds(100);
  options.min_backoff = milliseconds(200);
  options.max_backoff = milliseconds(1000);
  options.probe_limit = milliseconds(50);
  options.probes_to_return = 2;
  options.relapse = milliseconds(30000);
  return options;
}

TEST(PeerHealthTest, TroublesInARowMakeItSick) {
  PeerHealth health(Options());
  for (int i = 0; i < 2; ++i) health.OnTrouble("no answer");
  health.OnAnswer();
  for (int i = 0; i < 2; ++i) health.OnTrouble("no answer");
  EXPECT_THAT(health.WhyEject(kStart), IsEmpty());
  health.OnTrouble("wrong answer");
  EXPECT_THAT(health.WhyEject(kStart), HasSubstr("wrong answer"));
}

TEST(PeerHealthTest, SilenceMakesItSick) {
  PeerHealth health(Options());
  health.OnLate(kStart);
  EXPECT_TRUE(health.is_suspect());
  EXPECT_THAT(health.WhyEject(kStart + milliseconds(99)), IsEmpty());
  EXPECT_EQ(health.overdue_at(), kStart + milliseconds(100));
  EXPECT_THAT(health.WhyEject(kStart + milliseconds(100)),
              HasSubstr("silent for 100 ms"));
}

TEST(PeerHealthTest, ALateAnswerEndsTheSuspicion) {
  PeerHealth health(Options());
  health.OnLate(kStart);
  health.OnLate(kStart + milliseconds(10));
  health.OnLateAnswer(kStart + milliseconds(50));
  EXPECT_TRUE(health.is_suspect());
  EXPECT_EQ(health.overdue_at(), kStart + milliseconds(150));
  health.OnLateAnswer(kStart + milliseconds(60));
  EXPECT_FALSE(health.is_suspect());
  EXPECT_EQ(health.overdue_at(), kNoDeadline);
}

TEST(PeerHealthTest, ProbesBringItBack) {
  PeerHealth health(Options());
  health.Eject("silent", kStart);
  EXPECT_TRUE(health.is_ejected());
  EXPECT_EQ(health.why(), "silent");
  EXPECT_EQ(health.probe_at(), kStart + milliseconds(200));
  SteadyTime now = health.probe_at();
  health.OnProbeSent(now);
  EXPECT_FALSE(health.OnProbeAnswer(true, now + milliseconds(1)));
  now = health.probe_at();
  health.OnProbeSent(now);
  EXPECT_TRUE(health.OnProbeAnswer(true, now + milliseconds(1)));
  EXPECT_FALSE(health.is_ejected());
  EXPECT_FALSE(health.is_suspect());
  EXPECT_EQ(health.num_probes(), 2u);
  EXPECT_EQ(health.num_failed_probes(), 0u);
}

TEST(PeerHealthTest, ProbesThatFailAreFurtherAndFurtherApart) {
  PeerHealth health(Options());
  health.Eject("silent", kStart);
  SteadyTime now = health.probe_at();
  health.OnProbeSent(now);
  // Too slow, then wrong, then none.
  EXPECT_FALSE(health.OnProbeAnswer(true, now + milliseconds(51)));
  EXPECT_EQ(health.probe_at(), now + milliseconds(51 + 400));
  now = health.probe_at();
  health.OnProbeSent(now);
  EXPECT_FALSE(health.OnProbeAnswer(false, now));
  EXPECT_EQ(health.probe_at(), now + milliseconds(800));
  now = health.probe_at();
  health.OnProbeSent(now);
  now = health.probe_at();
  health.OnProbeSent(now);
  EXPECT_EQ(health.num_failed_probes(), 3u);
  EXPECT_EQ(health.probe_at(), now + milliseconds(1000));
  // The answer to the first is no answer to the second's question, but it says
  // as much: it lives.
  EXPECT_FALSE(health.OnProbeAnswer(true, now + milliseconds(1)));
  EXPECT_TRUE(health.is_ejected());
}

TEST(PeerHealthTest, ARelapseTakesLonger) {
  PeerHealth health(Options());
  const auto eject_and_heal = [&](SteadyTime at) {
    health.Eject("silent", at);
    const SteadyTime first_probe = health.probe_at();
    for (int i = 0; i < 2; ++i) {
      health.OnProbeSent(first_probe);
      health.OnProbeAnswer(true, first_probe);
    }
    EXPECT_FALSE(health.is_ejected());
    return first_probe - at;
  };
  EXPECT_EQ(eject_and_heal(kStart), milliseconds(200));
  EXPECT_EQ(eject_and_heal(kStart + milliseconds(5000)), milliseconds(400));
  EXPECT_EQ(eject_and_heal(kStart + milliseconds(9000)), milliseconds(800));
  EXPECT_EQ(eject_and_heal(kStart + std::chrono::hours(1)), milliseconds(200));
  EXPECT_EQ(health.num_ejections(), 4u);
}

TEST(PeerHealthTest, ANewConnectionIsProbedAtOnce) {
  PeerHealth health(Options());
  health.OnLate(kStart);
  health.Eject("silent", kStart);
  health.OnReconnected(kStart + milliseconds(20));
  EXPECT_TRUE(health.is_ejected());
  EXPECT_FALSE(health.is_suspect());
  EXPECT_EQ(health.probe_at(), kStart + milliseconds(20));
}

TEST(PeerHealthTest, ConnectionsThatBreakAgainAndAgainMakeItSick) {
  PeerHealth health(Options());
  for (int i = 0; i < 3; ++i) {
    health.OnTrouble("the connection broke");
    health.OnReconnected(kStart);
  }
  EXPECT_THAT(health.WhyEject(kStart), HasSubstr("connection broke"));
  health.Forgive(kStart);
  EXPECT_THAT(health.WhyEject(kStart), IsEmpty());
}

}  // namespace
}  // namespace troupe
