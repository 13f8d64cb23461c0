#include "expert_service/expert_batcher.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "expert_service/local_expert_peer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/expert_service/test_experts.h"
#include "tests/fakes/expert_file.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

class ExpertBatcherTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { experts_ = new TestExperts; }
  static void TearDownTestSuite() {
    delete experts_;
    experts_ = nullptr;
  }
  static size_t hidden_size() { return experts_->config().hidden_size; }

  v1::ExpertBatch Batch(size_t layer, size_t num_tokens, uint32_t seed) {
    return RandomBatch(hidden_size(), layer, num_tokens, seed);
  }
  v1::ExpertOutput Run(const v1::ExpertBatch& batch) {
    const absl::Status valid =
        batcher_.Validate(FromProto(batch), batch.hidden_states().size());
    EXPECT_TRUE(valid.ok()) << valid;
    v1::ExpertOutput output;
    absl::Notification done;
    Submit(batcher_, batch, [&](v1::ExpertOutput answer) {
      output = std::move(answer);
      done.Notify();
    });
    done.WaitForNotification();
    return output;
  }
  v1::ExpertStats Stats() {
    v1::ExpertStats stats;
    batcher_.GetStats(stats);
    return stats;
  }

  static TestExperts* experts_;
  ThreadPool pool_{2};
  CpuExpertBackend backend_{experts_->store(), pool_};
  ExpertBatcher batcher_{backend_, /*capacity_rows=*/100};
};
TestExperts* ExpertBatcherTest::experts_ = nullptr;

TEST_F(ExpertBatcherTest, ComputesEachCopy) {
  const v1::ExpertBatch batch = Batch(1, 7, 42);
  const v1::ExpertOutput output = Run(batch);
  EXPECT_EQ(output.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  EXPECT_EQ(output.attempt_id(), 42u);
  const size_t row_bytes = hidden_size() * sizeof(float);
  ASSERT_EQ(output.outputs().size(), batch.row_of_copy_size() * row_bytes);
  const auto* hidden =
      reinterpret_cast<const float*>(batch.hidden_states().data());
  const auto* actual = reinterpret_cast<const float*>(output.outputs().data());
  int copy = 0;
  for (int i = 0; i < batch.expert_ids_size(); ++i) {
    for (uint32_t n = 0; n < batch.copies_per_expert(i); ++n, ++copy) {
      const std::vector<float> expected =
          experts_->Reference(1, batch.expert_ids(i),
                              hidden + batch.row_of_copy(copy) * hidden_size());
      for (size_t c = 0; c < hidden_size(); ++c) {
        EXPECT_NEAR(actual[copy * hidden_size() + c], expected[c], 1e-4f)
            << "copy " << copy << " column " << c;
      }
    }
  }
}

TEST_F(ExpertBatcherTest, MergedBatchesHaveTheBytesOfThoseAlone) {
  std::vector<v1::ExpertBatch> batches;
  std::vector<std::string> alone;
  for (uint32_t i = 0; i < 6; ++i) {
    // Batch 3 uses experts 0 and 2 alone, batch 4 is of another layer.
    v1::ExpertBatch batch = Batch(i == 4 ? 2 : 0, 1 + i % 4, i + 1);
    if (i == 3) {
      batch.clear_expert_ids();
      batch.clear_copies_per_expert();
      batch.clear_row_of_copy();
      for (const uint32_t expert : {0, 2}) {
        batch.add_expert_ids(expert);
        batch.add_copies_per_expert(batch.num_tokens());
        for (uint32_t t = batch.num_tokens(); t > 0; --t) {
          batch.add_row_of_copy(t - 1);
        }
      }
    }
    batches.push_back(batch);
    alone.push_back(Run(batch).outputs());
  }
  const uint64_t batches_before = Stats().batches();
  ASSERT_EQ(batches_before, 6u);

  std::vector<v1::ExpertOutput> merged(batches.size());
  absl::BlockingCounter done(static_cast<int>(batches.size()));
  {
    HeldBatcher held(batcher_, hidden_size());
    for (size_t i = 0; i < batches.size(); ++i) {
      Submit(batcher_, batches[i], [&, i](v1::ExpertOutput output) {
        merged[i] = std::move(output);
        done.DecrementCount();
      });
    }
  }
  done.Wait();
  for (size_t i = 0; i < batches.size(); ++i) {
    EXPECT_EQ(merged[i].verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
    EXPECT_EQ(merged[i].attempt_id(), batches[i].attempt_id());
    EXPECT_EQ(merged[i].outputs(), alone[i]) << "batch " << i;
  }
  // The one that held, the five of layer 0, the one of layer 2.
  EXPECT_EQ(Stats().batches(), batches_before + 3);
  EXPECT_EQ(Stats().messages(), 13u);
}

// Rows with NaN or infinity spoil themselves alone.
TEST_F(ExpertBatcherTest, ABrokenRowSpoilsNoOther) {
  const v1::ExpertBatch good = Batch(0, 3, 5);
  const std::string alone = Run(good).outputs();
  v1::ExpertBatch bad = Batch(0, 2, 6);
  const uint32_t specials[] = {0x7fc00000, 0x7f800000, 0xff800000};
  for (size_t i = 0; i < 3; ++i) {
    std::memcpy(&(*bad.mutable_hidden_states())[i * 4], &specials[i], 4);
  }
  v1::ExpertOutput merged;
  absl::BlockingCounter done(3);
  {
    HeldBatcher held(batcher_, hidden_size());
    const auto count = [&](v1::ExpertOutput) { done.DecrementCount(); };
    Submit(batcher_, bad, count);
    Submit(batcher_, good, [&](v1::ExpertOutput output) {
      merged = std::move(output);
      done.DecrementCount();
    });
    Submit(batcher_, bad, count);
  }
  done.Wait();
  EXPECT_EQ(merged.outputs(), alone);
}

// The rows of an output that are not of refused copies.
std::string WithoutRefused(const std::string& all,
                           const v1::ExpertOutput& output, size_t num_copies) {
  const size_t row_bytes = all.size() / num_copies;
  std::string kept;
  int next = 0;
  for (size_t copy = 0; copy < num_copies; ++copy) {
    if (next < output.refused_copies_size() &&
        output.refused_copies(next) == copy) {
      ++next;
      continue;
    }
    kept += all.substr(copy * row_bytes, row_bytes);
  }
  return kept;
}

TEST_F(ExpertBatcherTest, WhatDoesNotFitIsRefusedCopyByCopy) {
  v1::ExpertBatch large = Batch(0, 30, 1);
  const uint64_t rows = static_cast<uint64_t>(large.row_of_copy_size());
  ASSERT_GT(rows, 50u);
  ASSERT_LT(rows, 100u);
  const std::string all = Run(large).outputs();
  v1::ExpertOutput first, lowest, refused;
  absl::BlockingCounter computed(2);
  {
    const HeldBatcher held(batcher_, hidden_size());
    Submit(batcher_, large, [&](v1::ExpertOutput output) {
      first = std::move(output);
      computed.DecrementCount();
    });
    EXPECT_EQ(Stats().queued_rows(), rows);
    // The copies of expert 0 are to go, then the last ones.
    for (uint32_t copy = 0; copy < rows; ++copy) {
      large.add_priorities(copy < large.copies_per_expert(0) ? 3 : 4);
    }
    Submit(batcher_, large, [&](v1::ExpertOutput output) {
      lowest = std::move(output);
      computed.DecrementCount();
    });
    EXPECT_EQ(Stats().queued_rows(), 100u);
    large.set_attempt_id(77);
    bool answered = false;
    Submit(batcher_, large, [&](v1::ExpertOutput output) {
      refused = std::move(output);
      answered = true;
    });
    ASSERT_TRUE(answered);  // at once
  }
  computed.Wait();
  EXPECT_EQ(refused.verdict(), v1::ExpertOutput::VERDICT_REFUSED);
  EXPECT_EQ(refused.attempt_id(), 77u);
  EXPECT_EQ(refused.free_rows(), 0u);
  EXPECT_EQ(refused.outputs().size(), 0u);
  EXPECT_EQ(first.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  EXPECT_EQ(lowest.verdict(), v1::ExpertOutput::VERDICT_PARTIAL);
  EXPECT_EQ(lowest.refused_copies_size(), static_cast<int>(2 * rows - 100));
  EXPECT_EQ(lowest.outputs(), WithoutRefused(all, lowest, rows));
  const uint32_t num_first = large.copies_per_expert(0);
  for (int i = 0; i < lowest.refused_copies_size(); ++i) {
    const auto refusals = static_cast<uint32_t>(lowest.refused_copies_size());
    const uint32_t of_first = std::min(refusals, num_first);
    const auto at = static_cast<uint32_t>(i);
    EXPECT_EQ(lowest.refused_copies(i),
              at < of_first ? num_first - of_first + at
                            : rows - (refusals - of_first) + (at - of_first));
  }
  EXPECT_EQ(Stats().refused_rows(), 2 * rows - 100 + rows);
  // With room again it is taken.
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  EXPECT_EQ(Run(large).outputs(), all);
}

TEST_F(ExpertBatcherTest, TheQueueIsNeverLargerThanItsBound) {
  const v1::ExpertBatch large = Batch(0, 200, 1);
  const auto rows = static_cast<size_t>(large.row_of_copy_size());
  ASSERT_GT(rows, 100u);
  const v1::ExpertOutput output = Run(large);
  EXPECT_EQ(output.verdict(), v1::ExpertOutput::VERDICT_PARTIAL);
  EXPECT_EQ(output.outputs().size(), 100 * hidden_size() * sizeof(float));
  // Without priorities the last ones.
  ASSERT_EQ(output.refused_copies_size(), static_cast<int>(rows - 100));
  EXPECT_EQ(output.refused_copies(0), 100u);
  EXPECT_EQ(output.free_rows(), 100u);
}

TEST_F(ExpertBatcherTest, WhatNobodyWaitsForIsNotComputed) {
  v1::ExpertBatch batch = Batch(0, 5, 1);
  batch.set_timeout_ms(1);
  v1::ExpertOutput late;
  v1::ExpertOutput in_time;
  absl::BlockingCounter done(2);
  {
    HeldBatcher held(batcher_, hidden_size());
    Submit(batcher_, batch, [&](v1::ExpertOutput output) {
      late = std::move(output);
      done.DecrementCount();
    });
    batch.set_timeout_ms(0);
    Submit(batcher_, batch, [&](v1::ExpertOutput output) {
      in_time = std::move(output);
      done.DecrementCount();
    });
    const SteadyTime deadline =
        std::chrono::steady_clock::now() + milliseconds(2);
    while (std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
  }
  done.Wait();
  EXPECT_EQ(late.verdict(), v1::ExpertOutput::VERDICT_REFUSED);
  EXPECT_TRUE(late.outputs().empty());
  EXPECT_EQ(in_time.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  EXPECT_EQ(Stats().queued_rows(), 0u);
}

TEST_F(ExpertBatcherTest, DrainingFinishesWhatWaits) {
  v1::ExpertOutput queued;
  v1::ExpertOutput after;
  {
    HeldBatcher held(batcher_, hidden_size());
    Submit(batcher_, Batch(0, 4, 3),
           [&](v1::ExpertOutput output) { queued = std::move(output); });
    batcher_.StartDraining();
    Submit(batcher_, Batch(0, 4, 4),
           [&](v1::ExpertOutput output) { after = std::move(output); });
    EXPECT_FALSE(batcher_.WaitUntilIdle(milliseconds(1)));
  }
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  EXPECT_EQ(queued.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  EXPECT_EQ(after.verdict(), v1::ExpertOutput::VERDICT_DRAINING);
  EXPECT_EQ(after.attempt_id(), 4u);
}

TEST_F(ExpertBatcherTest, DestructionComputesWhatIsQueued) {
  ThreadPool pool(2);
  CpuExpertBackend backend(experts_->store(), pool);
  auto batcher = std::make_unique<ExpertBatcher>(backend, 1000);
  int computed = 0;
  std::thread destroyer;
  {
    HeldBatcher held(*batcher, hidden_size());
    for (uint32_t i = 0; i < 10; ++i) {
      Submit(*batcher, Batch(i % 3, 3, i), [&](v1::ExpertOutput output) {
        computed += output.verdict() == v1::ExpertOutput::VERDICT_COMPUTED;
      });
    }
    destroyer = std::thread([&] { batcher = nullptr; });
  }
  destroyer.join();
  EXPECT_EQ(computed, 10);
}

// Several threads submit; every batch is answered once, with its own bytes.
TEST_F(ExpertBatcherTest, ManyRoutersAtOnce) {
  constexpr size_t kThreads = 4;
  constexpr size_t kBatches = 25;
  std::vector<v1::ExpertBatch> batches;
  std::vector<std::string> alone;
  for (uint32_t i = 0; i < 8; ++i) {
    batches.push_back(Batch(i % 3, 1 + i % 5, 100 + i));
    alone.push_back(Run(batches.back()).outputs());
  }
  std::atomic<int> computed = 0;
  std::atomic<int> refused = 0;  // some of it, or all
  std::atomic<int> partial = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      absl::BlockingCounter answers(kBatches);
      for (size_t n = 0; n < kBatches; ++n) {
        const size_t i = (t * 3 + n) % batches.size();
        Submit(batcher_, batches[i], [&, i](v1::ExpertOutput output) {
          if (output.verdict() == v1::ExpertOutput::VERDICT_COMPUTED) {
            EXPECT_EQ(output.outputs(), alone[i]);
            ++computed;
          } else {
            if (output.verdict() == v1::ExpertOutput::VERDICT_PARTIAL) {
              ++partial;
              EXPECT_EQ(output.outputs(),
                        WithoutRefused(alone[i], output,
                                       static_cast<size_t>(
                                           batches[i].row_of_copy_size())));
            } else {
              EXPECT_EQ(output.verdict(), v1::ExpertOutput::VERDICT_REFUSED);
            }
            ++refused;
          }
          answers.DecrementCount();
        });
      }
      answers.Wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(computed + refused, static_cast<int>(kThreads * kBatches));
  EXPECT_GT(computed, 0);
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  EXPECT_EQ(Stats().queued_rows(), 0u);
  EXPECT_EQ(Stats().messages(), 8u + static_cast<uint64_t>(computed + partial));
}

TEST_F(ExpertBatcherTest, ALocalPeerWaitsForItsOwnCallbacks) {
  auto peer =
      std::make_unique<LocalExpertPeer>(v1::ExpertDescription(), batcher_);
  std::atomic<bool> answered = false;
  std::thread destroyer;
  {
    HeldBatcher held(batcher_, hidden_size());
    SendProto(*peer, Batch(0, 2, 1),
              [&](absl::StatusOr<v1::ExpertOutput> output) {
                EXPECT_TRUE(output.ok());
                answered = true;
              });
    destroyer = std::thread([&] {
      peer = nullptr;
      EXPECT_TRUE(answered);
    });
  }
  destroyer.join();
}

TEST_F(ExpertBatcherTest, ALocalPeerValidates) {
  LocalExpertPeer peer(v1::ExpertDescription(), batcher_);
  v1::ExpertBatch batch = Batch(0, 2, 1);
  batch.set_num_tokens(3);
  absl::Status status;
  SendProto(peer, batch, [&](absl::StatusOr<v1::ExpertOutput> output) {
    status = output.status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hidden_states"));
}

// Batches for several versions of an expert, alone and merged.
TEST_F(ExpertBatcherTest, VersionsAreComputedEachByItself) {
  TestExperts experts;
  CheckpointBuilder newer(experts.config(), /*seed=*/2);
  TempDir dir;
  WriteTensorFile(dir.File("new"), ExpertTensors(newer, [](size_t, size_t e) {
                    return e == 0 || e == 2;
                  }));
  const auto file =
      *Checkpoint::OpenExperts(experts.checkpoint(), dir.File("new"));
  const auto loaded = LoadExperts(*file, file->experts(), "v2", "new",
                                  experts.pool(), NoProgress);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(experts.store().Add(*loaded).ok());
  ThreadPool pool(2);
  CpuExpertBackend backend(experts.store(), pool);
  ExpertBatcher batcher(backend, 1000);
  const auto run = [&](const v1::ExpertBatch& batch) {
    EXPECT_TRUE(
        batcher.Validate(FromProto(batch), batch.hidden_states().size()).ok());
    v1::ExpertOutput output;
    absl::Notification done;
    Submit(batcher, batch, [&](v1::ExpertOutput answer) {
      output = std::move(answer);
      done.Notify();
    });
    done.WaitForNotification();
    return output;
  };
  // Row r of expert e, version v, alone.
  const auto batch_of = [&](std::vector<std::pair<uint32_t, size_t>> groups,
                            uint32_t seed) {
    v1::ExpertBatch batch = RandomBatch(hidden_size(), 1, 3, seed);
    batch.clear_expert_ids();
    batch.clear_copies_per_expert();
    batch.clear_row_of_copy();
    std::vector<std::pair<uint32_t, uint64_t>> keys;
    for (const auto& [expert, version] : groups) {
      keys.emplace_back(
          expert, experts.store().experts()->Versions(1, expert)[version]->key);
    }
    std::sort(keys.begin(), keys.end());
    for (const auto& [expert, key] : keys) {
      batch.add_expert_ids(expert);
      batch.add_versions(key);
      batch.add_copies_per_expert(3);
      for (uint32_t row = 0; row < 3; ++row) batch.add_row_of_copy(row);
    }
    return batch;
  };
  const std::vector<v1::ExpertBatch> batches = {
      batch_of({{0, 0}, {0, 1}, {1, 0}, {2, 1}}, 1),
      batch_of({{0, 1}, {2, 0}, {2, 1}}, 2), batch_of({{0, 0}, {1, 0}}, 3)};
  const size_t rows_bytes = 3 * hidden_size() * sizeof(float);
  std::vector<std::string> alone;
  for (const v1::ExpertBatch& batch : batches) {
    alone.push_back(run(batch).outputs());
    // Each group has the bytes that it has as a batch of its own.
    for (int i = 0; i < batch.expert_ids_size(); ++i) {
      v1::ExpertBatch one = batch;
      one.clear_expert_ids();
      one.clear_versions();
      one.clear_copies_per_expert();
      one.clear_row_of_copy();
      one.add_expert_ids(batch.expert_ids(i));
      one.add_versions(batch.versions(i));
      one.add_copies_per_expert(3);
      for (uint32_t row = 0; row < 3; ++row) one.add_row_of_copy(row);
      EXPECT_EQ(
          run(one).outputs(),
          alone.back().substr(static_cast<size_t>(i) * rows_bytes, rows_bytes));
    }
  }
  EXPECT_NE(alone[0].substr(0, rows_bytes),
            alone[0].substr(rows_bytes, rows_bytes));
  std::vector<std::string> merged(batches.size());
  absl::BlockingCounter answers(static_cast<int>(batches.size()));
  {
    const HeldBatcher held(batcher, hidden_size());
    for (size_t i = 0; i < batches.size(); ++i) {
      Submit(batcher, batches[i], [&, i](v1::ExpertOutput output) {
        merged[i] = output.outputs();
        answers.DecrementCount();
      });
    }
  }
  answers.Wait();
  EXPECT_EQ(merged, alone);

  // Which one it means has to be said; each at most once.
  v1::ExpertBatch batch = batch_of({{0, 0}}, 4);
  batch.clear_versions();
  const auto error = [&] {
    return std::string(
        batcher.Validate(FromProto(batch), batch.hidden_states().size())
            .message());
  };
  EXPECT_THAT(error(), HasSubstr("expert 0 of layer 1 has several versions"));
  batch = batch_of({{0, 0}, {0, 0}}, 4);
  EXPECT_THAT(error(), HasSubstr("not ascending at 0"));
  batch = batch_of({{0, 0}, {0, 1}}, 4);
  batch.mutable_versions()->SwapElements(0, 1);
  EXPECT_THAT(error(), HasSubstr("not ascending at 0"));
  batch.mutable_versions()->RemoveLast();
  EXPECT_THAT(error(), HasSubstr("ExpertBatch.versions: 1 for 2 experts"));
}

}  // namespace
}  // namespace troupe
