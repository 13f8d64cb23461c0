#include "router_service/scheduler/scheduler.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

std::unique_ptr<Sequence> NewSequence(uint64_t seq_id, size_t prompt_length,
                                      size_t max_tokens = 1) {
  auto sequence = std::make_unique<Sequence>();
  sequence->seq_id = seq_id;
  sequence->request.prompt_length = prompt_length;
  sequence->request.max_tokens = max_tokens;
  sequence->tokens.assign(prompt_length, 7);
  return sequence;
}

// (sequence, tokens) of each chunk.
std::vector<std::pair<uint64_t, size_t>> Ids(const std::vector<Chunk>& chunks) {
  std::vector<std::pair<uint64_t, size_t>> ids;
  for (const Chunk& chunk : chunks) {
    ids.emplace_back(chunk.sequence->seq_id, chunk.num_tokens);
  }
  return ids;
}

// What the serving loop does after a step: the chunk is computed, and who has
// no token left to compute gets a new one.
void Commit(Scheduler& scheduler, const std::vector<Chunk>& chunks) {
  scheduler.Commit(chunks);
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    ASSERT_LE(sequence.num_computed, sequence.tokens.size());
    if (sequence.num_computed == sequence.tokens.size()) {
      sequence.tokens.push_back(8);
    }
  }
}

void NoCopy(int32_t, int32_t) {}

// Without the prefix cache, which has its own tests below.
SchedulerOptions Options(size_t max_batch_tokens, size_t max_sequences) {
  SchedulerOptions options;
  options.prefix_cache = false;
  options.max_batch_tokens = max_batch_tokens;
  options.max_sequences = max_sequences;
  return options;
}

TEST(SchedulerTest, NothingToDo) {
  Scheduler scheduler(Options(8, 4), 10, &NoCopy);
  EXPECT_THAT(scheduler.Schedule(), IsEmpty());
  EXPECT_EQ(scheduler.Find(1), nullptr);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST(SchedulerTest, PromptsAreCutByTheBudget) {
  Scheduler scheduler(Options(8, 4), 10, &NoCopy);
  scheduler.Add(NewSequence(1, 20));
  scheduler.Add(NewSequence(2, 3));
  for (const auto& expected :
       std::vector<std::vector<std::pair<uint64_t, size_t>>>{
           {{1, 8}}, {{1, 8}}, {{1, 4}, {2, 3}}, {{1, 1}, {2, 1}}}) {
    const std::vector<Chunk> chunks = scheduler.Schedule();
    EXPECT_EQ(Ids(chunks), expected);
    ASSERT_TRUE(scheduler.CheckIntegrity().ok());
    Commit(scheduler, chunks);
  }
}

TEST(SchedulerTest, DecodesGoBeforeNewPrompts) {
  Scheduler scheduler(Options(4, 4), 10, &NoCopy);
  scheduler.Add(NewSequence(1, 2));
  Commit(scheduler, scheduler.Schedule());
  scheduler.Add(NewSequence(2, 9));
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1), Pair(2, 3)));
  Commit(scheduler, chunks);
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(1, 1), Pair(2, 3)));
}

TEST(SchedulerTest, NoMoreThanMaxSequencesRun) {
  Scheduler scheduler(Options(100, 2), 100, &NoCopy);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Add(NewSequence(id, 4));
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 4), Pair(2, 4)));
  EXPECT_EQ(scheduler.num_running(), 2u);
  EXPECT_EQ(scheduler.num_waiting(), 1u);
  Commit(scheduler, chunks);
  scheduler.Remove(scheduler.Find(1));
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(2, 1), Pair(3, 4)));
}

// An aborted step is scheduled again, as it was.
TEST(SchedulerTest, AStepThatWasNotCommittedComesAgain) {
  Scheduler scheduler(Options(6, 4), 10, &NoCopy);
  scheduler.Add(NewSequence(1, 4));
  scheduler.Add(NewSequence(2, 4));
  const auto first = Ids(scheduler.Schedule());
  EXPECT_EQ(Ids(scheduler.Schedule()), first);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST(SchedulerTest, BlocksComeWithThePositions) {
  Scheduler scheduler(Options(100, 4), 10, &NoCopy);
  scheduler.Add(NewSequence(1, kKvBlockSize - 1));
  Sequence* sequence = scheduler.Find(1);
  Commit(scheduler, scheduler.Schedule());
  EXPECT_EQ(sequence->block_table.size(), 1u);
  Commit(scheduler, scheduler.Schedule());  // position 15, the block's last
  EXPECT_EQ(sequence->block_table.size(), 1u);
  Commit(scheduler, scheduler.Schedule());
  EXPECT_EQ(sequence->block_table.size(), 2u);
  EXPECT_EQ(scheduler.num_free_blocks(), 8u);
}

TEST(SchedulerTest, TheLatestArrivalGivesUpItsBlocks) {
  // Each has a full block; three blocks in all.
  Scheduler scheduler(Options(100, 4), 3, &NoCopy);
  for (uint64_t id = 1; id <= 3; ++id) {
    scheduler.Add(NewSequence(id, kKvBlockSize));
  }
  Commit(scheduler, scheduler.Schedule());
  Sequence* last = scheduler.Find(3);
  // 1 takes the block of 3; 2 finds none and gives up itself.
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1)));
  EXPECT_EQ(scheduler.num_preemptions(), 2u);
  EXPECT_EQ(last->preemptions, 1u);
  EXPECT_EQ(last->num_computed, 0u);
  EXPECT_THAT(last->block_table, IsEmpty());
  EXPECT_EQ(last->tokens.size(), kKvBlockSize + 1);  // what it has said stays
  EXPECT_EQ(scheduler.num_waiting(), 2u);
  ASSERT_TRUE(scheduler.CheckIntegrity().ok());
  Commit(scheduler, chunks);

  // 2 was here before 3 and before whoever comes now.
  scheduler.Add(NewSequence(4, 1));
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(1, 1)));
  scheduler.Remove(scheduler.Find(1));
  chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(2, kKvBlockSize + 1)));
  Commit(scheduler, chunks);
  scheduler.Remove(scheduler.Find(2));
  EXPECT_THAT(Ids(scheduler.Schedule()),
              ElementsAre(Pair(3, kKvBlockSize + 1), Pair(4, 1)));
}

// The blocks that it gave up are not taken back in the same step.
TEST(SchedulerTest, NobodyIsAdmittedInAStepThatPreempts) {
  Scheduler scheduler(Options(20, 4), 6, &NoCopy);
  scheduler.Add(NewSequence(1, kKvBlockSize));
  scheduler.Add(NewSequence(2, 4 * kKvBlockSize));
  std::vector<Chunk> chunks;
  while (scheduler.num_preemptions() == 0) {
    Commit(scheduler, chunks);
    chunks = scheduler.Schedule();
  }
  // A first piece of 2 would fit, now that it gave up all its blocks.
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1)));
  EXPECT_GT(scheduler.num_free_blocks(), 1u);
}

TEST(SchedulerTest, RemoveFreesWhateverItsState) {
  Scheduler scheduler(Options(10, 4), 4, &NoCopy);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Add(NewSequence(id, 8));
  scheduler.Schedule();
  EXPECT_EQ(scheduler.num_running(), 2u);
  const std::unique_ptr<Sequence> running = scheduler.Remove(scheduler.Find(1));
  EXPECT_THAT(running->block_table, IsEmpty());
  EXPECT_EQ(scheduler.Remove(scheduler.Find(3))->seq_id, 3u);
  EXPECT_EQ(scheduler.Find(3), nullptr);
  scheduler.Remove(scheduler.Find(2));
  EXPECT_EQ(scheduler.num_free_blocks(), 4u);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST(SchedulerTest, IntegrityNotices) {
  Scheduler scheduler(Options(10, 4), 4, &NoCopy);
  scheduler.Add(NewSequence(1, 8));
  scheduler.Schedule();
  Sequence* sequence = scheduler.Find(1);
  sequence->num_computed = 17;
  EXPECT_THAT(std::string(scheduler.CheckIntegrity().message()),
              HasSubstr("sequence 1 has 1 KV blocks for 17 tokens"));
  sequence->num_computed = 0;
  std::vector<int32_t> table = sequence->block_table;
  sequence->block_table.clear();
  EXPECT_FALSE(scheduler.CheckIntegrity().ok());
  sequence->block_table = table;
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

// The same, with the prefix cache.
SchedulerOptions CacheOptions(size_t max_batch_tokens, size_t max_sequences) {
  SchedulerOptions options = Options(max_batch_tokens, max_sequences);
  options.prefix_cache = true;
  return options;
}

std::unique_ptr<Sequence> WithTokens(uint64_t seq_id,
                                     const std::vector<int32_t>& tokens) {
  auto sequence = NewSequence(seq_id, tokens.size());
  sequence->tokens = tokens;
  return sequence;
}

// `length` tokens, the same ones up to `fork`.
std::vector<int32_t> Forked(size_t length, size_t fork, int32_t branch) {
  std::vector<int32_t> tokens(length, branch);
  for (size_t i = 0; i < fork; ++i) tokens[i] = static_cast<int32_t>(i);
  return tokens;
}

TEST(PrefixScheduleTest, StartsBehindWhatIsCached) {
  std::vector<std::pair<int32_t, int32_t>> copies;
  Scheduler scheduler(CacheOptions(100, 4), 20, [&](int32_t from, int32_t to) {
    copies.emplace_back(from, to);
  });
  scheduler.Add(WithTokens(1, Forked(50, 40, 100)));
  Commit(scheduler, scheduler.Schedule());
  EXPECT_EQ(scheduler.Find(1)->cached_tokens, 0u);
  scheduler.Add(WithTokens(2, Forked(60, 40, 200)));
  const std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1), Pair(2, 20)));
  Sequence& first = *scheduler.Find(1);
  Sequence& second = *scheduler.Find(2);
  EXPECT_EQ(second.num_computed, 40u);
  EXPECT_EQ(second.cached_tokens, 40u);
  // Two full blocks are shared, the third is copied.
  EXPECT_EQ(second.block_table[1], first.block_table[1]);
  EXPECT_THAT(copies,
              ElementsAre(Pair(first.block_table[2], second.block_table[2])));
  EXPECT_EQ(scheduler.num_lookup_tokens(), 110u);
  EXPECT_EQ(scheduler.num_hit_tokens(), 40u);
  ASSERT_TRUE(scheduler.CheckIntegrity().ok());
  // A step that was broken off is the same again.
  EXPECT_EQ(Ids(scheduler.Schedule()), Ids(chunks));
  EXPECT_THAT(copies, testing::SizeIs(1));
}

TEST(PrefixScheduleTest, OnlyWhatWasComputedIsShared) {
  Scheduler scheduler(CacheOptions(20, 4), 20, &NoCopy);
  scheduler.Add(WithTokens(1, Forked(50, 50, 0)));
  Commit(scheduler, scheduler.Schedule());
  scheduler.Schedule();  // broken off
  scheduler.Remove(scheduler.Find(1));
  scheduler.Add(WithTokens(2, Forked(50, 50, 0)));
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(2, 20)));
  EXPECT_EQ(scheduler.Find(2)->num_computed, 20u);
}

// Those that come together are not computed side by side.
TEST(PrefixScheduleTest, WaitsForABlockThatAnotherComputes) {
  Scheduler scheduler(CacheOptions(100, 4), 40, &NoCopy);
  for (uint64_t id = 1; id <= 3; ++id) {
    scheduler.Add(WithTokens(id, Forked(70, 64, 100 * id)));
  }
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 70)));
  Commit(scheduler, chunks);
  chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1), Pair(2, 6), Pair(3, 6)));
  // A long common beginning, in steps: the second stays behind the first.
  scheduler.Remove(scheduler.Find(1));
  scheduler.Remove(scheduler.Find(2));
  scheduler.Remove(scheduler.Find(3));
  for (const auto& [id, fork] : {std::pair(4, 170), std::pair(5, 120)}) {
    auto sequence = WithTokens(id, Forked(170, fork, 900));
    sequence->request.cache_salt = "nobody has computed any of it";
    scheduler.Add(std::move(sequence));
  }
  chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(4, 100)));
  Commit(scheduler, chunks);
  // 4 computes all of 120: 5 waits for the block that ends at 112.
  chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(4, 70)));
  Commit(scheduler, chunks);
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(4, 1), Pair(5, 50)));
}

TEST(PrefixScheduleTest, ShortPromptsDoNotWait) {
  Scheduler scheduler(CacheOptions(100, 4), 40, &NoCopy);
  scheduler.Add(WithTokens(1, Forked(16, 16, 0)));
  scheduler.Add(WithTokens(2, Forked(16, 16, 0)));
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(1, 16), Pair(2, 16)));
}

TEST(PrefixScheduleTest, APreemptedOneFindsItsBlocks) {
  Scheduler scheduler(CacheOptions(100, 4), 6, &NoCopy);
  scheduler.Add(WithTokens(1, Forked(kKvBlockSize, 0, 1)));
  scheduler.Add(WithTokens(2, Forked(4 * kKvBlockSize, 0, 2)));
  std::vector<Chunk> chunks;
  while (scheduler.num_preemptions() == 0) {
    Commit(scheduler, chunks);
    chunks = scheduler.Schedule();
  }
  Commit(scheduler, chunks);
  const Sequence& preempted = *scheduler.Find(2);
  EXPECT_EQ(preempted.num_computed, 0u);
  scheduler.Remove(scheduler.Find(1));
  chunks = scheduler.Schedule();
  // Nobody has needed its blocks meanwhile.
  EXPECT_THAT(Ids(chunks),
              ElementsAre(Pair(2, preempted.tokens.size() - 4 * kKvBlockSize)));
  EXPECT_EQ(preempted.cached_tokens, 0u);  // of others
  EXPECT_EQ(scheduler.num_hit_tokens(), 0u);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST(PrefixScheduleTest, LogitsOfThePromptNeedAllOfIt) {
  Scheduler scheduler(CacheOptions(100, 4), 20, &NoCopy);
  scheduler.Add(WithTokens(1, Forked(40, 40, 0)));
  Commit(scheduler, scheduler.Schedule());
  auto with_logprobs = WithTokens(2, Forked(40, 40, 0));
  with_logprobs->request.prompt_logprobs = true;
  scheduler.Add(std::move(with_logprobs));
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1), Pair(2, 40)));
  EXPECT_EQ(scheduler.num_lookup_tokens(), 40u);  // of the first
  Commit(scheduler, chunks);
  // In the end it shares.
  EXPECT_EQ(scheduler.Find(1)->block_table[1],
            scheduler.Find(2)->block_table[1]);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

// With a snapshot of one expert's version.
std::unique_ptr<Sequence> Pinned(uint64_t id, size_t length, uint64_t key) {
  auto sequence = WithTokens(id, Forked(length, length, 0));
  sequence->snapshot =
      std::make_shared<ModelSnapshot>(1, std::vector<uint64_t>{key}, "");
  return sequence;
}

TEST(PrefixScheduleTest, SnapshotsShareNothing) {
  Scheduler scheduler(CacheOptions(100, 4), 20, &NoCopy);
  scheduler.Add(Pinned(1, 30, 7));
  Commit(scheduler, scheduler.Schedule());
  scheduler.Add(Pinned(2, 30, 8));
  std::vector<Chunk> chunks = scheduler.Schedule();
  EXPECT_THAT(Ids(chunks), ElementsAre(Pair(1, 1), Pair(2, 30)));
  Commit(scheduler, chunks);
  scheduler.Add(Pinned(3, 30, 7));
  scheduler.Add(Pinned(4, 30, 8));
  EXPECT_THAT(Ids(scheduler.Schedule()),
              ElementsAre(Pair(1, 1), Pair(2, 1), Pair(3, 1), Pair(4, 1)));
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

// A moved sequence publishes nothing more; preempted, it begins anew with its
// own snapshot.
TEST(PrefixScheduleTest, AMovedSequenceSharesNothingOfItsMixture) {
  Scheduler scheduler(CacheOptions(100, 4), 20, &NoCopy);
  scheduler.Add(Pinned(1, 30, 7));
  Commit(scheduler, scheduler.Schedule());
  Sequence& moved = *scheduler.Find(1);
  moved.snapshot =
      std::make_shared<ModelSnapshot>(1, std::vector<uint64_t>{8}, "");
  moved.prefix.publishes = false;
  for (int32_t token = 0; token < 40; ++token) {
    Commit(scheduler, scheduler.Schedule());
  }
  scheduler.Remove(&moved);
  scheduler.Add(Pinned(2, 30, 8));
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(2, 30)));
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST(SchedulerTest, WhatCannotStartWaits) {
  Scheduler scheduler(CacheOptions(100, 4), 20, &NoCopy);
  scheduler.Add(WithTokens(1, Forked(30, 30, 0)));
  scheduler.Find(1)->can_start = false;
  EXPECT_TRUE(scheduler.Schedule().empty());
  EXPECT_EQ(scheduler.NotStarted().size(), 1u);
  scheduler.Find(1)->can_start = true;
  EXPECT_THAT(Ids(scheduler.Schedule()), ElementsAre(Pair(1, 30)));
}

TEST(PrefixScheduleTest, SaltsShareNothing) {
  Scheduler scheduler(CacheOptions(100, 4), 20, &NoCopy);
  for (uint64_t id = 1; id <= 3; ++id) {
    auto sequence = WithTokens(id, Forked(30, 30, 0));
    sequence->request.cache_salt = id == 2 ? "other" : "";
    scheduler.Add(std::move(sequence));
    Commit(scheduler, scheduler.Schedule());
  }
  EXPECT_EQ(scheduler.Find(2)->cached_tokens, 0u);
  EXPECT_EQ(scheduler.Find(3)->cached_tokens, 29u);
}

// Random arrivals, ends, cancellations and aborted steps; the invariants hold
// after each, and everything that may end does.
class RandomSchedule : public testing::TestWithParam<uint32_t> {};

TEST_P(RandomSchedule, KeepsItsInvariants) {
  std::mt19937 random(GetParam());
  const size_t num_blocks = 3 + random() % 20;
  const size_t longest = num_blocks * kKvBlockSize;
  SchedulerOptions options = Options(1 + random() % 60, 1 + random() % 9);
  options.prefix_cache = GetParam() % 2 == 1;
  Scheduler scheduler(options, num_blocks, &NoCopy);
  uint64_t next_id = 0;
  uint64_t num_ended = 0;
  std::map<uint64_t, size_t> lengths;  // tokens at which each one ends
  uint64_t last_started = 0;           // the latest arrival that has run
  uint64_t preemptions = 0;
  const size_t num_arrivals = 60;
  for (int step = 0; num_ended < num_arrivals; ++step) {
    ASSERT_LT(step, 200000) << "does not end";
    while (next_id < num_arrivals && random() % 3 == 0) {
      const size_t prompt = 1 + random() % (longest - 1);
      lengths[++next_id] = prompt + 1 + random() % (longest - prompt);
      scheduler.Add(NewSequence(next_id, prompt));
    }
    if (random() % 40 == 0 && next_id > 0) {  // somebody hangs up
      if (Sequence* sequence = scheduler.Find(1 + random() % next_id)) {
        scheduler.Remove(sequence);
        ++num_ended;
      }
    }
    const size_t num_sequences =
        scheduler.num_running() + scheduler.num_waiting();
    const std::vector<Chunk> chunks = scheduler.Schedule();
    const absl::Status sound = scheduler.CheckIntegrity();
    ASSERT_TRUE(sound.ok()) << sound;
    ASSERT_EQ(scheduler.num_running() + scheduler.num_waiting(), num_sequences);
    ASSERT_LE(scheduler.num_running(), options.max_sequences);
    // Never idle while there is work.
    ASSERT_EQ(chunks.empty(), num_sequences == 0);

    size_t budget = options.max_batch_tokens;
    uint64_t previous = 0;
    for (const Chunk& chunk : chunks) {
      const Sequence& sequence = *chunk.sequence;
      ASSERT_GT(chunk.num_tokens, 0u);
      ASSERT_LE(chunk.num_tokens, budget);
      budget -= chunk.num_tokens;
      ASSERT_LE(sequence.num_computed + chunk.num_tokens,
                sequence.tokens.size());
      ASSERT_GE(sequence.block_table.size() * kKvBlockSize,
                sequence.num_computed + chunk.num_tokens);
      // First come, first served: in order of arrival.
      ASSERT_GT(sequence.seq_id, previous);
      previous = sequence.seq_id;
      last_started = std::max(last_started, sequence.seq_id);
      // Nobody is cut short but by the budget.
      if (sequence.num_computed + chunk.num_tokens < sequence.tokens.size()) {
        ASSERT_EQ(budget, 0u);
      }
    }
    // The earliest of all always makes progress.
    if (!chunks.empty()) {
      uint64_t earliest = ~uint64_t{0};
      for (const Sequence* sequence : scheduler.Sequences()) {
        earliest = std::min(earliest, sequence->seq_id);
        // Nobody overtakes: whoever waits came after whoever runs.
        ASSERT_TRUE(sequence->preemptions > 0 || sequence->num_computed > 0 ||
                    sequence->seq_id >= last_started ||
                    !sequence->block_table.empty());
      }
      ASSERT_EQ(chunks.front().sequence->seq_id, earliest);
    }
    ASSERT_GE(scheduler.num_preemptions(), preemptions);
    preemptions = scheduler.num_preemptions();

    if (random() % 10 == 0) continue;  // the step was broken off
    Commit(scheduler, chunks);
    for (const Chunk& chunk : chunks) {
      Sequence* sequence = chunk.sequence;
      if (sequence->tokens.size() < lengths[sequence->seq_id]) continue;
      scheduler.Remove(sequence);
      ++num_ended;
    }
    ASSERT_TRUE(scheduler.CheckIntegrity().ok());
  }
  EXPECT_EQ(scheduler.num_free_blocks(), num_blocks);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomSchedule, testing::Range(0u, 60u));

TEST(SchedulerTest, TwoThatGrowTakeTurns) {
  // Each grows to the whole cache.
  Scheduler scheduler(Options(8, 2), 4, &NoCopy);
  scheduler.Add(NewSequence(1, 1));
  scheduler.Add(NewSequence(2, 1));
  size_t ended = 0;
  for (int step = 0; step < 1000 && ended < 2; ++step) {
    const std::vector<Chunk> chunks = scheduler.Schedule();
    Commit(scheduler, chunks);
    for (const Chunk& chunk : chunks) {
      if (chunk.sequence->tokens.size() < 4 * kKvBlockSize) continue;
      scheduler.Remove(chunk.sequence);
      ++ended;
    }
  }
  EXPECT_EQ(ended, 2u);
  EXPECT_GE(scheduler.num_preemptions(), 1u);
}

}  // namespace
}  // namespace troupe
