#include "router_service/gating/capacity.h"

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(CapacityTest, Formula) {
  // ceil(factor * tokens * top_k / experts): GShard, Switch.
  EXPECT_EQ(ExpertCapacity(1.0, 32, 2, 8), 8u);
  EXPECT_EQ(ExpertCapacity(1.25, 32, 2, 8), 10u);
  EXPECT_EQ(ExpertCapacity(1.0, 33, 2, 8), 9u);
  EXPECT_EQ(ExpertCapacity(0.5, 1, 2, 8), 1u);      // never none at all
  EXPECT_EQ(ExpertCapacity(100.0, 32, 2, 8), 32u);  // never more than all
}

// The rule of docs/fallback.md, word by word and slowly: sets, maps, and a
// search through everything at each step.
struct Slow {
  const RoutingDecision& decision;
  ConstFloatMatrix probs;
  const std::vector<FallbackPolicy>& policies;
  const std::vector<uint32_t>& replicas;
  CapacityRule rule;

  struct Copy {
    size_t row;
    int32_t own;
    int32_t expert;
    CopyFate fate = CopyFate::kFirstChoice;
  };

  // Whether a is to be kept rather than b.
  bool GoesFirst(const Copy& a, const Copy& b) const {
    if (rule.refuse == RefuseBy::kPosition && a.row != b.row) {
      return a.row < b.row;
    }
    if (rule.refuse == RefuseBy::kWeight) {
      const float pa = probs.row(a.row)[a.own];
      const float pb = probs.row(b.row)[b.own];
      const float wa = pa > 0 ? pa : 0.0f;  // NaN: as little as nothing
      const float wb = pb > 0 ? pb : 0.0f;
      if (wa != wb) return wa > wb;
    }
    if (rule.refuse == RefuseBy::kRandom) {
      const auto draw = [this](const Copy& c) {
        return CopyPriority(RefuseBy::kRandom, rule.seed, rule.salt, c.row,
                            static_cast<size_t>(c.own), 0.0f);
      };
      if (draw(a) != draw(b)) return draw(a) > draw(b);
    }
    return std::make_pair(a.row, a.own) < std::make_pair(b.row, b.own);
  }

  std::vector<Copy> Run() const {
    std::vector<Copy> copies;
    for (size_t row = 0; row < decision.num_tokens; ++row) {
      for (size_t i = 0; i < decision.top_k; ++i) {
        const int32_t e = decision.topk_idx[row * decision.top_k + i];
        copies.push_back({row, e, e});
      }
    }
    std::map<int32_t, uint64_t> load;
    for (const Copy& copy : copies) {
      if (policies[copy.row].is_exact()) ++load[copy.own];
    }
    std::set<size_t> todo;
    for (size_t i = 0; i < copies.size(); ++i) {
      if (!policies[copies[i].row].is_exact()) todo.insert(i);
    }
    std::set<size_t> refused;
    while (!todo.empty()) {
      const size_t i = TakeFirst(copies, todo);
      Copy& copy = copies[i];
      uint64_t& at = load[copy.own];
      const uint64_t with_replicas =
          policies[copy.row].replica ? rule.capacity * replicas[copy.own] : 0;
      if (at < rule.capacity) {
        ++at;
      } else if (at < with_replicas) {
        ++at;
        copy.fate = CopyFate::kReplica;
      } else {
        refused.insert(i);
      }
    }
    while (!refused.empty()) {
      Copy& copy = copies[TakeFirst(copies, refused)];
      std::set<int32_t> used;
      for (const Copy& other : copies) {
        if (other.row != copy.row) continue;
        used.insert(other.own);
        used.insert(other.expert);
      }
      int32_t best = -1;
      for (int32_t e = 0; e < static_cast<int32_t>(probs.cols); ++e) {
        if (used.count(e) > 0 || load[e] >= rule.capacity) continue;
        // Better ones are used, whatever they are: those that the gate chose.
        if (!IsBetter(probs.row(copy.row), copy.own, e)) continue;
        if (best < 0 || IsBetter(probs.row(copy.row), e, best)) best = e;
      }
      if (policies[copy.row].next_best && best >= 0) {
        ++load[best];
        copy.expert = best;
        copy.fate = CopyFate::kNextBest;
      } else if (policies[copy.row].drop) {
        copy.expert = -1;
        copy.fate = CopyFate::kDropped;
      } else {
        ++load[copy.own];
      }
    }
    return copies;
  }

  size_t TakeFirst(const std::vector<Copy>& copies,
                   std::set<size_t>& of) const {
    size_t first = *of.begin();
    for (const size_t i : of) {
      if (GoesFirst(copies[i], copies[first])) first = i;
    }
    of.erase(first);
    return first;
  }
};

struct Case {
  std::vector<float> probs;
  RoutingDecision decision;
  std::vector<FallbackPolicy> policies;
  std::vector<uint32_t> replicas;
  CapacityRule rule;
  size_t num_experts = 0;

  ConstFloatMatrix matrix() const {
    return {probs.data(), decision.num_tokens, num_experts};
  }
};

Case MakeCase(std::mt19937& random) {
  const auto below = [&random](size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random);
  };
  Case c;
  const size_t tokens = 1 + below(24);
  c.num_experts = 2 + below(7);
  const size_t top_k = 1 + below(c.num_experts);
  // Skewed, and with ties: few different values.
  for (size_t t = 0; t < tokens; ++t) {
    float sum = 0.0f;
    for (size_t e = 0; e < c.num_experts; ++e) {
      const float p = static_cast<float>(1 + below(5)) * (e < 2 ? 4.0f : 1.0f);
      c.probs.push_back(p);
      sum += p;
    }
    for (size_t e = 0; e < c.num_experts; ++e) {
      c.probs[t * c.num_experts + e] /= sum;
    }
    if (below(20) == 0)
      c.probs[t * c.num_experts + below(c.num_experts)] = kNaN;
  }
  ChooseTopK({c.probs.data(), tokens, c.num_experts}, top_k, below(2) == 0,
             c.decision);
  for (size_t t = 0; t < tokens; ++t) {
    c.policies.push_back(
        {below(2) == 0, below(2) == 0, below(2) == 0, below(2) == 0});
  }
  for (size_t e = 0; e < c.num_experts; ++e) {
    c.replicas.push_back(static_cast<uint32_t>(below(4)));
  }
  const double factors[] = {0.25, 0.5, 0.75, 1.0, 1.5, 4.0};
  c.rule.capacity =
      ExpertCapacity(factors[below(6)], tokens, top_k, c.num_experts);
  c.rule.refuse = static_cast<RefuseBy>(below(3));
  c.rule.seed = below(100);
  c.rule.salt = below(100);
  return c;
}

TEST(CapacityTest, AsTheSlowModelSays) {
  std::mt19937 random(7);
  CapacityResult result;  // used again: nothing of the case before is left
  std::set<CopyFate> seen;
  for (int i = 0; i < 3000; ++i) {
    const Case c = MakeCase(random);
    ApplyCapacity(c.decision, c.matrix(), c.policies, c.replicas, c.rule,
                  result);
    const std::vector<Slow::Copy> slow =
        Slow{c.decision, c.matrix(), c.policies, c.replicas, c.rule}.Run();
    ASSERT_EQ(result.experts.size(), slow.size());
    for (size_t slot = 0; slot < slow.size(); ++slot) {
      ASSERT_EQ(result.experts[slot], slow[slot].expert)
          << "case " << i << " slot " << slot << " refused by "
          << Name(c.rule.refuse);
      ASSERT_EQ(result.fates[slot], slow[slot].fate) << "case " << i;
      seen.insert(slow[slot].fate);
    }
  }
  EXPECT_THAT(seen, ElementsAre(CopyFate::kFirstChoice, CopyFate::kReplica,
                                CopyFate::kNextBest, CopyFate::kDropped));
}

TEST(CapacityTest, WhatAlwaysHolds) {
  std::mt19937 random(11);
  CapacityResult result;
  for (int i = 0; i < 3000; ++i) {
    const Case c = MakeCase(random);
    ApplyCapacity(c.decision, c.matrix(), c.policies, c.replicas, c.rule,
                  result);
    const size_t top_k = c.decision.top_k;
    std::vector<uint64_t> bounded(c.num_experts, 0);  // by the capacity
    std::vector<uint64_t> exact(c.num_experts, 0);
    for (size_t slot = 0; slot < result.experts.size(); ++slot) {
      const FallbackPolicy& policy = c.policies[slot / top_k];
      const int32_t expert = result.experts[slot];
      if (policy.is_exact()) {
        // Never touched, whatever the others do.
        ASSERT_EQ(expert, c.decision.topk_idx[slot]);
        ASSERT_EQ(result.fates[slot], CopyFate::kFirstChoice);
        ++exact[static_cast<size_t>(expert)];
        continue;
      }
      ASSERT_EQ(expert < 0, result.fates[slot] == CopyFate::kDropped);
      ASSERT_TRUE(expert >= 0 || policy.drop);
      if (result.fates[slot] == CopyFate::kNextBest) {
        ASSERT_TRUE(policy.next_best);
        ASSERT_NE(expert, c.decision.topk_idx[slot]);
      }
      if (expert >= 0 && policy.drop &&
          result.fates[slot] != CopyFate::kReplica) {
        ++bounded[static_cast<size_t>(expert)];
      }
      // A token goes to an expert at most once.
      for (size_t other = slot / top_k * top_k; other < slot; ++other) {
        ASSERT_TRUE(expert < 0 || result.experts[other] != expert);
      }
    }
    for (size_t e = 0; e < c.num_experts; ++e) {
      ASSERT_LE(bounded[e], c.rule.capacity);
      if (exact[e] >= c.rule.capacity) {
        ASSERT_EQ(bounded[e], 0u);
      }
    }
  }
}

TEST(CapacityTest, LargeCapacityChangesNothing) {
  std::mt19937 random(13);
  CapacityResult result;
  for (int i = 0; i < 300; ++i) {
    Case c = MakeCase(random);
    c.rule.capacity = c.decision.num_tokens;
    ApplyCapacity(c.decision, c.matrix(), c.policies, c.replicas, c.rule,
                  result);
    ASSERT_EQ(result.experts, c.decision.topk_idx);
    ASSERT_EQ(result.num_refused, 0u);
  }
}

TEST(CapacityTest, TheSeedDecidesWhoIsRefused) {
  std::set<std::vector<int32_t>> outcomes;
  const std::vector<float> probs(16, 0.5f);
  RoutingDecision decision;
  ChooseTopK({probs.data(), 8, 2}, 1, true, decision);  // all to expert 0
  const std::vector<FallbackPolicy> policies(8, *ParseFallback("drop"));
  const std::vector<uint32_t> replicas(2, 1);
  CapacityResult result;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    CapacityRule rule = {4, RefuseBy::kRandom, seed, 0};
    ApplyCapacity(decision, {probs.data(), 8, 2}, policies, replicas, rule,
                  result);
    EXPECT_EQ(result.num_refused, 4u);
    const std::vector<int32_t> once = result.experts;
    ApplyCapacity(decision, {probs.data(), 8, 2}, policies, replicas, rule,
                  result);
    EXPECT_EQ(result.experts, once);
    outcomes.insert(once);
  }
  EXPECT_GT(outcomes.size(), 10u);
}

TEST(CapacityTest, WeightsByTheFamily) {
  const std::vector<float> probs = {0.4f, 0.3f, 0.2f, 0.1f};
  std::vector<float> weights(2);
  // Divided by the sum of those that are computed: Mixtral, Qwen3-MoE.
  Reweigh(probs, true, std::vector<int32_t>{3, 0}, weights);
  EXPECT_THAT(weights, ElementsAre(0.1f / (0.4f + 0.1f), 0.4f / (0.4f + 0.1f)));
  Reweigh(probs, true, std::vector<int32_t>{-1, 1}, weights);
  EXPECT_THAT(weights, ElementsAre(0.0f, 1.0f));
  // As they are: OLMoE, Qwen2-MoE.
  Reweigh(probs, false, std::vector<int32_t>{2, -1}, weights);
  EXPECT_THAT(weights, ElementsAre(0.2f, 0.0f));
  // The residual alone.
  Reweigh(probs, true, std::vector<int32_t>{-1, -1}, weights);
  EXPECT_THAT(weights, ElementsAre(0.0f, 0.0f));
}

TEST(CapacityTest, ReweighingTheGatesChoiceGivesItsBits) {
  std::mt19937 random(17);
  for (int i = 0; i < 300; ++i) {
    const Case c = MakeCase(random);
    const size_t top_k = c.decision.top_k;
    std::vector<float> weights(top_k);
    for (size_t row = 0; row < c.decision.num_tokens; ++row) {
      Reweigh(std::span(c.matrix().row(row), c.num_experts),
              c.decision.renormalized,
              std::span(c.decision.topk_idx).subspan(row * top_k, top_k),
              weights);
      for (size_t k = 0; k < top_k; ++k) {
        const float expected = c.decision.topk_weights[row * top_k + k];
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(weights[k]));
        } else {
          ASSERT_EQ(weights[k], expected);
        }
      }
    }
  }
}

TEST(CapacityTest, RefuseByHasNames) {
  for (const RefuseBy by :
       {RefuseBy::kPosition, RefuseBy::kWeight, RefuseBy::kRandom}) {
    EXPECT_EQ(*ParseRefuseBy(Name(by)), by);
  }
  EXPECT_THAT(std::string(ParseRefuseBy("size").status().message()),
              testing::HasSubstr("\"size\" is none of position"));
}

}  // namespace
}  // namespace troupe
