#include "cluster/load_tracker.h"

#include <cmath>
#include <random>

#include "cluster/busy_meter.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

SteadyTime At(double seconds) {
  return SteadyTime() + std::chrono::duration_cast<SteadyTime::duration>(
                            std::chrono::duration<double>(seconds + 1000));
}

using Step = std::vector<std::vector<uint64_t>>;

TEST(LoadTracker, HalvesAfterTheHalfLife) {
  LoadTracker tracker(1, 2, 10, At(0));
  tracker.AddStep(Step{{8, 0}}, At(0));
  tracker.AddStep(Step{{0, 4}}, At(10));
  const RecentLoad now = tracker.Recent(0, At(10));
  EXPECT_DOUBLE_EQ(now.tokens_per_expert[0], 4);
  EXPECT_DOUBLE_EQ(now.tokens_per_expert[1], 4);
  EXPECT_DOUBLE_EQ(now.active_steps_per_expert[0], 0.5);
  EXPECT_DOUBLE_EQ(now.active_steps_per_expert[1], 1);
  EXPECT_DOUBLE_EQ(now.steps, 1.5);
  EXPECT_DOUBLE_EQ(tracker.Recent(0, At(30)).tokens_per_expert[1], 1);
}

TEST(LoadTracker, ALayerWithoutCopiesTookNoPart) {
  LoadTracker tracker(2, 2, 10, At(0));
  tracker.AddStep(Step{{1, 1}, {0, 0}}, At(0));
  EXPECT_DOUBLE_EQ(tracker.Recent(0, At(0)).steps, 1);
  EXPECT_DOUBLE_EQ(tracker.Recent(1, At(0)).steps, 0);
}

// Against the definition: the sum over steps of 2^(-age / half-life), over so
// long a time that the sums are written anew several times.
TEST(LoadTracker, AgreesWithTheDefinition) {
  std::mt19937 random(1);
  LoadTracker tracker(2, 3, 0.7, At(0));
  std::vector<std::pair<double, Step>> steps;
  double now = 0;
  for (int i = 0; i < 2000; ++i) {
    now += std::exponential_distribution<double>(20)(random);
    Step step(2, std::vector<uint64_t>(3));
    for (auto& layer : step) {
      for (uint64_t& tokens : layer) tokens = random() % 3;
    }
    tracker.AddStep(step, At(now));
    steps.emplace_back(now, step);
  }
  now += 0.3;
  for (size_t layer = 0; layer < 2; ++layer) {
    const RecentLoad recent = tracker.Recent(layer, At(now));
    double num_steps = 0;
    for (size_t expert = 0; expert < 3; ++expert) {
      double tokens = 0;
      double active = 0;
      for (const auto& [at, step] : steps) {
        const double weight = std::exp2(-(now - at) / 0.7);
        tokens += weight * static_cast<double>(step[layer][expert]);
        active += step[layer][expert] > 0 ? weight : 0;
      }
      EXPECT_NEAR(recent.tokens_per_expert[expert], tokens, 1e-6 * tokens);
      EXPECT_NEAR(recent.active_steps_per_expert[expert], active,
                  1e-6 * active);
    }
    for (const auto& [at, step] : steps) {
      if (step[layer] != std::vector<uint64_t>(3, 0)) {
        num_steps += std::exp2(-(now - at) / 0.7);
      }
    }
    EXPECT_NEAR(recent.steps, num_steps, 1e-6 * num_steps);
  }
}

TEST(BusyMeter, IsTheShareOfTimeWhateverTheSteps) {
  BusyMeter meter(5, At(0));
  EXPECT_EQ(meter.Share(At(0)), 0);
  for (int i = 0; i < 10000; ++i) {
    meter.Begin(At(i * 0.01));
    meter.End(At(i * 0.01 + 0.003));
  }
  EXPECT_NEAR(meter.Share(At(100)), 0.3, 0.001);
  // What was is forgotten.
  EXPECT_NEAR(meter.Share(At(105)), 0.3 * std::exp(-1.0), 0.001);
}

TEST(BusyMeter, CountsWhatStillRunsAndStartsWithoutAPast) {
  BusyMeter meter(5, At(0));
  meter.Begin(At(0.1));
  EXPECT_NEAR(meter.Share(At(0.2)), 0.5, 0.01);
  EXPECT_NEAR(meter.Share(At(60)), 1, 0.001);
  EXPECT_LE(meter.Share(At(6000)), 1);
}

}  // namespace
}  // namespace troupe
