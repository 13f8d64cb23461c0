#include "router_service/serving_loop.h"

#include <atomic>
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
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/router_service/test_engine.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr absl::Duration kPatience = absl::Seconds(60);

// What happened to one sequence. Thread-safe.
class Events {
 public:
  std::function<void(SequenceEvent)> Callback() {
    return [this](SequenceEvent event) {
      absl::MutexLock lock(&mu_);
      EXPECT_FALSE(ended_) << "an event after the last one";
      if (!event.prompt.empty()) {
        EXPECT_TRUE(prompt_.empty());
        EXPECT_TRUE(tokens_.empty());
        prompt_ = std::move(event.prompt);
      }
      tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
      if (event.finish != Finish::kNot || !event.status.ok()) {
        ended_ = true;
        finish_ = event.finish;
        status_ = event.status;
        preemptions_ = event.preemptions;
        cached_tokens_ = event.cached_tokens;
        snapshot_ = event.snapshot;
        experts_moved_ = event.experts_moved_version;
        EXPECT_GE(event.queue_ms, 0.0);
      }
    };
  }

  absl::Status Wait() {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&ended_), kPatience));
    return status_;
  }
  bool ended() const {
    absl::MutexLock lock(&mu_);
    return ended_;
  }
  void WaitForTokens(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return ended_ || tokens_.size() >= count;
    };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), kPatience));
  }
  Finish finish() const {
    absl::MutexLock lock(&mu_);
    return finish_;
  }
  size_t cached_tokens() const {
    absl::MutexLock lock(&mu_);
    return cached_tokens_;
  }
  std::string snapshot() const {
    absl::MutexLock lock(&mu_);
    return snapshot_;
  }
  size_t experts_moved() const {
    absl::MutexLock lock(&mu_);
    return experts_moved_;
  }
  uint32_t preemptions() const {
    absl::MutexLock lock(&mu_);
    return preemptions_;
  }
  std::vector<SequenceToken> prompt() const {
    absl::MutexLock lock(&mu_);
    return prompt_;
  }
  std::vector<SequenceToken> tokens() const {
    absl::MutexLock lock(&mu_);
    return tokens_;
  }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> ids;
    for (const SequenceToken& token : tokens()) ids.push_back(token.token_id);
    return ids;
  }

 private:
  mutable absl::Mutex mu_;
  std::vector<SequenceToken> prompt_ ABSL_GUARDED_BY(mu_);
  std::vector<SequenceToken> tokens_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  Finish finish_ ABSL_GUARDED_BY(mu_) = Finish::kNot;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  uint32_t preemptions_ ABSL_GUARDED_BY(mu_) = 0;
  size_t cached_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  std::string snapshot_ ABSL_GUARDED_BY(mu_);
  size_t experts_moved_ ABSL_GUARDED_BY(mu_) = 0;
};

// Tokens and the bits of their log-probabilities.
std::string Bytes(const std::vector<SequenceToken>& tokens) {
  std::string bytes;
  const auto add = [&](float logprob) {
    uint32_t bits = 0;
    std::memcpy(&bits, &logprob, sizeof(bits));
    absl::StrAppend(&bytes, ":", bits);
  };
  for (const SequenceToken& token : tokens) {
    absl::StrAppend(&bytes, " ", token.token_id);
    if (!token.has_logprob) continue;
    add(token.logprob.logprob);
    for (const TokenLogprobValue& top : token.logprob.top) {
      absl::StrAppend(&bytes, ",", top.token_id);
      add(top.logprob);
    }
  }
  return bytes;
}

SequenceRequest Request(size_t prompt_length, size_t max_tokens,
                        uint32_t seed = 1) {
  std::mt19937 random(seed);
  SequenceRequest request;
  for (size_t i = 0; i < prompt_length; ++i) {
    request.tokens.push_back(static_cast<int32_t>(random() % 264));
  }
  request.prompt_length = prompt_length;
  request.max_tokens = max_tokens;
  return request;
}

// Requests that differ in all that a sampler can do.
std::vector<SequenceRequest> MixedRequests() {
  std::vector<SequenceRequest> requests;
  for (uint32_t i = 0; i < 10; ++i) {
    SequenceRequest request = Request(1 + i * 7 % 45, 5 + i * 11 % 40, 50 + i);
    request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    request.sampling.seed = i;
    request.sampling.top_p = i % 4 == 1 ? 0.9f : 1.0f;
    request.sampling.repetition_penalty = i % 5 == 2 ? 1.3f : 1.0f;
    request.sampling.presence_penalty = i % 5 == 3 ? 0.5f : 0.0f;
    request.logprobs = i % 2 == 0;
    request.top_logprobs = i % 4;
    request.prompt_logprobs = i % 3 == 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

uint64_t Submit(TestEngine& engine, SequenceRequest request, Events& events) {
  request.on_event = events.Callback();
  const absl::StatusOr<uint64_t> id = engine.loop().Submit(std::move(request));
  EXPECT_TRUE(id.ok()) << id.status();
  return id.value_or(0);
}

std::string RunAlone(TestEngine& engine, const SequenceRequest& request) {
  Events events;
  Submit(engine, request, events);
  const absl::Status status = events.Wait();
  EXPECT_TRUE(status.ok()) << status;
  return absl::StrCat(Bytes(events.prompt()), "|", Bytes(events.tokens()));
}

std::vector<std::string> RunTogether(
    TestEngine& engine, const std::vector<SequenceRequest>& requests) {
  std::vector<Events> events(requests.size());
  {
    const HeldLoop held(engine.loop());
    for (size_t i = 0; i < requests.size(); ++i) {
      Submit(engine, requests[i], events[i]);
    }
  }
  std::vector<std::string> bytes;
  for (Events& e : events) {
    const absl::Status status = e.Wait();
    EXPECT_TRUE(status.ok()) << status;
    bytes.push_back(absl::StrCat(Bytes(e.prompt()), "|", Bytes(e.tokens())));
  }
  return bytes;
}

// Everything is given back once the loop is idle.
void ExpectAllFree(TestEngine& engine) {
  ASSERT_TRUE(engine.loop().WaitUntilIdle(milliseconds(60000)));
  // The counters are published after the step: those before the next one are
  // of all that was.
  { const HeldLoop next(engine.loop()); }
  for (int i = 0; i < 1000000; ++i) {
    const v1::RouterStats stats = engine.Stats();
    if (stats.kv_blocks_free() == stats.kv_blocks_total() &&
        stats.running_sequences() + stats.waiting_sequences() == 0) {
      return;
    }
    std::this_thread::yield();
  }
  FAIL() << engine.Stats().ShortDebugString();
}

TEST(ServingLoopTest, EndsAtMaxTokens) {
  TestEngine engine;
  for (const size_t max_tokens : {1, 2, 17, 40}) {
    Events events;
    Submit(engine, Request(5, max_tokens), events);
    EXPECT_TRUE(events.Wait().ok());
    EXPECT_EQ(events.finish(), Finish::kLength);
    EXPECT_THAT(events.tokens(), SizeIs(max_tokens));
    for (const SequenceToken& token : events.tokens()) {
      EXPECT_FALSE(token.has_logprob);
    }
  }
  ExpectAllFree(engine);
}

// Checks are answered when nothing runs, between the steps of what does, and
// when the loop ends.
TEST(ServingLoopTest, ChecksItsIntegrityOnDemand) {
  auto engine = std::make_unique<TestEngine>();
  absl::Mutex mu;
  std::vector<absl::Status> answers;
  const auto check = [&] {
    engine->loop().CheckBetweenSteps([&](const absl::Status& status) {
      absl::MutexLock lock(&mu);
      answers.push_back(status);
    });
  };
  const auto wait_for = [&](size_t count) {
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return answers.size() >= count;
    };
    absl::MutexLock lock(&mu);
    EXPECT_TRUE(mu.AwaitWithTimeout(absl::Condition(&there), kPatience));
  };
  check();
  wait_for(1);
  Events events;
  Submit(*engine, Request(5, 100), events);
  for (size_t i = 1; i <= 20; ++i) {
    events.WaitForTokens(i);
    check();
  }
  EXPECT_TRUE(events.Wait().ok());
  wait_for(21);
  for (const absl::Status& status : answers) EXPECT_TRUE(status.ok()) << status;
  for (int i = 0; i < 10; ++i) check();
  engine.reset();
  EXPECT_THAT(answers, SizeIs(31));
}

TEST(ServingLoopTest, FillsTheWholeContext) {
  TestEngineOptions options;
  options.num_kv_blocks = 3;
  TestEngine engine(options);
  ASSERT_EQ(engine.loop().max_context(), 48u);
  Events events;
  Submit(engine, Request(20, 28), events);
  EXPECT_TRUE(events.Wait().ok());
  EXPECT_THAT(events.tokens(), SizeIs(28));
  EXPECT_EQ(events.preemptions(), 0u);
}

TEST(ServingLoopTest, TheContextIsThatOfTheModelToo) {
  TestEngine engine;
  EXPECT_EQ(engine.loop().max_context(), 128u);
}

TEST(ServingLoopTest, NoTokensWanted) {
  TestEngine engine;
  Events events;
  SequenceRequest request = Request(9, 0);
  request.prompt_logprobs = true;
  Submit(engine, request, events);
  EXPECT_TRUE(events.Wait().ok());
  EXPECT_EQ(events.finish(), Finish::kLength);
  EXPECT_THAT(events.tokens(), SizeIs(0));
  EXPECT_THAT(events.prompt(), SizeIs(9));
}

TEST(ServingLoopTest, AStopTokenEndsAndIsReported) {
  TestEngine engine;
  Events whole;
  SequenceRequest request = Request(5, 30);
  request.sampling.temperature = 1.0f;
  Submit(engine, request, whole);
  ASSERT_TRUE(whole.Wait().ok());
  const std::vector<int32_t> ids = whole.ids();
  const size_t first = std::find(ids.begin(), ids.end(), ids[12]) - ids.begin();

  request.stop_token_ids = {263, ids[12]};
  Events stopped;
  Submit(engine, request, stopped);
  ASSERT_TRUE(stopped.Wait().ok());
  EXPECT_EQ(stopped.finish(), Finish::kStop);
  EXPECT_EQ(stopped.ids(),
            std::vector<int32_t>(ids.begin(), ids.begin() + first + 1));

  // Not before min_tokens: it is not even sampled.
  request.min_tokens = 20;
  Events late;
  Submit(engine, request, late);
  ASSERT_TRUE(late.Wait().ok());
  const std::vector<int32_t> late_ids = late.ids();
  ASSERT_GE(late_ids.size(), 20u);
  EXPECT_EQ(std::count(late_ids.begin(), late_ids.begin() + 20, ids[12]), 0);
}

TEST(ServingLoopTest, LogprobsWhenAskedFor) {
  TestEngine engine;
  SequenceRequest request = Request(8, 6);
  request.logprobs = true;
  request.top_logprobs = 3;
  Events events;
  Submit(engine, request, events);
  ASSERT_TRUE(events.Wait().ok());
  for (const SequenceToken& token : events.tokens()) {
    ASSERT_TRUE(token.has_logprob);
    ASSERT_THAT(token.logprob.top, SizeIs(3));
    // Greedy: the token is the most probable one.
    EXPECT_EQ(token.logprob.top[0].token_id, token.token_id);
    EXPECT_EQ(token.logprob.top[0].logprob, token.logprob.logprob);
    EXPECT_LE(token.logprob.logprob, 0.0f);
  }
  EXPECT_THAT(events.prompt(), SizeIs(0));
}

TEST(ServingLoopTest, PromptLogprobsComeOnceWhateverTheChunks) {
  SequenceRequest request = Request(40, 3);
  request.prompt_logprobs = true;
  request.top_logprobs = 2;
  std::vector<std::string> results;
  for (const size_t max_batch_tokens : {1, 7, 40, 100}) {
    TestEngineOptions options;
    options.max_batch_tokens = max_batch_tokens;
    TestEngine engine(options);
    Events events;
    Submit(engine, request, events);
    ASSERT_TRUE(events.Wait().ok());
    const std::vector<SequenceToken> prompt = events.prompt();
    ASSERT_THAT(prompt, SizeIs(40));
    EXPECT_FALSE(prompt[0].has_logprob);
    for (size_t i = 0; i < prompt.size(); ++i) {
      EXPECT_EQ(prompt[i].token_id, request.tokens[i]);
      EXPECT_THAT(prompt[i].logprob.top, SizeIs(i > 0 ? 2 : 0));
    }
    results.push_back(Bytes(prompt) + Bytes(events.tokens()));
  }
  for (const std::string& result : results) EXPECT_EQ(result, results[0]);
}

class ServingLoopFamilies : public testing::TestWithParam<Architecture> {};

TEST_P(ServingLoopFamilies, TogetherAloneAndWithTinySteps) {
  TestEngineOptions options;
  options.architecture = GetParam();
  TestEngine engine(options);
  const std::vector<SequenceRequest> requests = MixedRequests();
  std::vector<std::string> alone;
  for (const SequenceRequest& request : requests) {
    alone.push_back(RunAlone(engine, request));
  }
  EXPECT_NE(alone[1], alone[2]);
  EXPECT_EQ(RunTogether(engine, requests), alone);
  ExpectAllFree(engine);

  options.max_batch_tokens = 5;
  options.max_sequences = 3;
  TestEngine slow(options);
  EXPECT_EQ(RunTogether(slow, requests), alone);
  ExpectAllFree(slow);
}

TEST_P(ServingLoopFamilies, PreemptionChangesNoByte) {
  TestEngineOptions options;
  options.architecture = GetParam();
  const std::vector<SequenceRequest> requests = MixedRequests();
  std::vector<std::string> alone;
  {
    TestEngine engine(options);
    for (const SequenceRequest& request : requests) {
      alone.push_back(RunAlone(engine, request));
    }
  }
  options.num_kv_blocks = 7;  // the longest request needs 5
  for (const size_t max_batch_tokens : {64, 9}) {
    options.max_batch_tokens = max_batch_tokens;
    TestEngine tight(options);
    EXPECT_EQ(RunTogether(tight, requests), alone);
    EXPECT_GT(tight.Stats().preemptions(), 0u);
    ExpectAllFree(tight);
  }
}

// Prompts that begin alike: in full blocks, within a block, entirely.
std::vector<SequenceRequest> RequestsWithCommonPrefixes() {
  std::vector<SequenceRequest> requests;
  for (uint32_t i = 0; i < 12; ++i) {
    SequenceRequest request = Request(60, 6 + i, 7);  // all the same
    const size_t common = i < 3 ? 60 : 8 * (i % 8);
    for (size_t t = common; t < request.tokens.size(); ++t) {
      request.tokens[t] = static_cast<int32_t>((t * i + i) % 264);
    }
    request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    request.sampling.seed = i;
    request.logprobs = true;
    request.prompt_logprobs = i % 5 == 4;
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST_P(ServingLoopFamilies, ThePrefixCacheChangesNoByte) {
  TestEngineOptions options;
  options.architecture = GetParam();
  options.prefix_cache = false;
  const std::vector<SequenceRequest> requests = RequestsWithCommonPrefixes();
  std::vector<std::string> alone;
  {
    TestEngine engine(options);
    for (const SequenceRequest& request : requests) {
      alone.push_back(RunAlone(engine, request));
    }
    EXPECT_EQ(engine.Stats().prefix_lookup_tokens(), 0u);
    EXPECT_EQ(engine.Stats().kv_blocks_cached(), 0u);
  }
  EXPECT_NE(alone[1], alone[2]);
  options.prefix_cache = true;
  for (const size_t max_batch_tokens : {64, 9}) {
    for (const size_t num_kv_blocks : {64, 9}) {
      SCOPED_TRACE(absl::StrCat(max_batch_tokens, " ", num_kv_blocks));
      options.max_batch_tokens = max_batch_tokens;
      options.num_kv_blocks = num_kv_blocks;
      TestEngine engine(options);
      EXPECT_EQ(RunTogether(engine, requests), alone);
      EXPECT_EQ(RunTogether(engine, requests), alone);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(RunAlone(engine, requests[i]), alone[i]) << i;
      }
      ExpectAllFree(engine);
      const v1::RouterStats stats = engine.Stats();
      EXPECT_GT(stats.prefix_hit_tokens(), 100u);
      EXPECT_LT(stats.prefix_hit_tokens(), stats.prefix_lookup_tokens());
      EXPECT_GT(stats.prefix_copies(), 0u);
      EXPECT_GT(stats.kv_blocks_cached(), 0u);
      if (num_kv_blocks == 9) {
        EXPECT_GT(stats.preemptions(), 0u);
        EXPECT_GT(stats.prefix_evictions(), 0u);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ServingLoopFamilies,
                         testing::Values(Architecture::kLlama,
                                         Architecture::kMixtral,
                                         Architecture::kQwen2Moe));

TEST(ServingLoopTest, TokensOfAnEarlierAttemptAreContinued) {
  TestEngine engine;
  SequenceRequest request = Request(6, 20);
  request.sampling.temperature = 1.0f;
  request.sampling.frequency_penalty = 0.5f;
  Events whole;
  Submit(engine, request, whole);
  ASSERT_TRUE(whole.Wait().ok());
  const std::vector<int32_t> ids = whole.ids();
  for (const size_t given : {1, 7, 19, 20}) {
    SequenceRequest rest = request;
    rest.tokens.insert(rest.tokens.end(), ids.begin(), ids.begin() + given);
    Events events;
    Submit(engine, rest, events);
    ASSERT_TRUE(events.Wait().ok());
    EXPECT_EQ(events.finish(), Finish::kLength);
    EXPECT_EQ(events.ids(),
              std::vector<int32_t>(ids.begin() + given, ids.end()));
  }
}

TEST(ServingLoopTest, CancelEndsARunningSequence) {
  TestEngine engine;
  Events events;
  absl::Notification go_on;
  SequenceRequest request = Request(5, 120);
  request.on_event = [&, callback = events.Callback()](SequenceEvent event) {
    callback(std::move(event));
    if (events.tokens().size() == 2) go_on.WaitForNotification();
  };
  const absl::StatusOr<uint64_t> id = engine.loop().Submit(std::move(request));
  ASSERT_TRUE(id.ok());
  events.WaitForTokens(2);
  engine.loop().Cancel(*id);
  go_on.Notify();
  EXPECT_EQ(events.Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(events.tokens(), SizeIs(2));  // not one step more
  ExpectAllFree(engine);
}

TEST(ServingLoopTest, CancelEndsAWaitingSequence) {
  TestEngine engine;
  Events events;
  {
    const HeldLoop held(engine.loop());
    const uint64_t id = Submit(engine, Request(5, 10), events);
    engine.loop().Cancel(id);
    engine.loop().Cancel(id);
  }
  EXPECT_EQ(events.Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(events.tokens(), SizeIs(0));
  ExpectAllFree(engine);
}

TEST(ServingLoopTest, CancellingWhatIsNotThereDoesNothing) {
  TestEngine engine;
  Events first;
  const uint64_t id = Submit(engine, Request(5, 2), first);
  EXPECT_TRUE(first.Wait().ok());
  engine.loop().Cancel(id);
  engine.loop().Cancel(123456);
  Events second;
  Submit(engine, Request(5, 2), second);
  EXPECT_TRUE(second.Wait().ok());
}

TEST(ServingLoopTest, ADeadlineEndsRunningAndWaiting) {
  TestEngineOptions options;
  options.max_sequences = 1;
  TestEngine engine(options);
  Events running;
  Events waiting;
  Events patient;
  {
    const HeldLoop held(engine.loop());
    SequenceRequest request = Request(5, 120);
    // Passed when the loop goes on.
    request.deadline = std::chrono::steady_clock::now();
    Submit(engine, request, running);
    Submit(engine, request, waiting);
    Submit(engine, Request(5, 3), patient);
  }
  EXPECT_EQ(running.Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(running.Wait().message()), HasSubstr("0 tokens"));
  EXPECT_EQ(waiting.Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(patient.Wait().ok());
  ExpectAllFree(engine);
}

TEST(ServingLoopTest, ADeadlineInTheMiddle) {
  TestEngine engine;
  Events events;
  SequenceRequest request = Request(1, 127);
  request.deadline = std::chrono::steady_clock::now() + milliseconds(3);
  request.on_event = [callback = events.Callback()](SequenceEvent event) {
    callback(std::move(event));
    const SteadyTime end = std::chrono::steady_clock::now() + milliseconds(1);
    while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
  };
  ASSERT_TRUE(engine.loop().Submit(std::move(request)).ok());
  const absl::Status status = events.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("after ", events.tokens().size())));
  ExpectAllFree(engine);
}

TEST(ServingLoopTest, AFullQueueRefuses) {
  TestEngineOptions options;
  options.max_queued_sequences = 3;
  TestEngine engine(options);
  std::vector<Events> events(2);
  {
    const HeldLoop held(engine.loop());  // one that is not yet known to run
    for (Events& e : events) Submit(engine, Request(5, 2), e);
    SequenceRequest request = Request(5, 2);
    request.on_event = [](SequenceEvent) { FAIL(); };
    const auto refused = engine.loop().Submit(request);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr("3 sequences wait"));
  }
  for (Events& e : events) EXPECT_TRUE(e.Wait().ok());
  ASSERT_TRUE(engine.loop().WaitUntilIdle(milliseconds(60000)));
  Events again;
  Submit(engine, Request(5, 2), again);
  EXPECT_TRUE(again.Wait().ok());
}

TEST(ServingLoopTest, DrainingFinishesWhatRuns) {
  TestEngine engine;
  Events events;
  {
    const HeldLoop held(engine.loop());
    Submit(engine, Request(5, 20), events);
    engine.loop().StartDraining();
    EXPECT_EQ(engine.loop().Submit(Request(5, 2)).status().code(),
              absl::StatusCode::kUnavailable);
    EXPECT_FALSE(engine.loop().WaitUntilIdle(milliseconds(1)));
  }
  EXPECT_TRUE(engine.loop().WaitUntilIdle(milliseconds(60000)));
  EXPECT_TRUE(events.ended());
  EXPECT_THAT(events.tokens(), SizeIs(20));
}

TEST(ServingLoopTest, DestructionEndsWhatRunsAndWaits) {
  TestEngineOptions options;
  options.max_sequences = 2;
  TestEngine engine(options);
  std::vector<Events> events(5);
  std::thread stopper;
  {
    const HeldLoop held(engine.loop());
    for (Events& e : events) Submit(engine, Request(5, 120), e);
    ServingLoop& loop = engine.loop();
    stopper = std::thread([&] { engine.StopLoop(); });
    // Destruction has begun when nothing is taken any more; it cannot end while
    // the loop is held.
    while (!absl::IsUnavailable(loop.Submit(Request(5, 120)).status())) {
      std::this_thread::yield();
    }
  }
  stopper.join();
  for (Events& e : events) {
    ASSERT_TRUE(e.ended());
    EXPECT_EQ(e.Wait().code(), absl::StatusCode::kUnavailable);
  }
  // Runner and KV cache serve another loop.
  engine.StartLoop();
  Events again;
  Submit(engine, Request(5, 2), again);
  EXPECT_TRUE(again.Wait().ok());
}

TEST(ServingLoopTest, SaysHowMuchOfThePromptWasCached) {
  TestEngine engine;
  const auto cached = [&](const SequenceRequest& request) {
    Events events;
    Submit(engine, request, events);
    EXPECT_TRUE(events.Wait().ok());
    return events.cached_tokens();
  };
  SequenceRequest request = Request(40, 5);
  EXPECT_EQ(cached(request), 0u);
  EXPECT_EQ(cached(request), 39u);
  // Another salt is another world.
  request.cache_salt = "s";
  EXPECT_EQ(cached(request), 0u);
  EXPECT_EQ(cached(request), 39u);
  request.prompt_logprobs = true;
  EXPECT_EQ(cached(request), 0u);
  // Tokens of an earlier attempt are not of the prompt.
  SequenceRequest rest = Request(40, 20);
  Events whole;
  Submit(engine, rest, whole);
  ASSERT_TRUE(whole.Wait().ok());
  const std::vector<int32_t> ids = whole.ids();
  rest.tokens.insert(rest.tokens.end(), ids.begin(), ids.begin() + 15);
  EXPECT_EQ(cached(rest), 40u);
}

// What a sequence has said is part of the prefix: the next turn of a talk
// computes only what is new.
TEST(ServingLoopTest, TheAnswerIsCachedToo) {
  TestEngine engine;
  SequenceRequest request = Request(20, 30);
  Events first;
  Submit(engine, request, first);
  ASSERT_TRUE(first.Wait().ok());
  for (const int32_t id : first.ids()) request.tokens.push_back(id);
  request.tokens.insert(request.tokens.end(), {5, 6, 7});
  request.prompt_length = request.tokens.size();
  Events second;
  Submit(engine, request, second);
  ASSERT_TRUE(second.Wait().ok());
  // All but the last token of the answer was computed, and the new ones.
  EXPECT_EQ(second.cached_tokens(), 49u);
}

// The head runs for the rows that sample, whatever the chunks, and for a prompt
// only if its log-probabilities are wanted.
TEST(ServingLoopTest, LogitsOnlyWhereTheyAreUsed) {
  TestEngineOptions options;
  options.max_batch_tokens = 9;
  TestEngine engine(options);
  RunAlone(engine, Request(40, 5, 1));
  SequenceRequest with_prompt = Request(40, 5, 2);
  with_prompt.prompt_logprobs = true;
  {
    const HeldLoop held(engine.loop());
    EXPECT_EQ(engine.Stats().logit_rows(), 5u);
  }
  RunAlone(engine, with_prompt);
  const HeldLoop held(engine.loop());
  EXPECT_EQ(engine.Stats().logit_rows(), 5u + 1 + 39 + 5);
}

TEST(ServingLoopTest, CountsWhatItDid) {
  TestEngineOptions options;
  options.prefix_cache = false;
  options.architecture = Architecture::kQwen2Moe;
  TestEngine engine(options);
  RunAlone(engine, Request(10, 5));
  RunAlone(engine, Request(3, 1));
  while (engine.Stats().steps() < 6) std::this_thread::yield();
  const v1::RouterStats stats = engine.Stats();
  EXPECT_EQ(stats.prefill_tokens(), 13u);
  EXPECT_EQ(stats.decode_tokens(), 4u);
  EXPECT_EQ(stats.steps(), 6u);
  EXPECT_EQ(stats.kv_blocks_total(), 64u);
  EXPECT_EQ(stats.copies_dispatched(), 17u * 2 * 2);  // top 2, two MoE layers
  EXPECT_EQ(stats.copies_resent(), 0u);
  EXPECT_GT(stats.step_seconds(), 0.0);
  ASSERT_EQ(stats.layer_load_size(), 2);  // layer 1 is dense
  EXPECT_EQ(stats.layer_load(0).layer(), 0u);
  EXPECT_EQ(stats.layer_load(1).layer(), 2u);
  for (const v1::LayerLoad& load : stats.layer_load()) {
    uint64_t copies = 0;
    for (const uint64_t tokens : load.tokens_per_expert()) copies += tokens;
    EXPECT_EQ(copies, 17u * 2);
  }
}

TestEngineOptions MoeOptions() {
  TestEngineOptions options;
  options.architecture = Architecture::kMixtral;
  return options;
}

TEST(ServingLoopTest, WaitsForExpertsThatAreAway) {
  TestEngine engine(MoeOptions());
  SequenceRequest request = Request(20, 30);
  request.logprobs = true;
  const std::string expected = RunAlone(engine, request);
  Events events;
  Submit(engine, request, events);
  events.WaitForTokens(3);
  for (const size_t group : {0, 1, 0, 0}) {
    engine.expert_switch(group).GoAway();
    engine.expert_switch(group).ComeBack();
    engine.expert_switch(group).WaitUntilKnown();
  }
  ASSERT_TRUE(events.Wait().ok());
  EXPECT_EQ(absl::StrCat("|", Bytes(events.tokens())), expected);
}

v1::Rollout RolloutOf(uint64_t revision,
                      const std::vector<std::string>& labels) {
  v1::Rollout rollout;
  rollout.set_revision(revision);
  for (const std::string& label : labels) {
    rollout.add_labels()->set_label(label);
  }
  return rollout;
}

// Bytes of a request on an engine with nothing but the weights of that seed in
// the experts of group 1.
std::string BytesWith(uint64_t seed, const SequenceRequest& request) {
  TestEngine engine(MoeOptions());
  if (seed != 1) {
    engine.LoadVersion(1, "other", seed);
    engine.UnloadVersion(1, "");
    engine.Describe(1, RolloutOf(1, {"other", ""}));
  }
  return RunAlone(engine, request);
}

// What was computed with other versions is not found; going back finds what is
// still there.
TEST(ServingLoopTest, SnapshotsShareNoCache) {
  TestEngine engine(MoeOptions());
  const SequenceRequest request = Request(40, 3);
  const auto cached = [&] {
    Events events;
    Submit(engine, request, events);
    EXPECT_TRUE(events.Wait().ok());
    return events.cached_tokens();
  };
  EXPECT_EQ(cached(), 0u);
  // Away and back with the same content: nothing has changed.
  engine.expert_switch(1).GoAway();
  engine.expert_switch(1).ComeBack();
  engine.expert_switch(1).WaitUntilKnown();
  EXPECT_EQ(cached(), 39u);
  engine.LoadVersion(1, "v2", 2);
  engine.Describe(1, RolloutOf(1, {"v2", ""}));
  EXPECT_EQ(cached(), 0u);
  EXPECT_EQ(cached(), 39u);
  engine.Describe(1, RolloutOf(2, {""}));
  EXPECT_EQ(cached(), 39u);
}

// A sequence keeps the versions that it began with, beside others in the same
// steps; each has the bytes that it has alone.
TEST(ServingLoopTest, ASequenceIsPinnedToItsSnapshot) {
  SequenceRequest request = Request(20, 40);
  request.logprobs = true;
  const std::string old_bytes = BytesWith(1, request);
  const std::string new_bytes = BytesWith(2, request);
  ASSERT_NE(old_bytes, new_bytes);
  TestEngine engine(MoeOptions());
  Events old_one;
  Submit(engine, request, old_one);
  old_one.WaitForTokens(3);
  engine.LoadVersion(1, "v2", 2);
  engine.Describe(1, RolloutOf(1, {"v2", ""}));
  Events new_one;
  Submit(engine, request, new_one);
  new_one.WaitForTokens(3);
  engine.Describe(1, RolloutOf(2, {"", "v2"}));  // back
  Events back;
  Submit(engine, request, back);
  for (Events* events : {&old_one, &new_one, &back}) {
    ASSERT_TRUE(events->Wait().ok());
    EXPECT_EQ(events->experts_moved(), 0u);
  }
  EXPECT_EQ(absl::StrCat("|", Bytes(old_one.tokens())), old_bytes);
  EXPECT_EQ(absl::StrCat("|", Bytes(new_one.tokens())), new_bytes);
  EXPECT_EQ(absl::StrCat("|", Bytes(back.tokens())), old_bytes);
  EXPECT_EQ(old_one.snapshot(), back.snapshot().substr(0, 16) + ":");
  EXPECT_THAT(new_one.snapshot(), testing::EndsWith(":v2,"));
  EXPECT_EQ(engine.Stats().copies_moved_version(), 0u);
}

// Its version is gone: it goes on with the current one, says so, and nobody
// shares what it computes.
TEST(ServingLoopTest, ASequenceMovesWhenItsVersionIsGone) {
  TestEngine engine(MoeOptions());
  const SequenceRequest request = Request(20, 40);
  const SequenceRequest longer = Request(20, 44);
  const std::string new_bytes = BytesWith(2, longer);
  Events events;
  Submit(engine, request, events);
  events.WaitForTokens(3);
  engine.LoadVersion(1, "v2", 2);
  engine.UnloadVersion(1, "");
  engine.Describe(1, RolloutOf(1, {"v2", ""}));
  ASSERT_TRUE(events.Wait().ok());
  EXPECT_THAT(events.tokens(), SizeIs(40));
  EXPECT_GT(events.experts_moved(), 0u);
  EXPECT_EQ(RunAlone(engine, longer), new_bytes);
  const HeldLoop next(engine.loop());  // the counters are there
  EXPECT_GT(engine.Stats().copies_moved_version(), 0u);
  EXPECT_EQ(engine.Stats().sequences_moved_version(), 1u);
}

// A step that is broken off and run again has routed its tokens once.
TEST(ServingLoopTest, ABrokenOffStepIsNotCounted) {
  TestEngine engine(MoeOptions());
  engine.expert_switch(1).GoAway();
  Events cancelled;
  Events patient;
  Submit(engine, Request(20, 5, 1), patient);
  const uint64_t id = Submit(engine, Request(20, 5, 2), cancelled);
  engine.loop().Cancel(id);
  EXPECT_EQ(cancelled.Wait().code(), absl::StatusCode::kCancelled);
  engine.expert_switch(1).ComeBack();
  ASSERT_TRUE(patient.Wait().ok());
  // The counters are published before the next step: 20 of the prompt and 4 of
  // the output.
  const HeldLoop next(engine.loop());
  const v1::RouterStats stats = engine.Stats();
  for (const v1::LayerLoad& load : stats.layer_load()) {
    uint64_t copies = 0;
    for (const uint64_t tokens : load.tokens_per_expert()) copies += tokens;
    EXPECT_EQ(copies, 24u * 2);
  }
}

TEST(ServingLoopTest, ADeadlineWithoutExpertsNamesOne) {
  TestEngine engine(MoeOptions());
  engine.expert_switch(1).GoAway();
  Events impatient;
  Events patient;
  SequenceRequest request = Request(20, 5);
  Submit(engine, request, patient);
  // Long enough for the first step to begin.
  request.deadline = std::chrono::steady_clock::now() + milliseconds(500);
  Submit(engine, request, impatient);
  const absl::Status status = impatient.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("expert 3 of layer 0 has no replica"),
                    HasSubstr("until the request's deadline")));
  EXPECT_FALSE(patient.ended());
  engine.expert_switch(1).ComeBack();
  EXPECT_TRUE(patient.Wait().ok());
  ExpectAllFree(engine);
}

TEST(ServingLoopTest, CancelWithoutExpertsFreesAtOnce) {
  TestEngine engine(MoeOptions());
  engine.expert_switch(0).GoAway();
  Events cancelled;
  Events patient;
  const uint64_t id = Submit(engine, Request(20, 5), cancelled);
  Submit(engine, Request(20, 5), patient);
  engine.loop().Cancel(id);
  EXPECT_EQ(cancelled.Wait().code(), absl::StatusCode::kCancelled);
  engine.expert_switch(0).ComeBack();
  EXPECT_TRUE(patient.Wait().ok());
}

TEST(ServingLoopTest, DestructionWithoutExpertsDoesNotHang) {
  TestEngine engine(MoeOptions());
  engine.expert_switch(0).GoAway();
  engine.expert_switch(1).GoAway();
  Events events;
  Submit(engine, Request(20, 5), events);
  engine.StopLoop();
  ASSERT_TRUE(events.ended());
  EXPECT_EQ(events.Wait().code(), absl::StatusCode::kUnavailable);
}

// Clients come and go from several threads, blocks are scarce, experts blink:
// every sequence gets one last event, and those that finish have the right
// tokens.
TEST(ServingLoopTest, SurvivesChaos) {
  TestEngineOptions options = MoeOptions();
  options.num_kv_blocks = 12;
  options.max_batch_tokens = 20;
  TestEngine engine(options);
  const std::vector<SequenceRequest> requests = MixedRequests();
  std::vector<std::string> alone;
  for (const SequenceRequest& request : requests) {
    alone.push_back(RunAlone(engine, request));
  }
  std::atomic<bool> stop = false;
  std::thread blinker([&] {
    for (size_t i = 0; !stop; ++i) {
      SwitchablePeer::Switch& expert_switch = engine.expert_switch(i % 2);
      expert_switch.GoAway();
      expert_switch.ComeBack();
      expert_switch.WaitUntilKnown();
    }
  });
  std::atomic<int> finished = 0;
  std::vector<std::thread> clients;
  for (uint32_t t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int round = 0; round < 8; ++round) {
        const size_t i = random() % requests.size();
        SequenceRequest request = requests[i];
        const uint32_t mood = random() % 4;
        if (mood == 0) {
          request.deadline = std::chrono::steady_clock::now() +
                             std::chrono::microseconds(random() % 20000);
        }
        Events events;
        const uint64_t id = Submit(engine, request, events);
        if (mood == 1) {
          events.WaitForTokens(random() % 4);
          engine.loop().Cancel(id);
        }
        if (events.Wait().ok()) {
          EXPECT_EQ(
              absl::StrCat(Bytes(events.prompt()), "|", Bytes(events.tokens())),
              alone[i]);
          ++finished;
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  stop = true;
  blinker.join();
  EXPECT_GT(finished, 8);
  ExpectAllFree(engine);
}

}  // namespace
}  // namespace troupe
