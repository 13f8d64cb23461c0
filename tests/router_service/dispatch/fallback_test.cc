// The dispatcher's fallbacks against fake expert processes. Every output is
// checked bit by bit against what its fates say was computed.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "tests/fakes/fake_expert_process.h"

namespace troupe {
namespace {

using ::testing::Each;
using ::testing::Field;
using ::testing::SizeIs;

constexpr uint32_t kNumLayers = 2;
constexpr size_t kNumExperts = 6;
constexpr size_t kHiddenSize = 5;
constexpr size_t kTopK = 2;

using WaitingFor = TokenDispatcher::WaitingFor;

absl::Status Patient(WaitingFor) { return absl::OkStatus(); }

struct Work {
  std::vector<float> hidden;
  std::vector<float> probs;
  RoutingDecision decision;

  size_t num_tokens() const { return decision.num_tokens; }
  ConstFloatMatrix matrix() const {
    return {hidden.data(), num_tokens(), kHiddenSize};
  }
  ConstFloatMatrix router_probs() const {
    return {probs.data(), num_tokens(), kNumExperts};
  }
};

// `skew`: how much more probable the first experts are.
Work MakeWork(size_t num_tokens, uint32_t seed, bool renormalize, int skew) {
  std::mt19937 random(seed);
  Work work;
  for (size_t t = 0; t < num_tokens; ++t) {
    for (size_t c = 0; c < kHiddenSize; ++c) {
      work.hidden.push_back(FakeHidden(t, c));
    }
    float sum = 0.0f;
    for (size_t e = 0; e < kNumExperts; ++e) {
      const float p = static_cast<float>(1 + random() % 97) *
                      (e < kTopK ? static_cast<float>(skew) : 1.0f);
      work.probs.push_back(p);
      sum += p;
    }
    for (size_t e = 0; e < kNumExperts; ++e) {
      work.probs[t * kNumExperts + e] /= sum;
    }
  }
  ChooseTopK({work.probs.data(), num_tokens, kNumExperts}, kTopK, renormalize,
             work.decision);
  return work;
}

class FallbackTest : public testing::Test {
 protected:
  FallbackTest() {
    options_.hidden_size = kHiddenSize;
    options_.num_experts = kNumExperts;
    options_.hop_timeout = milliseconds(60000);
    options_.check_after = milliseconds(1);
    options_.fallback_wait = milliseconds(0);
  }

  FakeExpertProcess& AddProcess(const std::vector<uint32_t>& experts) {
    const std::string name = absl::StrCat("p", processes_.size());
    processes_.push_back(std::make_unique<FakeExpertProcess>(
        FakeDescription(name, experts, kNumLayers)));
    return *processes_.back();
  }
  TokenDispatcher& Start() {
    ExpertPoolOptions options;
    options.is_moe_layer.assign(kNumLayers, true);
    options.num_experts = kNumExperts;
    options.min_backoff = milliseconds(1);
    options.max_backoff = milliseconds(2);
    std::vector<ExpertPool::Member> members;
    for (const auto& process : processes_) {
      members.push_back(
          {absl::StrCat("address-", members.size()), process->MakePeer()});
    }
    experts_ = std::make_unique<ExpertPool>(options, std::move(members));
    for (const auto& process : processes_) process->WaitForConnects(1);
    dispatcher_ = std::make_unique<TokenDispatcher>(*experts_, options_);
    return *dispatcher_;
  }

  // What the fates since set_policies say was computed.
  std::vector<float> Expected(const Work& work, size_t layer) const {
    std::vector<int32_t> experts = work.decision.topk_idx;
    std::vector<float> weights = work.decision.topk_weights;
    std::set<size_t> changed;
    for (const FatedCopy& copy : dispatcher_->fates()) {
      if (copy.layer != layer || copy.fate < CopyFate::kNextBest) continue;
      changed.insert(copy.row);
      for (size_t i = 0; i < kTopK; ++i) {
        int32_t& expert = experts[copy.row * kTopK + i];
        if (work.decision.topk_idx[copy.row * kTopK + i] ==
            static_cast<int32_t>(copy.expert)) {
          expert = copy.stand_in;
        }
      }
    }
    for (const size_t row : changed) {
      Reweigh(std::span(work.router_probs().row(row), kNumExperts),
              work.decision.renormalized,
              std::span(experts).subspan(row * kTopK, kTopK),
              std::span(weights).subspan(row * kTopK, kTopK));
    }
    std::vector<float> expected(work.num_tokens() * kHiddenSize, 0.0f);
    for (size_t t = 0; t < work.num_tokens(); ++t) {
      for (size_t c = 0; c < kHiddenSize; ++c) {
        float sum = 0.0f;
        for (size_t i = 0; i < kTopK; ++i) {
          const int32_t expert = experts[t * kTopK + i];
          if (expert < 0) continue;
          sum = std::fma(weights[t * kTopK + i],
                         FakeOutput(t, static_cast<size_t>(expert), c), sum);
        }
        expected[t * kHiddenSize + c] += sum;
      }
    }
    return expected;
  }

  void Run(const Work& work, const std::vector<FallbackPolicy>& policies,
           size_t layer = 0, const TokenDispatcher::Check& check = Patient) {
    std::vector<PolicyRows> rows;
    for (const FallbackPolicy& policy : policies) rows.push_back({1, policy});
    dispatcher_->set_policies(rows);
    std::vector<float> output(work.num_tokens() * kHiddenSize, 0.0f);
    const absl::Status status = dispatcher_->Combine(
        dispatcher_->Dispatch(layer, work.matrix(), work.decision,
                              work.router_probs()),
        check, FloatMatrix(output.data(), work.num_tokens(), kHiddenSize),
        pool_);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(output, Expected(work, layer));
    for (const FatedCopy& copy : dispatcher_->fates()) {
      const FallbackPolicy& policy = policies[copy.row];
      EXPECT_TRUE(copy.fate != CopyFate::kNextBest || policy.next_best);
      EXPECT_TRUE(copy.fate != CopyFate::kDropped || policy.drop);
      EXPECT_EQ(copy.stand_in >= 0, copy.fate == CopyFate::kNextBest);
    }
  }
  void RunAll(const Work& work, const FallbackPolicy& policy) {
    Run(work, std::vector<FallbackPolicy>(work.num_tokens(), policy));
  }
  std::map<CopyFate, size_t> NumByFate() const {
    std::map<CopyFate, size_t> count;
    for (const FatedCopy& copy : dispatcher_->fates()) ++count[copy.fate];
    return count;
  }

  ThreadPool pool_{2};
  TokenDispatcherOptions options_;
  std::vector<std::unique_ptr<FakeExpertProcess>> processes_;
  std::unique_ptr<ExpertPool> experts_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
};

const std::vector<uint32_t> kAll = {0, 1, 2, 3, 4, 5};

// Half of each message is refused again and again, until nothing is left.
TEST_F(FallbackTest, WhatAnAnswerLeavesOutIsSentAgain) {
  FakeExpertProcess& process = AddProcess(kAll);
  Start();
  process.Script({}, FakeAnswer::kPartial);
  const Work work = MakeWork(8, 1, true, 1);
  RunAll(work, FallbackPolicy::Exact());
  EXPECT_EQ(process.batches().size(), 5u);  // of 16, 8, 4, 2 and 1 copies
  EXPECT_EQ(dispatcher_->stats().copies_refused, 15u);
  EXPECT_EQ(NumByFate()[CopyFate::kAfterWait], 15u - 4 - 2 - 1);
  uint64_t refused = 0;
  for (const uint64_t count : dispatcher_->refused_per_expert(0)) {
    refused += count;
  }
  EXPECT_EQ(refused, 15u);
  EXPECT_TRUE(dispatcher_->refused_per_expert(1).empty());
}

TEST_F(FallbackTest, AListOfRefusedCopiesThatIsWrongIsNoAnswer) {
  FakeExpertProcess& process = AddProcess(kAll);
  Start();
  process.Script({FakeAnswer::kBadPartial, FakeAnswer::kBadPartial},
                 FakeAnswer::kCompute);
  RunAll(MakeWork(8, 1, true, 1), FallbackPolicy::Exact());
  EXPECT_EQ(process.batches().size(), 3u);
  EXPECT_EQ(process.batches()[2].row_of_copy_size(), 16);
}

TEST_F(FallbackTest, TheOtherReplicaComputesWhatIsLeftOut) {
  FakeExpertProcess& a = AddProcess(kAll);
  FakeExpertProcess& b = AddProcess(kAll);
  a.SetFreeRows(2000);  // asked first from the second layer on
  Start();
  RunAll(MakeWork(8, 1, true, 1), FallbackPolicy::Exact());
  b.SetFreeRows(1);
  RunAll(MakeWork(8, 1, true, 1), FallbackPolicy::Exact());
  a.Script({FakeAnswer::kPartial}, FakeAnswer::kCompute);
  RunAll(MakeWork(8, 1, true, 1), FallbackPolicy::Fast());
  EXPECT_GT(NumByFate()[CopyFate::kReplica], 0u);
  EXPECT_EQ(NumByFate()[CopyFate::kNextBest], 0u);
}

class FallbackFamilies : public FallbackTest,
                         public testing::WithParamInterface<bool> {};

// Experts 0 and 1 have no room; 2 to 5 have.
TEST_P(FallbackFamilies, TheNextBestExpertThatHasRoom) {
  FakeExpertProcess& full = AddProcess({0, 1});
  AddProcess({2, 3, 4, 5});
  Start();
  full.SetFreeRows(0);
  full.Script({}, FakeAnswer::kRefuse);
  const Work work = MakeWork(9, 2, GetParam(), 400);
  RunAll(work, *ParseFallback("next_best"));
  EXPECT_EQ(NumByFate()[CopyFate::kNextBest], 18u);
  for (const FatedCopy& copy : dispatcher_->fates()) {
    EXPECT_GE(copy.stand_in, 2);
    EXPECT_LT(copy.expert, 2u);
  }
}

TEST_P(FallbackFamilies, DroppedWhenNobodyHasRoom) {
  FakeExpertProcess& full = AddProcess({0, 1});
  FakeExpertProcess& other = AddProcess({2, 3, 4, 5});
  Start();
  RunAll(MakeWork(4, 3, GetParam(), 1), FallbackPolicy::Exact());
  full.SetFreeRows(0);
  other.SetFreeRows(0);
  RunAll(MakeWork(4, 3, GetParam(), 1), FallbackPolicy::Exact());
  full.Script({}, FakeAnswer::kRefuse);
  const Work work = MakeWork(9, 2, GetParam(), 400);
  RunAll(work, FallbackPolicy::Fast());
  EXPECT_EQ(NumByFate()[CopyFate::kDropped], 18u);  // the residual alone
  // Without `drop` it waits, until there is room.
  full.Script({FakeAnswer::kRefuse, FakeAnswer::kRefuse}, FakeAnswer::kCompute);
  RunAll(work, FallbackPolicy::Balanced());
  EXPECT_EQ(NumByFate()[CopyFate::kAfterWait], 18u);
}

INSTANTIATE_TEST_SUITE_P(Renormalized, FallbackFamilies, testing::Bool());

TEST_F(FallbackTest, WaitsAsLongAsItMay) {
  FakeExpertProcess& full = AddProcess({0, 1});
  AddProcess({2, 3, 4, 5});
  options_.fallback_wait = milliseconds(60000);
  Start();
  full.Script({FakeAnswer::kRefuse, FakeAnswer::kRefuse, FakeAnswer::kRefuse},
              FakeAnswer::kCompute);
  RunAll(MakeWork(5, 4, true, 400), FallbackPolicy::Balanced());
  EXPECT_EQ(NumByFate()[CopyFate::kAfterWait], 10u);
  EXPECT_EQ(full.batches().size(), 4u);
}

// With the last replica of an expert away nobody asks and nothing waits.
TEST_F(FallbackTest, WithoutAReplicaTheChainGoesOnAtOnce) {
  FakeExpertProcess& gone = AddProcess({0, 1});
  AddProcess({2, 3, 4, 5});
  options_.check_after = milliseconds(60000);
  options_.fallback_wait = milliseconds(60000);
  Start();
  gone.Lose(/*reachable=*/false);
  const Work work = MakeWork(5, 4, true, 400);
  RunAll(work, FallbackPolicy::Balanced());
  EXPECT_EQ(NumByFate()[CopyFate::kNextBest], 10u);
  RunAll(work, *ParseFallback("drop"));
  EXPECT_EQ(NumByFate()[CopyFate::kDropped], 10u);
}

// An exact row in the same step waits; the others have long decided.
TEST_F(FallbackTest, ExactRowsWaitForTheLastReplica) {
  FakeExpertProcess& gone = AddProcess({0, 1});
  AddProcess({2, 3, 4, 5});
  Start();
  gone.Lose(/*reachable=*/false);
  const Work work = MakeWork(4, 4, true, 400);
  int asked = 0;
  Run(work,
      {FallbackPolicy::Exact(), FallbackPolicy::Fast(), FallbackPolicy::Exact(),
       FallbackPolicy::Balanced()},
      0, [&](WaitingFor what) {
        EXPECT_EQ(what, WaitingFor::kReplica);
        if (++asked == 3) gone.SetReachable(true);
        return absl::OkStatus();
      });
  EXPECT_GE(asked, 3);
  for (const FatedCopy& copy : dispatcher_->fates()) {
    EXPECT_EQ(copy.fate,
              copy.row % 2 == 0 ? CopyFate::kAfterWait : CopyFate::kNextBest);
  }
  EXPECT_THAT(dispatcher_->fates(), SizeIs(8));
}

TEST_F(FallbackTest, MessagesSayWhomToRefuse) {
  FakeExpertProcess& process = AddProcess(kAll);
  options_.refuse = RefuseBy::kWeight;
  Start();
  const Work work = MakeWork(4, 5, true, 1);
  Run(work, {FallbackPolicy::Exact(), FallbackPolicy::Fast(),
             FallbackPolicy::Fast(), FallbackPolicy::Exact()});
  const v1::ExpertBatch batch = process.batches().at(0);
  ASSERT_EQ(batch.priorities_size(), batch.row_of_copy_size());
  EXPECT_EQ(std::count(batch.priorities().begin(), batch.priorities().end(),
                       kKeptCopy),
            4);
  // Nothing to say when all are alike.
  RunAll(work, FallbackPolicy::Exact());
  EXPECT_EQ(process.batches().at(1).priorities_size(), 0);
}

TEST_F(FallbackTest, TheCapacityFactorBoundsEveryExpert) {
  FakeExpertProcess& process = AddProcess(kAll);
  options_.capacity_factor = 1.0;
  Start();
  const Work work = MakeWork(12, 6, true, 50);
  for (const char* policy : {"next_best,drop", "drop", "fast", "balanced"}) {
    SCOPED_TRACE(policy);
    const size_t before = process.batches().size();
    RunAll(work, *ParseFallback(policy));
    const std::vector<v1::ExpertBatch> batches = process.batches();
    ASSERT_EQ(batches.size(), before + 1);
    for (const uint32_t copies : batches.back().copies_per_expert()) {
      EXPECT_LE(copies, 4u);  // 12 tokens x 2 / 6 experts
    }
    EXPECT_FALSE(dispatcher_->fates().empty());
  }
  EXPECT_GT(dispatcher_->stats().copies_over_capacity, 0u);
  EXPECT_EQ(dispatcher_->over_capacity_per_expert(0).size(), kNumExperts);
  // Off for exact requests.
  const size_t before = process.batches().size();
  RunAll(work, FallbackPolicy::Exact());
  EXPECT_TRUE(dispatcher_->fates().empty());
  uint32_t most = 0;
  for (const uint32_t copies : process.batches()[before].copies_per_expert()) {
    most = std::max(most, copies);
  }
  EXPECT_GT(most, 8u);
}

TEST_F(FallbackTest, OverTheCapacityTheOtherReplicaIsAsked) {
  FakeExpertProcess& a = AddProcess(kAll);
  FakeExpertProcess& b = AddProcess(kAll);
  options_.capacity_factor = 1.0;
  Start();
  const Work work = MakeWork(12, 6, true, 50);
  RunAll(work, *ParseFallback("replica,drop"));
  EXPECT_GT(NumByFate()[CopyFate::kReplica], 0u);
  for (FakeExpertProcess* process : {&a, &b}) {
    std::map<uint32_t, uint32_t> copies;
    for (const v1::ExpertBatch& batch : process->batches()) {
      for (int i = 0; i < batch.expert_ids_size(); ++i) {
        copies[batch.expert_ids(i)] += batch.copies_per_expert(i);
      }
    }
    EXPECT_FALSE(copies.empty());
    for (const auto& [expert, count] : copies) EXPECT_LE(count, 4u);
  }
}

// Whatever happens: outputs are what the fates say, exact rows what they always
// are, and no copy is in no class or in two.
TEST_F(FallbackTest, Chaos) {
  std::vector<FakeExpertProcess*> all = {
      &AddProcess({0, 1, 2}), &AddProcess({2, 3, 4}), &AddProcess({4, 5, 0})};
  options_.capacity_factor = 1.5;
  options_.fallback_wait = milliseconds(1);
  options_.refuse = RefuseBy::kRandom;
  Start();
  std::mt19937 random(9);
  std::set<CopyFate> seen;
  for (uint32_t round = 0; round < 300; ++round) {
    for (FakeExpertProcess* process : all) {
      std::vector<FakeAnswer> answers;
      for (size_t i = random() % 5; i > 0; --i) {
        const FakeAnswer kinds[] = {FakeAnswer::kCompute, FakeAnswer::kRefuse,
                                    FakeAnswer::kPartial, FakeAnswer::kFail,
                                    FakeAnswer::kPartial, FakeAnswer::kShort};
        answers.push_back(kinds[random() % 6]);
      }
      process->Script(answers, FakeAnswer::kCompute);
      process->SetFreeRows(random() % 3 == 0 ? 0 : random() % 30);
    }
    const Work work = MakeWork(1 + random() % 14, round, round % 2 == 0,
                               1 + static_cast<int>(random() % 6));
    std::vector<FallbackPolicy> policies;
    for (size_t row = 0; row < work.num_tokens(); ++row) {
      policies.push_back({random() % 2 == 0, random() % 2 == 0,
                          random() % 2 == 0, random() % 3 == 0});
    }
    ASSERT_NO_FATAL_FAILURE(Run(work, policies, round % kNumLayers))
        << "round " << round;
    std::set<std::pair<size_t, size_t>> copies;
    for (const FatedCopy& copy : dispatcher_->fates()) {
      EXPECT_TRUE(copies.emplace(copy.row, copy.expert).second);
      seen.insert(copy.fate);
      if (policies[copy.row].is_exact()) {
        EXPECT_LE(copy.fate, CopyFate::kAfterWait);
      }
    }
  }
  EXPECT_EQ(seen.size(), 4u);  // all but first choice and other version
}

}  // namespace
}  // namespace troupe
