#include "router_service/gating/gating.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

RoutingDecision Choose(const std::vector<float>& probs, size_t num_experts,
                       size_t top_k, bool renormalize) {
  RoutingDecision decision;
  ChooseTopK(
      ConstFloatMatrix(probs.data(), probs.size() / num_experts, num_experts),
      top_k, renormalize, decision);
  return decision;
}

TEST(GatingTest, TheMostProbableAscendingById) {
  const RoutingDecision decision =
      Choose({0.1f, 0.4f, 0.2f, 0.3f}, 4, 2, false);
  EXPECT_EQ(decision.num_tokens, 1u);
  EXPECT_EQ(decision.top_k, 2u);
  EXPECT_THAT(decision.topk_idx, ElementsAre(1, 3));
  EXPECT_THAT(decision.topk_weights, ElementsAre(0.4f, 0.3f));
}

TEST(GatingTest, WeightsAreDividedByTheirSum) {
  const RoutingDecision decision =
      Choose({0.3f, 0.5f, 0.125f, 0.075f}, 4, 2, true);
  EXPECT_THAT(decision.topk_idx, ElementsAre(0, 1));
  // Summed from the larger one on, as transformers does.
  EXPECT_THAT(decision.topk_weights,
              ElementsAre(0.3f / (0.5f + 0.3f), 0.5f / (0.5f + 0.3f)));
}

TEST(GatingTest, TheLowerIdWinsATie) {
  EXPECT_THAT(Choose({0.2f, 0.2f, 0.2f, 0.2f, 0.2f}, 5, 2, false).topk_idx,
              ElementsAre(0, 1));
  EXPECT_THAT(Choose({0.1f, 0.3f, 0.2f, 0.2f, 0.2f}, 5, 2, false).topk_idx,
              ElementsAre(1, 2));
}

TEST(GatingTest, AllExperts) {
  const RoutingDecision decision = Choose({0.5f, 0.2f, 0.3f}, 3, 3, true);
  EXPECT_THAT(decision.topk_idx, ElementsAre(0, 1, 2));
}

TEST(GatingTest, NoTokens) {
  RoutingDecision decision = Choose({0.5f, 0.5f}, 2, 1, false);
  ChooseTopK(ConstFloatMatrix(nullptr, 0, 2), 1, false, decision);
  EXPECT_EQ(decision.num_tokens, 0u);
  EXPECT_TRUE(decision.topk_idx.empty());
  EXPECT_TRUE(decision.topk_weights.empty());
}

TEST(GatingTest, NaNIsChosenLastAndSpoilsOneTokenOnly) {
  const RoutingDecision decision =
      Choose({kNaN, 0.1f, 0.2f, /**/ kNaN, kNaN, kNaN, /**/ 0.6f, 0.1f, 0.3f},
             3, 2, true);
  EXPECT_THAT(decision.topk_idx, ElementsAre(1, 2, 0, 1, 0, 2));
  EXPECT_FLOAT_EQ(decision.topk_weights[0], 1.0f / 3);
  EXPECT_TRUE(std::isnan(decision.topk_weights[2]));
  EXPECT_FLOAT_EQ(decision.topk_weights[4], 2.0f / 3);
}

// Against a slow model of the rule: sort everything, stably.
TEST(GatingTest, AgreesWithASlowModel) {
  std::mt19937 random(3);
  for (const size_t num_experts : {1, 2, 5, 8, 60, 128}) {
    for (size_t top_k = 1; top_k <= std::min<size_t>(num_experts, 8); ++top_k) {
      for (const bool renormalize : {false, true}) {
        constexpr size_t kTokens = 20;
        std::vector<float> probs(kTokens * num_experts);
        // Few values, so that there are ties.
        for (float& p : probs) p = static_cast<float>(1 + random() % 9) / 64;
        const RoutingDecision decision =
            Choose(probs, num_experts, top_k, renormalize);
        for (size_t token = 0; token < kTokens; ++token) {
          std::vector<std::pair<float, int32_t>> all;
          for (size_t e = 0; e < num_experts; ++e) {
            all.emplace_back(-probs[token * num_experts + e],
                             static_cast<int32_t>(e));
          }
          std::sort(all.begin(), all.end());
          all.resize(top_k);
          float sum = 0.0f;
          for (const auto& [negative, expert] : all) sum -= negative;
          std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
            return a.second < b.second;
          });
          for (size_t i = 0; i < top_k; ++i) {
            const size_t slot = token * top_k + i;
            EXPECT_EQ(decision.topk_idx[slot], all[i].second);
            EXPECT_EQ(decision.topk_weights[slot],
                      renormalize ? -all[i].first / sum : -all[i].first);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace troupe
