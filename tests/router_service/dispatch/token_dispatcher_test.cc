// The dispatcher against fake expert processes that refuse, fail, hold their
// answers, answer nonsense, die and come back. Every value that comes out is
// checked against its closed form.
#include "router_service/dispatch/token_dispatcher.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/version_key.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_expert_process.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kNumLayers = 3;
constexpr size_t kNumExperts = 4;
constexpr size_t kHiddenSize = 5;
constexpr size_t kTopK = 2;

// Nobody waits for ever in a test that is wrong.
using WaitingFor = TokenDispatcher::WaitingFor;

absl::Status Patient(WaitingFor) { return absl::OkStatus(); }

class TokenDispatcherTest : public testing::Test {
 protected:
  TokenDispatcherTest() {
    options_.hidden_size = kHiddenSize;
    options_.num_experts = kNumExperts;
    // Tests that mean a silent peer say so.
    options_.hop_timeout = milliseconds(60000);
    options_.check_after = milliseconds(1);
    // And so do those that mean a late one.
    options_.hedging = false;
  }

  FakeExpertProcess& AddProcess(const std::vector<uint32_t>& experts,
                                bool own_thread = false) {
    const std::string name = absl::StrCat("p", processes_.size());
    processes_.push_back(std::make_unique<FakeExpertProcess>(
        FakeDescription(name, experts, kNumLayers), own_thread));
    return *processes_.back();
  }

  TokenDispatcher& Start() {
    ExpertPoolOptions options;
    options.is_moe_layer.assign(kNumLayers, true);
    options.num_experts = kNumExperts;
    options.min_backoff = milliseconds(1);
    options.max_backoff = milliseconds(2);
    options.hedge.unknown = milliseconds(5);
    options.ejection = false;
    std::vector<ExpertPool::Member> members;
    for (const auto& process : processes_) {
      members.push_back(
          {absl::StrCat("address-", members.size()), process->MakePeer()});
    }
    options.make_peer = [this](const std::string& address) {
      return std::move(new_peers_.at(address));
    };
    experts_ = std::make_unique<ExpertPool>(options, std::move(members));
    for (const auto& process : processes_) process->WaitForConnects(1);
    dispatcher_ = std::make_unique<TokenDispatcher>(*experts_, options_);
    return *dispatcher_;
  }

  // Tokens and their experts; the expert ids ascend within a token.
  struct Work {
    std::vector<float> hidden;
    RoutingDecision decision;

    ConstFloatMatrix matrix() const {
      return ConstFloatMatrix(hidden.data(), decision.num_tokens, kHiddenSize);
    }
  };
  static Work MakeWork(size_t num_tokens, uint32_t seed = 1,
                       bool with_holes = false) {
    std::mt19937 random(seed);
    Work work;
    work.decision.num_tokens = num_tokens;
    work.decision.top_k = kTopK;
    for (size_t t = 0; t < num_tokens; ++t) {
      for (size_t c = 0; c < kHiddenSize; ++c) {
        work.hidden.push_back(FakeHidden(t, c));
      }
      std::set<int32_t> chosen;
      while (chosen.size() < kTopK) {
        chosen.insert(static_cast<int32_t>(random() % kNumExperts));
      }
      for (const int32_t expert : chosen) {
        work.decision.topk_idx.push_back(
            with_holes && random() % 3 == 0 ? -1 : expert);
        work.decision.topk_weights.push_back(
            static_cast<float>(1 + random() % 100) / 128);
      }
    }
    return work;
  }
  // All tokens to all of `experts` (two of them).
  static Work MakeWorkFor(size_t num_tokens, std::vector<int32_t> experts) {
    Work work = MakeWork(num_tokens);
    for (size_t i = 0; i < work.decision.topk_idx.size(); ++i) {
      work.decision.topk_idx[i] = experts[i % kTopK];
    }
    return work;
  }

  static std::vector<float> Residual(size_t num_tokens) {
    std::vector<float> residual(num_tokens * kHiddenSize);
    for (size_t i = 0; i < residual.size(); ++i) {
      residual[i] = 0.25f * static_cast<float>(i);
    }
    return residual;
  }

  // One fma chain in the order of the slots, then one add: bit by bit.
  static std::vector<float> Expected(const Work& work) {
    const RoutingDecision& decision = work.decision;
    std::vector<float> expected = Residual(decision.num_tokens);
    for (size_t t = 0; t < decision.num_tokens; ++t) {
      for (size_t c = 0; c < kHiddenSize; ++c) {
        float sum = 0.0f;
        for (size_t i = 0; i < kTopK; ++i) {
          const int32_t expert = decision.topk_idx[t * kTopK + i];
          if (expert < 0) continue;
          sum = std::fma(decision.topk_weights[t * kTopK + i],
                         FakeOutput(t, static_cast<size_t>(expert), c), sum);
        }
        expected[t * kHiddenSize + c] += sum;
      }
    }
    return expected;
  }

  absl::Status Combine(DispatchHandle handle, const Work& work,
                       std::vector<float>& output,
                       const TokenDispatcher::Check& check = Patient) {
    output = Residual(work.decision.num_tokens);
    return dispatcher_->Combine(
        std::move(handle), check,
        FloatMatrix(output.data(), work.decision.num_tokens, kHiddenSize),
        pool_);
  }
  // Dispatches, combines and compares.
  void ExpectExact(const Work& work, size_t layer = 0) {
    std::vector<float> output;
    const absl::Status status =
        Combine(dispatcher_->Dispatch(layer, work.matrix(), work.decision),
                work, output);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(output, Expected(work));
  }

  ThreadPool pool_{2};
  TokenDispatcherOptions options_;
  // Of addresses that are added.
  std::map<std::string, std::unique_ptr<ExpertPeer>> new_peers_;
  std::vector<std::unique_ptr<FakeExpertProcess>> processes_;
  std::unique_ptr<ExpertPool> experts_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
};

TEST_F(TokenDispatcherTest, OneMessagePerProcess) {
  FakeExpertProcess& a = AddProcess({0, 1});
  FakeExpertProcess& b = AddProcess({2, 3});
  Start();
  const Work work = MakeWorkFor(6, {1, 2});
  ExpectExact(work, 2);
  ASSERT_EQ(a.batches().size(), 1u);
  ASSERT_EQ(b.batches().size(), 1u);
  const v1::ExpertBatch batch = a.batches()[0];
  EXPECT_EQ(batch.layer(), 2u);
  EXPECT_EQ(batch.num_tokens(), 6u);
  EXPECT_THAT(batch.expert_ids(), ElementsAre(1));
  EXPECT_EQ(batch.timeout_ms(), 60000u);
  EXPECT_EQ(dispatcher_->stats().copies_dispatched, 12u);
  EXPECT_EQ(dispatcher_->stats().copies_resent, 0u);
}

// Few rows share a message; many are split over the replicas, also where one
// expert alone has a replica that others' process holds.
TEST_F(TokenDispatcherTest, ManyRowsAreSplitOverReplicas) {
  FakeExpertProcess& a = AddProcess({0, 1});
  FakeExpertProcess& b = AddProcess({0, 1});
  Start();
  ExpectExact(MakeWorkFor(2, {0, 1}));
  EXPECT_EQ(a.batches().size() + b.batches().size(), 1u);

  // New ones: those of before were measured, and compute in no time.
  dispatcher_ = nullptr;
  experts_ = nullptr;
  processes_.clear();
  FakeExpertProcess& c = AddProcess({0, 1});
  FakeExpertProcess& d = AddProcess({0, 1});
  Start();
  ExpectExact(MakeWorkFor(400, {0, 1}), 1);
  EXPECT_EQ(c.batches().size(), 1u);
  EXPECT_EQ(d.batches().size(), 1u);

  dispatcher_ = nullptr;
  experts_ = nullptr;
  processes_.clear();
  FakeExpertProcess& hot = AddProcess({0, 1});
  FakeExpertProcess& cold = AddProcess({1, 2, 3});
  Start();
  ExpectExact(MakeWorkFor(400, {0, 1}));
  ASSERT_EQ(hot.batches().size(), 1u);
  ASSERT_EQ(cold.batches().size(), 1u);
  EXPECT_THAT(hot.batches()[0].expert_ids(), ElementsAre(0));
  EXPECT_THAT(cold.batches()[0].expert_ids(), ElementsAre(1));
}

TEST_F(TokenDispatcherTest, AnyPlacementGivesTheSameBytes) {
  const std::vector<std::vector<std::vector<uint32_t>>> placements = {
      {{0, 1, 2, 3}},
      {{0, 1}, {2, 3}},
      {{0}, {1}, {2}, {3}},
      {{0, 1, 2, 3}, {0, 1, 2, 3}},
      {{0, 2}, {1, 3}, {0, 1, 2}}};
  for (const bool own_thread : {false, true}) {
    for (const auto& placement : placements) {
      experts_ = nullptr;
      processes_.clear();
      for (const auto& owned : placement) AddProcess(owned, own_thread);
      Start();
      for (uint32_t seed = 0; seed < 5; ++seed) {
        ExpectExact(MakeWork(1 + 7 * seed, seed, seed % 2 == 1), seed % 3);
      }
    }
  }
}

TEST_F(TokenDispatcherTest, NothingRoutedNeedsNobody) {
  Start();
  ExpectExact(MakeWork(0));
  ExpectExact(MakeWorkFor(3, {-1, -1}));
}

TEST_F(TokenDispatcherTest, WhatIsLostIsSentAgain) {
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  process.Script({FakeAnswer::kHold, FakeAnswer::kCompute},
                 FakeAnswer::kCompute);
  const Work work = MakeWork(8);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  process.Lose(/*reachable=*/true);
  std::vector<float> output;
  ASSERT_TRUE(Combine(std::move(handle), work, output).ok());
  EXPECT_EQ(output, Expected(work));
}

TEST_F(TokenDispatcherTest, SeveralDispatchesInFlight) {
  FakeExpertProcess& a = AddProcess({0, 1});
  FakeExpertProcess& b = AddProcess({2, 3});
  TokenDispatcher& dispatcher = Start();
  a.Script({}, FakeAnswer::kHold);
  b.Script({}, FakeAnswer::kHold);
  std::vector<Work> works;
  std::vector<DispatchHandle> handles;
  for (uint32_t i = 0; i < 3; ++i) {
    works.push_back(MakeWork(4 + i, i));
    handles.push_back(
        dispatcher.Dispatch(i, works[i].matrix(), works[i].decision));
  }
  a.Release();
  b.Release();
  for (const size_t i : {2, 0, 1}) {
    std::vector<float> output;
    ASSERT_TRUE(Combine(std::move(handles[i]), works[i], output).ok());
    EXPECT_EQ(output, Expected(works[i])) << i;
  }
}

TEST_F(TokenDispatcherTest, LargeBatchesAreCut) {
  // Three copies per message.
  options_.max_output_bytes = 3 * kHiddenSize * sizeof(float) + 2;
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  Start();
  const Work work = MakeWork(20);
  ExpectExact(work);
  size_t copies = 0;
  for (const v1::ExpertBatch& batch : process.batches()) {
    EXPECT_LE(batch.row_of_copy_size(), 3);
    EXPECT_TRUE(std::is_sorted(batch.expert_ids().begin(),
                               batch.expert_ids().end(), std::less_equal<>()));
    copies += static_cast<size_t>(batch.row_of_copy_size());
  }
  EXPECT_EQ(copies, 40u);
  EXPECT_EQ(process.batches().size(), 14u);

  // A row that is larger than the bound goes alone.
  options_.max_output_bytes = 1;
  dispatcher_ = std::make_unique<TokenDispatcher>(*experts_, options_);
  ExpectExact(MakeWork(3));
  EXPECT_EQ(process.batches().size(), 14 + 6u);
}

// Whatever goes wrong with one replica, the other one gives the same bytes.
TEST_F(TokenDispatcherTest, TheOtherReplicaIsAsked) {
  for (const bool own_thread : {false, true}) {
    for (const FakeAnswer answer :
         {FakeAnswer::kRefuse, FakeAnswer::kDrain, FakeAnswer::kFail,
          FakeAnswer::kShort, FakeAnswer::kLong, FakeAnswer::kUnspecified}) {
      SCOPED_TRACE(static_cast<int>(answer));
      experts_ = nullptr;
      processes_.clear();
      FakeExpertProcess& bad = AddProcess({0, 1, 2, 3}, own_thread);
      FakeExpertProcess& good = AddProcess({0, 1, 2, 3}, own_thread);
      Start();
      bad.Script({}, answer);
      // Who is asked first is a matter of turns.
      for (uint32_t seed = 0; seed < 4; ++seed) {
        ExpectExact(MakeWork(9, seed));
      }
      EXPECT_GE(bad.batches().size(), 1u);
      EXPECT_GE(good.batches().size(), 4u);
      const DispatchStats stats = dispatcher_->stats();
      EXPECT_EQ(stats.copies_dispatched, 4 * 18u);
      EXPECT_GT(stats.copies_resent, 0u);
      const bool refused = answer == FakeAnswer::kRefuse ||
                           answer == FakeAnswer::kDrain ||
                           answer == FakeAnswer::kUnspecified;
      EXPECT_EQ(stats.copies_refused > 0, refused);
    }
  }
}

// Two bad replicas with much room do not keep the third from being asked.
TEST_F(TokenDispatcherTest, EveryReplicaIsAskedBeforeOneIsAskedAgain) {
  FakeExpertProcess& bad = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& worse = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& good = AddProcess({0, 1, 2, 3});
  Start();
  bad.Script({}, FakeAnswer::kShort);
  worse.Script({}, FakeAnswer::kFail);
  good.SetFreeRows(1);
  ExpectExact(MakeWork(1));
  ExpectExact(MakeWork(1));  // now the pool knows that it has little room
  EXPECT_GE(good.batches().size(), 2u);
  EXPECT_LE(bad.batches().size() + worse.batches().size(), 8u);
}

TEST_F(TokenDispatcherTest, TheOnlyReplicaIsAskedAgain) {
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  Start();
  process.Script({FakeAnswer::kRefuse, FakeAnswer::kFail, FakeAnswer::kRefuse,
                  FakeAnswer::kLong},
                 FakeAnswer::kCompute);
  ExpectExact(MakeWork(7));
  EXPECT_EQ(process.batches().size(), 5u);
  EXPECT_EQ(dispatcher_->stats().copies_resent, 4 * 14u);
  EXPECT_EQ(dispatcher_->stats().copies_refused, 2 * 14u);
}

TEST_F(TokenDispatcherTest, ASilentPeerIsGivenUpAfterTheHopTimeout) {
  options_.hop_timeout = milliseconds(20);
  FakeExpertProcess& silent = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& good = AddProcess({0, 1, 2, 3});
  Start();
  silent.Script({}, FakeAnswer::kHold);
  for (uint32_t seed = 0; seed < 3; ++seed) ExpectExact(MakeWork(6, seed));
  ASSERT_GE(silent.num_held(), 1u);
  EXPECT_GE(good.batches().size(), 3u);
  // Answers that come much later change nothing.
  silent.Release();
  ExpectExact(MakeWork(6, 9));
}

// The late answer arrives while the same copies are on their second way.
TEST_F(TokenDispatcherTest, ALateAnswerIsNotUsedTwice) {
  options_.hop_timeout = milliseconds(20);
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  process.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  std::thread releaser([&] {
    process.WaitForBatches(2);
    process.Script({}, FakeAnswer::kCompute);
    process.Release();
  });
  std::vector<float> output;
  EXPECT_TRUE(Combine(std::move(handle), work, output).ok());
  releaser.join();
  EXPECT_EQ(output, Expected(work));
  EXPECT_EQ(dispatcher.stats().copies_dispatched, 10u);
}

class HedgingTest : public TokenDispatcherTest {
 protected:
  HedgingTest() { options_.hedging = true; }
};

// Without the second replica it would take the hop's minute.
TEST_F(HedgingTest, ALateMessageGoesToAnotherReplicaToo) {
  for (const bool own_thread : {false, true}) {
    experts_ = nullptr;
    processes_.clear();
    FakeExpertProcess& silent = AddProcess({0, 1, 2, 3}, own_thread);
    FakeExpertProcess& good = AddProcess({0, 1, 2, 3}, own_thread);
    Start();
    silent.Script({}, FakeAnswer::kHold);
    for (uint32_t seed = 0; seed < 4; ++seed) ExpectExact(MakeWork(6, seed));
    const DispatchStats stats = dispatcher_->stats();
    EXPECT_GE(stats.hedges, 1u);
    EXPECT_EQ(stats.hedges_won, stats.hedges);
    EXPECT_EQ(stats.copies_dispatched, 4 * 12u);
    // One that does not answer what is late is not asked for more.
    EXPECT_EQ(silent.num_held(), 1u);
    EXPECT_EQ(good.batches().size(), 4u);
    // What comes after all is too late.
    silent.Release();
    ExpectExact(MakeWork(6, 9));
  }
}

// The copies of one message may have to go to several others.
TEST_F(HedgingTest, ALateMessageIsSplitAmongReplicas) {
  FakeExpertProcess& silent = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  silent.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(8);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  ASSERT_EQ(silent.num_held(), 1u);
  std::map<std::string, std::unique_ptr<ExpertPeer>> peers;
  processes_.push_back(std::make_unique<FakeExpertProcess>(
      FakeDescription("left", {0, 1}, kNumLayers)));
  peers["left"] = processes_.back()->MakePeer();
  processes_.push_back(std::make_unique<FakeExpertProcess>(
      FakeDescription("right", {2, 3}, kNumLayers)));
  peers["right"] = processes_.back()->MakePeer();
  new_peers_ = std::move(peers);
  experts_->SetAddresses({"address-0", "left", "right"});
  std::vector<float> output;
  ASSERT_TRUE(Combine(std::move(handle), work, output).ok());
  EXPECT_EQ(output, Expected(work));
  EXPECT_EQ(dispatcher.stats().hedges_won, 2u);
}

TEST_F(HedgingTest, TheFirstAnswerIsUsed) {
  FakeExpertProcess& first = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& second = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  first.Script({}, FakeAnswer::kHold);
  second.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  FakeExpertProcess& asked = first.num_held() == 1 ? first : second;
  FakeExpertProcess& other = first.num_held() == 1 ? second : first;
  std::thread releaser([&] {
    other.WaitForBatches(1);
    asked.Release();
  });
  std::vector<float> output;
  EXPECT_TRUE(Combine(std::move(handle), work, output).ok());
  releaser.join();
  EXPECT_EQ(output, Expected(work));
  EXPECT_EQ(dispatcher.stats().hedges, 1u);
  EXPECT_EQ(dispatcher.stats().hedges_won, 0u);
  EXPECT_EQ(dispatcher.stats().copies_dispatched, 10u);
}

// What was sent twice is not sent a third time when the first one dies.
TEST_F(HedgingTest, AHedgeTakesThePlaceOfWhatIsLost) {
  FakeExpertProcess& first = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& second = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  first.Script({}, FakeAnswer::kHold);
  second.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  FakeExpertProcess& asked = first.num_held() == 1 ? first : second;
  FakeExpertProcess& other = first.num_held() == 1 ? second : first;
  std::thread killer([&] {
    other.WaitForBatches(1);
    asked.Lose(/*reachable=*/false);
    other.Release();
  });
  std::vector<float> output;
  EXPECT_TRUE(Combine(std::move(handle), work, output).ok());
  killer.join();
  EXPECT_EQ(output, Expected(work));
  EXPECT_EQ(other.batches().size(), 1u);
}

// A hedge that is refused or lost changes nothing for what is late.
TEST_F(HedgingTest, AHedgeThatFailsDoesNoHarm) {
  for (const FakeAnswer answer : {FakeAnswer::kRefuse, FakeAnswer::kFail,
                                  FakeAnswer::kShort, FakeAnswer::kDrain}) {
    experts_ = nullptr;
    processes_.clear();
    FakeExpertProcess& first = AddProcess({0, 1, 2, 3});
    FakeExpertProcess& second = AddProcess({0, 1, 2, 3});
    TokenDispatcher& dispatcher = Start();
    first.Script({}, FakeAnswer::kHold);
    second.Script({}, FakeAnswer::kHold);
    const Work work = MakeWork(5);
    DispatchHandle handle =
        dispatcher.Dispatch(0, work.matrix(), work.decision);
    FakeExpertProcess& asked = first.num_held() == 1 ? first : second;
    FakeExpertProcess& other = first.num_held() == 1 ? second : first;
    other.Script({}, answer);
    std::thread releaser([&] {
      other.WaitForBatches(1);
      asked.Release();
    });
    std::vector<float> output;
    EXPECT_TRUE(Combine(std::move(handle), work, output).ok());
    releaser.join();
    EXPECT_EQ(output, Expected(work));
    EXPECT_EQ(dispatcher.stats().copies_dispatched, 10u);
    EXPECT_EQ(dispatcher.stats().hedges_won, 0u);
  }
}

TEST_F(HedgingTest, TheBudgetBoundsHedges) {
  options_.hedge_budget = {/*per_send=*/0.0, /*per_second=*/0.0,
                           /*max_tokens=*/1.0};
  FakeExpertProcess& a = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& b = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  a.Script({}, FakeAnswer::kHold);
  b.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle first = dispatcher.Dispatch(0, work.matrix(), work.decision);
  DispatchHandle second = dispatcher.Dispatch(1, work.matrix(), work.decision);
  ASSERT_EQ(a.num_held() + b.num_held(), 2u);
  // Until somebody is told to wait for the lack of a token.
  int asked = 0;
  std::vector<float> output;
  ASSERT_TRUE(Combine(std::move(first), work, output, [&](WaitingFor) {
                if (++asked == 50) {
                  a.Release();
                  b.Release();
                }
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(output, Expected(work));
  ASSERT_TRUE(Combine(std::move(second), work, output).ok());
  EXPECT_EQ(output, Expected(work));
  EXPECT_LE(dispatcher.stats().hedges, 1u);
}

// The control: the hop's timeout is what is left.
TEST_F(TokenDispatcherTest, WithoutHedgingALateMessageWaitsForTheTimeout) {
  options_.hop_timeout = milliseconds(100);
  FakeExpertProcess& a = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& b = AddProcess({0, 1, 2, 3});
  Start();
  a.Script({FakeAnswer::kHold}, FakeAnswer::kCompute);
  b.Script({FakeAnswer::kHold}, FakeAnswer::kCompute);
  ExpectExact(MakeWork(6));
  EXPECT_EQ(dispatcher_->stats().hedges, 0u);
  EXPECT_GE(dispatcher_->stats().retries, 1u);
}

// `exact` ends, if slowly.
TEST_F(TokenDispatcherTest, RetriesWaitWhenTheBudgetIsSpent) {
  options_.retry_budget = {/*per_send=*/0.0, /*per_second=*/5.0,
                           /*max_tokens=*/1.0, milliseconds(40)};
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  Start();
  process.Script(std::vector<FakeAnswer>(8, FakeAnswer::kFail),
                 FakeAnswer::kCompute);
  ExpectExact(MakeWork(6));
  EXPECT_EQ(process.batches().size(), 9u);
  EXPECT_EQ(dispatcher_->stats().retries, 8u);
  EXPECT_GE(dispatcher_->stats().retries_held_back, 4u);
}

TEST_F(TokenDispatcherTest, APeerThatDiesIsReplacedByItsReplica) {
  FakeExpertProcess& dies = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& lives = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  dies.Script({}, FakeAnswer::kHold);
  lives.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle first = dispatcher.Dispatch(0, work.matrix(), work.decision);
  DispatchHandle second = dispatcher.Dispatch(1, work.matrix(), work.decision);
  ASSERT_GE(dies.num_held(), 1u);
  ASSERT_GE(lives.num_held(), 1u);
  dies.Lose(/*reachable=*/false);
  lives.Script({}, FakeAnswer::kCompute);
  lives.Release();
  for (DispatchHandle* handle : {&first, &second}) {
    std::vector<float> output;
    ASSERT_TRUE(Combine(std::move(*handle), work, output).ok());
    EXPECT_EQ(output, Expected(work));
  }
}

TEST_F(TokenDispatcherTest, WaitsForTheLastReplicaToComeBack) {
  FakeExpertProcess& a = AddProcess({0, 1});
  AddProcess({2, 3});
  TokenDispatcher& dispatcher = Start();
  a.Script({FakeAnswer::kHold}, FakeAnswer::kCompute);
  const Work work = MakeWorkFor(4, {0, 3});
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  a.Lose(/*reachable=*/false);
  int asked = 0;
  std::vector<float> output;
  const absl::Status status =
      Combine(std::move(handle), work, output, [&](WaitingFor what) {
        EXPECT_EQ(what, WaitingFor::kReplica);
        if (++asked == 3) a.SetReachable(true);
        return absl::OkStatus();
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(output, Expected(work));
  EXPECT_GE(asked, 3);
}

// Dispatch itself needs nobody either.
TEST_F(TokenDispatcherTest, WaitsForAReplicaThatWasNeverThere) {
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  process.SetReachable(false);
  Start();
  const Work work = MakeWork(4);
  std::vector<float> output;
  const absl::Status status =
      Combine(dispatcher_->Dispatch(1, work.matrix(), work.decision), work,
              output, [&](WaitingFor) {
                process.SetReachable(true);
                return absl::OkStatus();
              });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(output, Expected(work));
}

TEST_F(TokenDispatcherTest, AnErrorOfTheCheckNamesTheExpertWithoutReplica) {
  AddProcess({0, 1, 2});
  Start();
  const Work work = MakeWorkFor(4, {1, 3});
  std::vector<float> output;
  const absl::Status status = Combine(
      dispatcher_->Dispatch(2, work.matrix(), work.decision), work, output,
      [](WaitingFor) { return absl::AbortedError("gave up: "); });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("gave up: "), HasSubstr("expert 3 of layer 2"),
                    HasSubstr("no replica")));
  EXPECT_EQ(output, Residual(4));  // nothing was added
}

TEST_F(TokenDispatcherTest, AnErrorOfTheCheckNamesTheSilentProcess) {
  AddProcess({0, 1});
  FakeExpertProcess& silent = AddProcess({2, 3});
  Start();
  silent.Script({}, FakeAnswer::kHold);
  const Work work = MakeWorkFor(4, {1, 2});
  std::vector<float> output;
  const absl::Status status =
      Combine(dispatcher_->Dispatch(0, work.matrix(), work.decision), work,
              output, [](WaitingFor) { return absl::AbortedError(""); });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(std::string(status.message()),
            "expert 2 of layer 0 at address-1 has not answered");
  // The answer that comes now meets nobody, the next layer is not disturbed.
  silent.Script({}, FakeAnswer::kCompute);
  silent.Release();
  ExpectExact(MakeWork(5, 3));
}

// The check can tell a peer that is only slow from none.
TEST_F(TokenDispatcherTest, TheCheckIsToldWhatIsWaitedFor) {
  FakeExpertProcess& slow = AddProcess({0, 1, 2, 3}, /*own_thread=*/true);
  TokenDispatcher& dispatcher = Start();
  slow.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  int asked = 0;
  std::vector<float> output;
  EXPECT_TRUE(Combine(std::move(handle), work, output, [&](WaitingFor what) {
                EXPECT_EQ(what, WaitingFor::kOutput);
                if (++asked == 3) slow.Release();
                return absl::OkStatus();
              }).ok());
  EXPECT_GE(asked, 3);
  EXPECT_EQ(output, Expected(work));
}

// Batches say when nobody wants them any more.
TEST_F(TokenDispatcherTest, ABatchCarriesWhatIsLeftOfTheDeadline) {
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  const SteadyTime now = std::chrono::steady_clock::now();
  dispatcher.set_deadline(now + milliseconds(20000));
  ExpectExact(MakeWork(3));
  dispatcher.set_deadline(now + milliseconds(120000));
  ExpectExact(MakeWork(3));
  dispatcher.set_deadline(now - milliseconds(5));  // 0 would be never
  ExpectExact(MakeWork(3));
  dispatcher.set_deadline(kNoDeadline);
  ExpectExact(MakeWork(3));
  const std::vector<v1::ExpertBatch> batches = process.batches();
  ASSERT_EQ(batches.size(), 4u);
  EXPECT_LE(batches[0].timeout_ms(), 20000u);
  EXPECT_GT(batches[0].timeout_ms(), 1u);
  EXPECT_EQ(batches[1].timeout_ms(), 60000u);  // the hop's own
  EXPECT_EQ(batches[2].timeout_ms(), 1u);
  EXPECT_EQ(batches[3].timeout_ms(), 60000u);
}

// Rows are rounded before a transport sees them: none can leave it out.
TEST_F(TokenDispatcherTest, TheWiresFormatIsThatOfTheOptions) {
  options_.wire_dtype = DataType::kBF16;
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  process.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(2);
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  const v1::ExpertBatch batch = process.batches()[0];
  EXPECT_EQ(batch.dtype(), v1::WIRE_DTYPE_BFLOAT16);
  EXPECT_EQ(batch.hidden_states().size(), 2 * kHiddenSize * 2);
}

TEST_F(TokenDispatcherTest, AHandleMayBeDropped) {
  FakeExpertProcess& process = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  process.Script({}, FakeAnswer::kHold);
  const Work work = MakeWork(5);
  { (void)dispatcher.Dispatch(0, work.matrix(), work.decision); }
  process.Release();
  process.Script({}, FakeAnswer::kCompute);
  ExpectExact(work);
}

TEST_F(TokenDispatcherTest, CopiesFollowThePlacement) {
  FakeExpertProcess& a = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& b = AddProcess({});
  Start();
  ExpectExact(MakeWork(5));
  EXPECT_EQ(b.batches().size(), 0u);
  b.Describe(FakeDescription("b", {0, 1, 2, 3}, kNumLayers));
  v1::ExpertDescription draining =
      FakeDescription("a", {0, 1, 2, 3}, kNumLayers);
  draining.set_state(v1::SERVING_STATE_DRAINING);
  a.Describe(draining);
  ExpectExact(MakeWork(5));
  EXPECT_EQ(a.batches().size(), 1u);
  EXPECT_EQ(b.batches().size(), 1u);
}

// Two replicas that die, come back, refuse and answer nonsense at random while
// layer after layer is dispatched: no hang, no wrong byte.
TEST_F(TokenDispatcherTest, SurvivesChaos) {
  options_.hop_timeout = milliseconds(50);
  AddProcess({0, 1, 2, 3}, /*own_thread=*/true);
  AddProcess({0, 1, 2, 3}, /*own_thread=*/true);
  AddProcess({1, 2}, /*own_thread=*/true);
  Start();
  std::atomic<bool> stop = false;
  std::thread chaos([&] {
    std::mt19937 random(17);
    const FakeAnswer answers[] = {FakeAnswer::kRefuse, FakeAnswer::kDrain,
                                  FakeAnswer::kFail,   FakeAnswer::kShort,
                                  FakeAnswer::kLong,   FakeAnswer::kHold};
    size_t last = 0;
    while (!stop) {
      FakeExpertProcess& process = *processes_[random() % processes_.size()];
      switch (random() % 4) {
        case 0:
          process.Lose(/*reachable=*/true);
          break;
        case 1:
          process.Script({answers[random() % 6], answers[random() % 6]},
                         FakeAnswer::kCompute);
          break;
        case 2:
          process.Release();
          break;
        case 3:
          process.SetFreeRows(random() % 2000);
          break;
      }
      // Some work is done between two blows.
      size_t batches = last;
      for (int i = 0; i < 1000 && !stop && batches <= last + 1; ++i) {
        std::this_thread::yield();
        batches =
            processes_[0]->batches().size() + processes_[1]->batches().size();
      }
      last = batches;
    }
  });
  for (uint32_t round = 0; round < 200; ++round) {
    const Work work = MakeWork(1 + round % 13, round);
    std::vector<float> output;
    const absl::Status status = Combine(
        dispatcher_->Dispatch(round % kNumLayers, work.matrix(), work.decision),
        work, output);
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(output, Expected(work)) << "round " << round;
  }
  stop = true;
  chaos.join();
  EXPECT_GT(dispatcher_->stats().copies_resent, 0u);
}

// All experts of all layers with one version, whose hashes end in the expert.
SnapshotPtr SnapshotOf(const std::string& version,
                       const std::string& of_expert_3 = "") {
  std::vector<uint64_t> keys;
  for (size_t layer = 0; layer < kNumLayers; ++layer) {
    for (size_t expert = 0; expert < kNumExperts; ++expert) {
      const bool other = expert == 3 && !of_expert_3.empty();
      keys.push_back(VersionKeyOf(
          absl::StrCat(other ? of_expert_3 : version, "-", expert)));
    }
  }
  return std::make_shared<ModelSnapshot>(kNumExperts, std::move(keys), "");
}

v1::ExpertDescription WithVersions(const std::vector<std::string>& versions) {
  v1::ExpertDescription description;
  for (const std::string& version : versions) {
    v1::ExpertDescription one =
        FakeDescription("p", {0, 1, 2, 3}, kNumLayers, version);
    one.mutable_experts()->MergeFrom(description.experts());
    description = std::move(one);
  }
  return description;
}

TEST_F(TokenDispatcherTest, OneMessageForSeveralSnapshots) {
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v1", "v2"})));
  TokenDispatcher& dispatcher = Start();
  const Work work = MakeWorkFor(6, {0, 3});
  // They differ in expert 3 alone.
  const SnapshotPtr old_one = SnapshotOf("v1");
  const SnapshotPtr new_one = SnapshotOf("v1", "v2");
  dispatcher.set_snapshots({{2, old_one}, {1, new_one}, {3, old_one}});
  ExpectExact(work, 1);
  const std::vector<v1::ExpertBatch> batches = processes_[0]->batches();
  ASSERT_EQ(batches.size(), 1u);
  EXPECT_EQ(batches[0].num_tokens(), 6u);
  EXPECT_THAT(batches[0].expert_ids(), ElementsAre(0, 3, 3));
  EXPECT_EQ(batches[0].versions(0), VersionKeyOf("v1-0"));
  const uint64_t old_key = VersionKeyOf("v1-3");
  const uint64_t new_key = VersionKeyOf("v2-3");
  const bool old_first = old_key < new_key;
  EXPECT_THAT(batches[0].versions(),
              ElementsAre(VersionKeyOf("v1-0"), std::min(old_key, new_key),
                          std::max(old_key, new_key)));
  EXPECT_THAT(batches[0].copies_per_expert(),
              ElementsAre(6, old_first ? 5 : 1, old_first ? 1 : 5));
  // Rows stand in the order of the first copies: the third token is the last.
  const std::vector<uint32_t> rows(batches[0].row_of_copy().begin() + 6,
                                   batches[0].row_of_copy().end());
  EXPECT_THAT(rows, old_first ? ElementsAre(0, 1, 2, 3, 4, 5)
                              : ElementsAre(5, 0, 1, 2, 3, 4));
  EXPECT_TRUE(dispatcher.moves().empty());
  EXPECT_EQ(dispatcher.stats().copies_moved_version, 0u);
  // Without snapshots all rows use what is current.
  dispatcher.set_snapshots({});
  ExpectExact(work, 1);
  EXPECT_THAT(processes_[0]->batches()[1].expert_ids(), ElementsAre(0, 3));
}

TEST_F(TokenDispatcherTest, WhatIsGoneMovesAndIsSaid) {
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v1", "v2"})));
  TokenDispatcher& dispatcher = Start();
  const SnapshotPtr old_one = SnapshotOf("v1");
  const SnapshotPtr new_one = SnapshotOf("v2");
  processes_[0]->Describe(WithVersions({"v2"}));
  const Work work = MakeWorkFor(5, {1, 2});
  dispatcher.set_snapshots({{2, old_one}, {3, new_one}});
  ExpectExact(work, 0);
  const std::vector<VersionMove>& moves = dispatcher.moves();
  ASSERT_EQ(moves.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(moves[i].sequence, 0u);
    EXPECT_EQ(moves[i].layer, 0u);
    EXPECT_EQ(moves[i].expert, i + 1);
    EXPECT_EQ(moves[i].to, VersionKeyOf(absl::StrCat("v2-", i + 1)));
    EXPECT_EQ(moves[i].num_copies, 2u);
  }
  EXPECT_EQ(dispatcher.stats().copies_moved_version, 4u);
  EXPECT_EQ(dispatcher.stats().copies_dispatched, 10u);
}

// A replica of the version that is away may return; for a while.
TEST_F(TokenDispatcherTest, WaitsForAVersionThatIsAway) {
  options_.version_grace = milliseconds(60000);
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v1"})));
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v2"})));
  TokenDispatcher& dispatcher = Start();
  const Work work = MakeWorkFor(3, {0, 1});
  processes_[0]->Lose(/*reachable=*/false);
  dispatcher.set_snapshots({{3, SnapshotOf("v1")}});
  DispatchHandle handle = dispatcher.Dispatch(0, work.matrix(), work.decision);
  std::vector<float> output;
  int asked = 0;
  ASSERT_TRUE(Combine(std::move(handle), work, output, [&](WaitingFor what) {
                EXPECT_EQ(what, WaitingFor::kReplica);
                if (++asked == 5) processes_[0]->SetReachable(true);
                return absl::OkStatus();
              }).ok());
  EXPECT_GE(asked, 5);
  EXPECT_EQ(output, Expected(work));
  EXPECT_TRUE(dispatcher.moves().empty());
  EXPECT_TRUE(processes_[1]->batches().empty());
}

TEST_F(TokenDispatcherTest, MovesWhenAVersionStaysAway) {
  options_.version_grace = milliseconds(10);
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v1"})));
  processes_.push_back(
      std::make_unique<FakeExpertProcess>(WithVersions({"v2"})));
  TokenDispatcher& dispatcher = Start();
  processes_[0]->Lose(/*reachable=*/false);
  dispatcher.set_snapshots({{3, SnapshotOf("v1")}});
  ExpectExact(MakeWorkFor(3, {0, 1}));
  EXPECT_EQ(dispatcher.moves().size(), 2u);
  EXPECT_EQ(dispatcher.stats().copies_moved_version, 6u);
}

// The process has let it go before its description came.
TEST_F(TokenDispatcherTest, AVersionThatIsGoneIsAskedForElsewhere) {
  FakeExpertProcess& a = AddProcess({0, 1, 2, 3});
  FakeExpertProcess& b = AddProcess({0, 1, 2, 3});
  TokenDispatcher& dispatcher = Start();
  a.Script({}, FakeAnswer::kGone);
  dispatcher.set_snapshots({{4, SnapshotOf("v1")}});
  ExpectExact(MakeWorkFor(4, {0, 1}));
  EXPECT_TRUE(dispatcher.moves().empty());
  EXPECT_EQ(b.batches().size(), 1u);
  EXPECT_EQ(dispatcher.stats().copies_refused, a.batches().empty() ? 0u : 8u);
}

}  // namespace
}  // namespace troupe
