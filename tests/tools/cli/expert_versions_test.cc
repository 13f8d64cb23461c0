#include "tools/cli/expert_versions.h"

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

v1::LoadedExpert Loaded(uint32_t layer, uint32_t expert,
                        const std::string& label,
                        const std::string& source = "checkpoint") {
  v1::LoadedExpert loaded;
  v1::ExpertVersion& version = *loaded.mutable_version();
  version.mutable_range()->set_layer_begin(layer);
  version.mutable_range()->set_layer_end(layer + 1);
  version.mutable_range()->set_expert_begin(expert);
  version.mutable_range()->set_expert_end(expert + 1);
  version.set_label(label);
  version.set_content_hash(absl::StrCat(label, layer, "-", expert));
  loaded.set_source(source);
  return loaded;
}

// Two layers of these experts, in each with these labels.
ExpertProcess Process(const std::string& address,
                      const std::vector<uint32_t>& experts,
                      const std::vector<std::string>& labels) {
  ExpertProcess process;
  process.address = address;
  for (const uint32_t layer : {0u, 1u}) {
    for (const uint32_t expert : experts) {
      for (const std::string& label : labels) {
        *process.list.add_experts() = Loaded(layer, expert, label);
      }
    }
  }
  return process;
}

std::vector<std::string> Names(
    const google::protobuf::RepeatedPtrField<v1::RolloutLabel>& labels) {
  std::vector<std::string> names;
  for (const v1::RolloutLabel& label : labels) {
    names.push_back(absl::StrCat(label.label(), "/", label.num_experts()));
  }
  return names;
}

TEST(ExpertVersionsTest, ChoosesTheFirstLabelThatIsLoaded) {
  const std::vector<ExpertProcess> processes = {
      Process("a", {0, 1}, {"v1"}), Process("b", {2, 3}, {"v1", "v2"})};
  const auto chosen = ChosenLabels(processes, {"v3", "v2", "v1"});
  EXPECT_THAT(chosen, SizeIs(8));
  EXPECT_EQ(chosen.at({1, 0}), "v1");
  EXPECT_EQ(chosen.at({1, 3}), "v2");
  EXPECT_THAT(ChosenLabels(processes, {"v2"}), SizeIs(4));
}

TEST(ExpertVersionsTest, ARolloutSaysHowManyExpertsALabelDecides) {
  std::vector<ExpertProcess> processes = {Process("a", {0, 1}, {"v1"}),
                                          Process("b", {2, 3}, {"v1", "v2"})};
  *processes[0].list.add_experts() = Loaded(0, 0, "v3");
  v1::Rollout before;
  before.set_revision(4);
  const v1::Rollout rollout =
      MakeRollout(processes, before, {"v3", "v2", "v1"}, {}, 500, {"v1", "v0"});
  EXPECT_EQ(rollout.revision(), 5u);
  EXPECT_THAT(Names(rollout.labels()), ElementsAre("v3/1", "v2/4", "v1/0"));
  EXPECT_THAT(Names(rollout.previous_labels()), ElementsAre("v1/0", "v0/0"));
  EXPECT_EQ(rollout.canary_share(), 0u);  // there is no canary
  // A label that decides nothing is left out.
  EXPECT_THAT(
      Names(MakeRollout(processes, before, {"v1", "v2"}, {"v2", "v1"}, 500, {})
                .labels()),
      ElementsAre("v1/0"));
  EXPECT_THAT(
      Names(MakeRollout(processes, before, {"v1"}, {"v2", "v1"}, 500, {})
                .canary_labels()),
      ElementsAre("v2/4", "v1/0"));
}

TEST(ExpertVersionsTest, CurrentLabelsNeedARolloutWhereSeveralClaimAnExpert) {
  std::vector<ExpertProcess> processes = {Process("a", {0, 1}, {"v1"}),
                                          Process("b", {2, 3}, {""})};
  EXPECT_THAT(*CurrentLabels(processes), ElementsAre("", "v1"));
  processes.push_back(Process("c", {3}, {"v2"}));
  EXPECT_THAT(std::string(CurrentLabels(processes).status().message()),
              HasSubstr("expert 3 of layer 0 is loaded with the labels \"\" "
                        "and \"v2\""));
  v1::Rollout& rollout =
      *processes[1].list.mutable_description()->mutable_rollout();
  rollout.set_revision(2);
  rollout.add_labels()->set_label("v1");
  EXPECT_THAT(*CurrentLabels(processes), ElementsAre("v1"));
}

TEST(ExpertVersionsTest, SuperfluousIsWhatNoListChooses) {
  const std::vector<ExpertProcess> processes = {
      Process("a", {0, 1}, {"v1", "v2"}), Process("b", {1, 2}, {"v1"})};
  v1::Rollout rollout;
  rollout.add_labels()->set_label("v2");
  rollout.add_labels()->set_label("v1");
  std::vector<UnloadStep> steps = Superfluous(processes, rollout);
  ASSERT_THAT(steps, SizeIs(2));
  EXPECT_EQ(steps[0].process, 0u);
  EXPECT_EQ(steps[0].label, "v1");
  EXPECT_EQ(TextOf(steps[0].experts), "experts 0-1 of layers 0-1");
  // Expert 1 has v2 elsewhere; expert 2 has nothing but v1.
  EXPECT_EQ(steps[1].process, 1u);
  EXPECT_EQ(TextOf(steps[1].experts), "experts 1-1 of layers 0-1");
  // A canary keeps both.
  rollout.mutable_labels()->DeleteSubrange(0, 1);
  rollout.add_canary_labels()->set_label("v2");
  EXPECT_THAT(Superfluous(processes, rollout), IsEmpty());
}

TEST(ExpertVersionsTest, MissingIsLoadedFromWhereItCame) {
  std::vector<ExpertProcess> processes = {Process("a", {0}, {"v2"}),
                                          Process("b", {1}, {"v2", "v1"})};
  *processes[0].list.add_unloaded() = Loaded(0, 0, "v1");
  *processes[0].list.add_unloaded() = Loaded(1, 0, "v1");
  *processes[0].list.add_unloaded() = Loaded(1, 0, "v0", "/old.safetensors");
  *processes[1].list.add_unloaded() = Loaded(0, 1, "v0", "/old.safetensors");
  const std::vector<ReloadStep> steps = Missing(processes, {"v1", "v0"});
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_EQ(steps[0].process, 0u);
  EXPECT_EQ(steps[0].label, "v1");
  EXPECT_EQ(steps[0].source, "checkpoint");
  EXPECT_THAT(steps[0].content_hashes, SizeIs(2));
  const std::vector<ReloadStep> older = Missing(processes, {"v0"});
  ASSERT_THAT(older, SizeIs(2));
  EXPECT_EQ(older[1].source, "/old.safetensors");
}

TEST(ExpertVersionsTest, RangesAreExactlyTheExperts) {
  std::set<ExpertName> experts;
  for (const size_t layer : {0, 1, 3}) {
    for (const size_t expert : {0, 1, 5}) experts.insert({layer, expert});
  }
  experts.insert({3, 6});
  std::set<ExpertName> covered;
  for (const v1::ExpertRange& range : RangesOf(experts)) {
    for (size_t l = range.layer_begin(); l < range.layer_end(); ++l) {
      for (size_t e = range.expert_begin(); e < range.expert_end(); ++e) {
        EXPECT_TRUE(covered.insert({l, e}).second);
      }
    }
  }
  EXPECT_EQ(covered, experts);
  EXPECT_EQ(TextOf(experts), "10 experts");
  EXPECT_EQ(TextOf({}), "none");
}

}  // namespace
}  // namespace troupe
