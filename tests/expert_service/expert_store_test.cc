#include "expert_service/expert_store.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/workspace.h"
#include "tests/expert_service/test_experts.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Checkpoint> Write(const std::string& dir,
                                  const ModelConfig& config) {
  CheckpointBuilder(config).Write(dir);
  return *Checkpoint::Open(dir);
}

TEST(ExpertStoreTest, OwnsWhatItWasGiven) {
  TempDir dir;
  const auto checkpoint = Write(dir.path(), TinyConfig(Architecture::kMixtral));
  ThreadPool pool(1);
  const auto store = ExpertStore::Load(*checkpoint, {{0, 1}, {2, 3}},
                                       {{1, 2}, {3, 5}}, pool, NoProgress);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->hidden_size(), 32u);
  EXPECT_EQ((*store)->num_layers(), 3u);
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t expert = 0; expert < 5; ++expert) {
      const bool owned =
          layer != 1 && (expert == 1 || expert == 3 || expert == 4);
      EXPECT_EQ((*store)->experts()->Find(layer, expert) != nullptr, owned)
          << layer << " " << expert;
    }
  }
  EXPECT_EQ((*store)->experts()->Find(3, 1), nullptr);
  EXPECT_EQ((*store)->experts()->Find(0, 5), nullptr);
  EXPECT_EQ((*store)->experts()->Find(~size_t{0}, ~size_t{0}), nullptr);
}

TEST(ExpertStoreTest, TheWeightsAreThoseOfTheFiles) {
  TestExperts experts;
  const size_t hidden_size = experts.config().hidden_size;
  std::vector<float> row(hidden_size);
  for (size_t i = 0; i < hidden_size; ++i) {
    row[i] = 0.1f * static_cast<float>(i) - 1.5f;
  }
  Workspace workspace;
  std::vector<std::vector<float>> outputs;
  for (size_t layer = 0; layer < experts.config().num_layers; ++layer) {
    for (size_t expert = 0; expert < TestExperts::kNumOwned; ++expert) {
      std::vector<float> output(hidden_size);
      GatedMlp(ConstFloatMatrix(row.data(), 1, hidden_size),
               *experts.store().experts()->Find(layer, expert)->weights,
               FloatMatrix(output.data(), 1, hidden_size), workspace,
               experts.pool());
      const std::vector<float> expected =
          experts.Reference(layer, expert, row.data());
      for (size_t i = 0; i < hidden_size; ++i) {
        EXPECT_NEAR(output[i], expected[i], 1e-4f);
      }
      EXPECT_THAT(outputs, testing::Not(testing::Contains(output)));
      outputs.push_back(output);
    }
  }
}

TEST(ExpertStoreTest, OneVersionPerLayerAndExpert) {
  TestExperts experts;
  const auto versions = experts.store().versions();
  ASSERT_EQ(versions.size(), 3 * TestExperts::kNumOwned);
  size_t i = 0;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t expert = 0; expert < TestExperts::kNumOwned; ++expert, ++i) {
      const v1::ExpertRange& range = versions[i].range();
      EXPECT_EQ(range.layer_begin(), layer);
      EXPECT_EQ(range.layer_end(), layer + 1);
      EXPECT_EQ(range.expert_begin(), expert);
      EXPECT_EQ(range.expert_end(), expert + 1);
      EXPECT_EQ(versions[i].content_hash(),
                *experts.checkpoint().ExpertContentHash(layer, expert));
    }
  }
}

TEST(ExpertStoreTest, CountsPackedBytes) {
  TestExperts experts;
  uint64_t bytes = 0;
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t expert = 0; expert < TestExperts::kNumOwned; ++expert) {
      const GatedMlpWeights& weights =
          *experts.store().experts()->Find(layer, expert)->weights;
      bytes += weights.gate_up.num_bytes() + weights.down.num_bytes();
    }
  }
  EXPECT_EQ(experts.store().num_bytes(), bytes);
  // Panels are padded, never cut.
  EXPECT_GE(bytes, 3 * TestExperts::kNumOwned *
                       experts.checkpoint().expert_bytes(0, 0));
}

TEST(ExpertStoreTest, ReportsProgressToTheEnd) {
  TempDir dir;
  const auto checkpoint = Write(dir.path(), TinyConfig(Architecture::kOlmoe));
  ThreadPool pool(1);
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  const auto store = ExpertStore::Load(*checkpoint, {{0, 3}}, {{0, 2}}, pool,
                                       [&](uint64_t done, uint64_t total) {
                                         seen.emplace_back(done, total);
                                         return absl::OkStatus();
                                       });
  ASSERT_TRUE(store.ok());
  ASSERT_EQ(seen.size(), 6u);
  for (size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].first, (i + 1) * checkpoint->expert_bytes(0, 0));
    EXPECT_EQ(seen[i].second, 6 * checkpoint->expert_bytes(0, 0));
  }
}

TEST(ExpertStoreTest, AnErrorOfProgressEndsTheLoading) {
  TempDir dir;
  const auto checkpoint = Write(dir.path(), TinyConfig(Architecture::kOlmoe));
  ThreadPool pool(1);
  int calls = 0;
  const auto store = ExpertStore::Load(
      *checkpoint, {{0, 3}}, {{0, 2}}, pool, [&](uint64_t, uint64_t) {
        return ++calls < 3 ? absl::OkStatus()
                           : absl::CancelledError("told to end");
      });
  EXPECT_EQ(store.status(), absl::CancelledError("told to end"));
  EXPECT_EQ(calls, 3);
}

TEST(ExpertStoreTest, LayersWithoutExpertsArePassedOver) {
  TempDir dir;
  // Layer 1 is dense.
  const auto checkpoint =
      Write(dir.path(), TinyConfig(Architecture::kQwen2Moe));
  ThreadPool pool(1);
  const auto store =
      ExpertStore::Load(*checkpoint, {{0, 3}}, {{0, 5}}, pool, NoProgress);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_NE((*store)->experts()->Find(0, 0), nullptr);
  EXPECT_EQ((*store)->experts()->Find(1, 0), nullptr);
  EXPECT_NE((*store)->experts()->Find(2, 0), nullptr);
  EXPECT_EQ((*store)->versions().size(), 10u);

  const auto none =
      ExpertStore::Load(*checkpoint, {{1, 2}}, {{0, 5}}, pool, NoProgress);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.status().message()),
              HasSubstr("no expert to own"));
}

}  // namespace
}  // namespace troupe
