// Fallback and accounting through the whole router: real experts, sequences of
// all policies in one batch.
#include "router_service/copy_accounts.h"

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "cluster/copy_usage.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/router_service/test_engine.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

// The tokens and bits of one sequence, and its usage. Thread-safe.
class Outcome {
 public:
  std::function<void(SequenceEvent)> Callback() {
    return [this](SequenceEvent event) {
      absl::MutexLock lock(&mu_);
      for (const SequenceToken& token : event.tokens) {
        uint32_t bits = 0;
        std::memcpy(&bits, &token.logprob.logprob, sizeof(bits));
        absl::StrAppend(&bytes_, " ", token.token_id, ":", bits);
        ++num_tokens_;
      }
      // Never less than what was told before.
      EXPECT_GE(TotalCopies(event.copies), TotalCopies(copies_));
      copies_ = event.copies;
      status_ = event.status;
      ended_ = event.finish != Finish::kNot || !event.status.ok();
    };
  }
  absl::Status Wait() {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&ended_), kPatience));
    return status_;
  }
  void WaitForTokens(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return ended_ || num_tokens_ >= count;
    };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), kPatience));
  }
  std::string bytes() const {
    absl::MutexLock lock(&mu_);
    return bytes_;
  }
  v1::CopyUsage copies() const {
    absl::MutexLock lock(&mu_);
    return copies_;
  }

 private:
  mutable absl::Mutex mu_;
  std::string bytes_ ABSL_GUARDED_BY(mu_);
  size_t num_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  v1::CopyUsage copies_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

SequenceRequest Request(size_t prompt_length, size_t max_tokens, uint32_t seed,
                        const std::string& fallback) {
  std::mt19937 random(seed);
  SequenceRequest request;
  for (size_t i = 0; i < prompt_length; ++i) {
    request.tokens.push_back(static_cast<int32_t>(random() % 264));
  }
  request.prompt_length = prompt_length;
  request.max_tokens = max_tokens;
  request.logprobs = true;
  request.fallback = *ParseFallback(fallback);
  return request;
}

void Submit(TestEngine& engine, SequenceRequest request, Outcome& outcome) {
  request.on_event = outcome.Callback();
  ASSERT_TRUE(engine.loop().Submit(std::move(request)).ok());
}

std::string RunAlone(TestEngine& engine, const SequenceRequest& request) {
  Outcome outcome;
  Submit(engine, request, outcome);
  EXPECT_TRUE(outcome.Wait().ok());
  return outcome.bytes();
}

TestEngineOptions Options(Architecture architecture, double capacity_factor) {
  TestEngineOptions options;
  options.architecture = architecture;
  options.capacity_factor = capacity_factor;
  return options;
}

uint64_t CopiesPerToken(const ModelConfig& config) {
  uint64_t layers = 0;
  for (const bool is_moe : config.is_moe_layer) layers += is_moe;
  return layers * config.top_k;
}

class CopyAccountsFamilies : public testing::TestWithParam<Architecture> {};

TEST_P(CopyAccountsFamilies, EveryCopyIsInOneClass) {
  const char* const policies[] = {"exact", "balanced",  "fast",
                                  "drop",  "next_best", "exact"};
  std::vector<SequenceRequest> requests;
  for (uint32_t i = 0; i < 12; ++i) {
    requests.push_back(
        Request(5 + i * 7 % 40, 3 + i * 5 % 20, 80 + i, policies[i % 6]));
  }
  std::vector<std::string> undisturbed;
  {
    TestEngine alone(Options(GetParam(), 0.0));
    for (const SequenceRequest& request : requests) {
      undisturbed.push_back(RunAlone(alone, request));
    }
  }
  // Few blocks: some are preempted, and compute tokens a second time.
  TestEngineOptions options = Options(GetParam(), 0.5);
  options.num_kv_blocks = 14;
  TestEngine engine(options);
  std::vector<Outcome> outcomes(requests.size());
  {
    const HeldLoop held(engine.loop());
    for (size_t i = 0; i < requests.size(); ++i) {
      Submit(engine, requests[i], outcomes[i]);
    }
  }
  v1::CopyUsage all;
  const uint64_t per_token = CopiesPerToken(engine.config());
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(outcomes[i].Wait().ok());
    const v1::CopyUsage copies = outcomes[i].copies();
    EXPECT_EQ(TotalCopies(copies), copies.computed_tokens() * per_token);
    // The last token is not computed; nothing was cached.
    EXPECT_GE(copies.computed_tokens(),
              requests[i].prompt_length + requests[i].max_tokens - 1);
    if (requests[i].fallback.is_exact()) {
      EXPECT_EQ(outcomes[i].bytes(), undisturbed[i]) << "request " << i;
      EXPECT_EQ(copies.next_best() + copies.dropped(), 0u);
    }
    EXPECT_TRUE(requests[i].fallback.next_best || copies.next_best() == 0);
    EXPECT_TRUE(requests[i].fallback.drop || copies.dropped() == 0);
    AddCopies(copies, all);
  }
  EXPECT_GT(all.next_best(), 0u);
  EXPECT_GT(all.dropped(), 0u);

  // The router's own counters say the same, in all and by expert.
  ASSERT_TRUE(engine.loop().WaitUntilIdle(milliseconds(60000)));
  { const HeldLoop published(engine.loop()); }
  const v1::RouterStats stats = engine.Stats();
  all.set_computed_tokens(all.computed_tokens() + 1);  // that of the first hold
  all.set_first_choice(all.first_choice() + per_token);
  EXPECT_EQ(stats.copies().next_best(), all.next_best());
  EXPECT_EQ(stats.copies().dropped(), all.dropped());
  EXPECT_GE(stats.copies().computed_tokens(), all.computed_tokens());
  EXPECT_EQ(TotalCopies(stats.copies()),
            stats.copies().computed_tokens() * per_token);
  EXPECT_EQ(stats.copies_dropped(), all.dropped());
  uint64_t chosen = 0, next_best = 0, dropped = 0, stand_ins = 0, over = 0;
  const auto sum = [](const auto& list) {
    uint64_t total = 0;
    for (const uint64_t count : list) total += count;
    return total;
  };
  for (const v1::LayerLoad& load : stats.layer_load()) {
    chosen += sum(load.tokens_per_expert());
    next_best += sum(load.next_best_per_expert());
    stand_ins += sum(load.stand_in_per_expert());
    dropped += sum(load.dropped_per_expert());
    over += sum(load.over_capacity_per_expert());
  }
  EXPECT_EQ(chosen, TotalCopies(stats.copies()));
  EXPECT_EQ(next_best, all.next_best());
  EXPECT_EQ(stand_ins, all.next_best());
  EXPECT_EQ(dropped, all.dropped());
  EXPECT_EQ(over, stats.copies_over_capacity());
  EXPECT_GE(over, all.next_best() + all.dropped());
}

INSTANTIATE_TEST_SUITE_P(Families, CopyAccountsFamilies,
                         testing::Values(Architecture::kMixtral,
                                         Architecture::kQwen2Moe,
                                         Architecture::kOlmoe),
                         [](const auto& family) {
                           return absl::StrCat("Family",
                                               static_cast<int>(family.param));
                         });

// What a sequence has computed with other experts is nobody else's prefix.
TEST(CopyAccountsTest, WhatWasDegradedIsNeverCachedForOthers) {
  const SequenceRequest exact = Request(50, 5, 3, "exact");
  SequenceRequest dropping = exact;
  dropping.fallback = *ParseFallback("drop");
  std::string undisturbed;
  {
    TestEngine alone(Options(Architecture::kMixtral, 0.0));
    undisturbed = RunAlone(alone, exact);
  }
  TestEngine engine(Options(Architecture::kMixtral, 0.3));
  EXPECT_NE(RunAlone(engine, dropping), undisturbed);
  EXPECT_EQ(RunAlone(engine, exact), undisturbed);
  // The other way round it may be used.
  Outcome outcome;
  Submit(engine, dropping, outcome);
  ASSERT_TRUE(outcome.Wait().ok());
  EXPECT_LT(outcome.copies().computed_tokens(), 50u);
}

// The last replica of some experts is away: who may do without goes on, exact
// requests wait, and have their bytes when it is back.
TEST(CopyAccountsTest, OnlyExactRequestsWaitForTheLastReplica) {
  TestEngine engine(Options(Architecture::kMixtral, 0.0));
  const SequenceRequest exact = Request(20, 30, 4, "exact");
  const std::string undisturbed = RunAlone(engine, exact);
  Outcome waits, goes_on, balanced;
  Submit(engine, exact, waits);
  waits.WaitForTokens(3);
  engine.expert_switch(1).GoAway();
  Submit(engine, Request(20, 40, 5, "fast"), goes_on);
  Submit(engine, Request(20, 40, 6, "balanced"), balanced);
  ASSERT_TRUE(goes_on.Wait().ok());
  ASSERT_TRUE(balanced.Wait().ok());
  EXPECT_GT(goes_on.copies().next_best(), 0u);
  EXPECT_GT(balanced.copies().next_best(), 0u);
  EXPECT_EQ(balanced.copies().dropped(), 0u);
  engine.expert_switch(1).ComeBack();
  ASSERT_TRUE(waits.Wait().ok());
  EXPECT_EQ(waits.bytes(), undisturbed);
  EXPECT_EQ(waits.copies().next_best() + waits.copies().dropped(), 0u);
}

TEST(CopyAccountsTest, ABlockedRequestNamesTheExpertAtItsDeadline) {
  TestEngine engine(Options(Architecture::kMixtral, 0.0));
  RunAlone(engine, Request(5, 2, 1, "exact"));
  engine.expert_switch(1).GoAway();
  Outcome waits, goes_on;
  {
    const HeldLoop held(engine.loop(), "fast");
    SequenceRequest exact = Request(20, 30, 4, "exact");
    exact.deadline = std::chrono::steady_clock::now() + milliseconds(300);
    Submit(engine, exact, waits);
    Submit(engine, Request(20, 40, 5, "fast"), goes_on);
  }
  const absl::Status status = waits.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("has no replica"));
  EXPECT_TRUE(goes_on.Wait().ok());
}

}  // namespace
}  // namespace troupe
