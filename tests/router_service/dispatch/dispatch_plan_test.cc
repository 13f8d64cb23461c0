#include "router_service/dispatch/dispatch_plan.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_expert_process.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

RoutingDecision Decision(size_t top_k, std::vector<int32_t> topk_idx) {
  RoutingDecision decision;
  decision.num_tokens = topk_idx.size() / top_k;
  decision.top_k = top_k;
  decision.topk_idx = std::move(topk_idx);
  decision.topk_weights.assign(decision.topk_idx.size(), 0.5f);
  return decision;
}

DispatchPlan Plan(const RoutingDecision& decision, size_t num_experts) {
  // What an earlier layer has left behind must not matter.
  DispatchPlan plan;
  MakeDispatchPlan(Decision(1, {2, 0, 1, 1}), 3, plan);
  MakeDispatchPlan(decision, num_experts, plan);
  return plan;
}

std::vector<float> HiddenStates(size_t num_tokens, size_t hidden_size) {
  std::vector<float> hidden;
  for (size_t t = 0; t < num_tokens; ++t) {
    for (size_t c = 0; c < hidden_size; ++c) hidden.push_back(FakeHidden(t, c));
  }
  return hidden;
}

TEST(DispatchPlanTest, SortsCopiesByExpertThenToken) {
  const DispatchPlan plan = Plan(Decision(2, {0, 3, /**/ 0, 1, /**/ 1, 3}), 5);
  EXPECT_THAT(plan.expert_offsets, ElementsAre(0, 2, 4, 4, 6, 6));
  EXPECT_THAT(plan.slot_of_copy, ElementsAre(0, 2, 3, 4, 1, 5));
  EXPECT_THAT(plan.copy_of_slot, ElementsAre(0, 4, 1, 2, 3, 5));
}

TEST(DispatchPlanTest, SortsCopiesOfAnExpertByGroup) {
  const RoutingDecision decision =
      Decision(2, {0, 2, /**/ 0, 1, /**/ 1, 2, /**/ 0, -1});
  const std::vector<uint32_t> group_of_token = {1, 0, 0, 1};
  DispatchPlan plan;
  MakeDispatchPlan(decision, 3, plan, group_of_token, 2);
  // Expert 0: group 0, group 1; expert 1: ...
  EXPECT_THAT(plan.expert_offsets, ElementsAre(0, 1, 3, 5, 5, 6, 7));
  EXPECT_THAT(plan.slot_of_copy, ElementsAre(2, 0, 6, 3, 4, 5, 1));
  EXPECT_THAT(plan.copy_of_slot, ElementsAre(1, 6, 0, 3, 4, 5, 2, -1));
}

// One message may ask for two versions of an expert.
TEST(DispatchPlanTest, PacksVersions) {
  const DispatchPlan plan = Plan(Decision(1, {0, 0, 1}), 2);
  PackedBatch packed;
  PackBatch(0, 3, 1, plan,
            {{0, 0, 1, 7, false}, {0, 1, 2, 8, true}, {1, 2, 3, 7, false}},
            packed);
  EXPECT_THAT(packed.batch.expert_ids, ElementsAre(0, 0, 1));
  EXPECT_THAT(packed.batch.versions, ElementsAre(7, 8, 7));
  EXPECT_THAT(packed.batch.copies_per_expert, ElementsAre(1, 1, 1));
  EXPECT_THAT(packed.batch.row_of_copy, ElementsAre(0, 1, 2));
}

// What is left of a run comes in pieces, with stand-ins between them.
TEST(DispatchPlanTest, PacksPiecesOfAnExpertTogether) {
  const DispatchPlan plan = Plan(Decision(1, {0, 0, 0, 1}), 2);
  PackedBatch packed;
  PackBatch(0, 4, 1, plan, {{0, 0, 1}, {0, 2, 3}, {0, 3, 4}, {1, 1, 2}},
            packed);
  EXPECT_THAT(packed.batch.expert_ids, ElementsAre(0, 1));
  EXPECT_THAT(packed.batch.copies_per_expert, ElementsAre(3, 1));
  EXPECT_THAT(packed.tokens, ElementsAre(0, 2, 3, 1));
}

TEST(DispatchPlanTest, WhatIsNotRoutedHasNoCopy) {
  const DispatchPlan plan =
      Plan(Decision(2, {-1, 1, /**/ -1, -1, /**/ 0, -1}), 2);
  EXPECT_THAT(plan.expert_offsets, ElementsAre(0, 1, 2));
  EXPECT_THAT(plan.slot_of_copy, ElementsAre(4, 1));
  EXPECT_THAT(plan.copy_of_slot, ElementsAre(-1, 1, -1, -1, 0, -1));
}

TEST(DispatchPlanTest, NoTokens) {
  const DispatchPlan plan = Plan(Decision(2, {}), 3);
  EXPECT_THAT(plan.expert_offsets, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(plan.slot_of_copy, IsEmpty());
}

TEST(DispatchPlanTest, CopiesAndSlotsAreInverse) {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    const size_t num_experts = 1 + random() % 12;
    const size_t top_k = 1 + random() % std::min<size_t>(num_experts, 4);
    const size_t num_tokens = random() % 40;
    std::vector<int32_t> idx;
    for (size_t t = 0; t < num_tokens; ++t) {
      std::set<int32_t> chosen;
      while (chosen.size() < top_k) {
        chosen.insert(static_cast<int32_t>(random() % num_experts));
      }
      for (const int32_t e : chosen) {
        idx.push_back(random() % 5 == 0 ? -1 : e);
      }
    }
    const DispatchPlan plan = Plan(Decision(top_k, idx), num_experts);
    size_t routed = 0;
    for (size_t slot = 0; slot < idx.size(); ++slot) {
      if (idx[slot] < 0) {
        EXPECT_EQ(plan.copy_of_slot[slot], -1);
        continue;
      }
      ++routed;
      const auto copy = static_cast<uint32_t>(plan.copy_of_slot[slot]);
      EXPECT_EQ(plan.slot_of_copy.at(copy), slot);
      const auto expert = static_cast<size_t>(idx[slot]);
      EXPECT_GE(copy, plan.expert_offsets[expert]);
      EXPECT_LT(copy, plan.expert_offsets[expert + 1]);
    }
    EXPECT_EQ(plan.slot_of_copy.size(), routed);
    for (size_t e = 0; e < num_experts; ++e) {
      EXPECT_TRUE(std::is_sorted(
          plan.slot_of_copy.begin() + plan.expert_offsets[e],
          plan.slot_of_copy.begin() + plan.expert_offsets[e + 1]));
    }
  }
}

TEST(PackBatchTest, SendsEachTokenOnce) {
  constexpr size_t kHiddenSize = 3;
  const std::vector<float> hidden = HiddenStates(4, kHiddenSize);
  const ConstFloatMatrix matrix(hidden.data(), 4, kHiddenSize);
  const RoutingDecision decision =
      Decision(2, {0, 3, /**/ 0, 1, /**/ 1, 3, /**/ 1, 2});
  const DispatchPlan plan = Plan(decision, 4);
  // Experts 1 and 3; of expert 1 the copies of tokens 2 and 3 only.
  PackedBatch packed;
  // Twice: the second one finds the memory of the first.
  for (int round = 0; round < 2; ++round) {
    PackBatch(9, 4, 2, plan,
              {{1, plan.expert_offsets[1] + 1, plan.expert_offsets[2]},
               {3, plan.expert_offsets[3], plan.expert_offsets[4]}},
              packed);
  }
  EXPECT_EQ(packed.batch.layer, 9u);
  EXPECT_THAT(packed.batch.expert_ids, ElementsAre(1, 3));
  EXPECT_THAT(packed.batch.copies_per_expert, ElementsAre(2, 2));
  // Tokens in the order of their first copy: 2, 3, 0.
  EXPECT_EQ(packed.batch.num_tokens, 3u);
  EXPECT_THAT(packed.batch.row_of_copy, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(packed.tokens, ElementsAre(2, 3, 0));
  ASSERT_EQ(packed.payload_bytes(kHiddenSize), 3 * kHiddenSize * 4);
  std::vector<float> sent(3 * kHiddenSize);
  GatherRows(packed, matrix, reinterpret_cast<char*>(sent.data()));
  const size_t tokens[] = {2, 3, 0};
  for (size_t row = 0; row < 3; ++row) {
    for (size_t c = 0; c < kHiddenSize; ++c) {
      EXPECT_EQ(sent[row * kHiddenSize + c], FakeHidden(tokens[row], c));
    }
  }
}

TEST(PackBatchTest, RowsAreRoundedToTheWiresFormat) {
  const std::vector<float> hidden = {1.0f, 1.0f + 1.0f / 256, 1.0f + 3.0f / 256,
                                     -2.5f};
  const DispatchPlan plan = Plan(Decision(1, {0, 0}), 1);
  PackedBatch packed;
  PackBatch(0, 2, 1, plan, {{0, 0, 2}}, packed);
  packed.batch.dtype = DataType::kBF16;
  ASSERT_EQ(packed.payload_bytes(2), 8u);
  char sent[8];
  GatherRows(packed, ConstFloatMatrix(hidden.data(), 2, 2), sent);
  float read[4];
  ReadElements(DataType::kBF16, sent, 4, read);
  // To the nearest of 7 fraction bits, ties to even.
  EXPECT_THAT(read, ElementsAre(1.0f, 1.0f, 1.0f + 4.0f / 256, -2.5f));
}

TEST(PackBatchTest, RowsMayHaveAStride) {
  const std::vector<float> padded = {FakeHidden(0, 0), FakeHidden(0, 1), -1,
                                     FakeHidden(1, 0), FakeHidden(1, 1), -1};
  const RoutingDecision decision = Decision(1, {0, 0});
  const DispatchPlan plan = Plan(decision, 1);
  PackedBatch packed;
  PackBatch(0, 2, 1, plan, {{0, 0, 2}}, packed);
  const float expected[] = {FakeHidden(0, 0), FakeHidden(0, 1),
                            FakeHidden(1, 0), FakeHidden(1, 1)};
  float sent[4];
  GatherRows(packed, ConstFloatMatrix(padded.data(), 2, 2, 3),
             reinterpret_cast<char*>(sent));
  EXPECT_THAT(sent, ElementsAreArray(expected));
}

}  // namespace
}  // namespace troupe
