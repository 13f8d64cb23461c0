#include "cluster/rollout.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::Rollout Valid() {
  v1::Rollout rollout;
  rollout.set_revision(2);
  rollout.add_labels()->set_label("v1");
  rollout.add_canary_labels()->set_label("v2");
  rollout.add_canary_labels()->set_label("");  // a label as others
  rollout.set_canary_share(100);
  return rollout;
}

TEST(RolloutTest, RefusesWhatIsNotValid) {
  EXPECT_TRUE(ValidateRollout(Valid()).ok());
  const struct {
    std::function<void(v1::Rollout&)> spoil;
    const char* message;
  } cases[] = {
      {[](v1::Rollout& r) { r.set_revision(0); }, "rollout.revision is 0"},
      {[](v1::Rollout& r) { r.clear_labels(); }, "rollout.labels is empty"},
      {[](v1::Rollout& r) { r.set_canary_share(10001); },
       "rollout.canary_share is 10001 of 10000"},
      {[](v1::Rollout& r) { r.add_labels()->set_label("v1"); },
       "rollout.labels names \"v1\" twice"},
      {[](v1::Rollout& r) { r.add_canary_labels()->set_label("a b"); },
       "rollout.canary_labels: the label \"a b\" is not"},
      {[](v1::Rollout& r) { r.add_previous_labels()->set_label("a,b"); },
       "rollout.previous_labels: the label"},
      {[](v1::Rollout& r) { r.add_labels()->set_label(std::string(65, 'x')); },
       "not at most 64"},
      {[](v1::Rollout& r) {
         for (int i = 0; i < 16; ++i) {
           r.add_labels()->set_label(absl::StrCat("l", i));
         }
       },
       "rollout.labels has 17 labels, at most 16"},
  };
  for (const auto& c : cases) {
    v1::Rollout rollout = Valid();
    c.spoil(rollout);
    const absl::Status status = ValidateRollout(rollout);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST(RolloutTest, ANewerOneHasTheHigherRevision) {
  v1::Rollout a = Valid();
  v1::Rollout b = Valid();
  EXPECT_FALSE(IsNewer(a, b));
  b.set_revision(3);
  EXPECT_TRUE(IsNewer(b, a));
  EXPECT_FALSE(IsNewer(a, b));
  // Two that were made at once: everybody takes the same one.
  b.set_revision(2);
  b.set_canary_share(200);
  EXPECT_NE(IsNewer(a, b), IsNewer(b, a));
}

TEST(RolloutTest, AGrowingShareOnlyAddsRequests) {
  v1::Rollout rollout = Valid();
  const auto canaries = [&](uint32_t share) {
    rollout.set_canary_share(share);
    std::vector<bool> chosen;
    for (int i = 0; i < 2000; ++i) {
      chosen.push_back(IsCanary(rollout, absl::StrCat("r", i)));
    }
    return chosen;
  };
  const std::vector<bool> none = canaries(0);
  EXPECT_EQ(std::count(none.begin(), none.end(), true), 0);
  const std::vector<bool> few = canaries(500);
  const std::vector<bool> more = canaries(2500);
  EXPECT_NEAR(std::count(few.begin(), few.end(), true), 100, 40);
  EXPECT_NEAR(std::count(more.begin(), more.end(), true), 500, 80);
  for (size_t i = 0; i < few.size(); ++i) EXPECT_TRUE(!few[i] || more[i]);
  const std::vector<bool> all = canaries(kWholeShare);
  EXPECT_EQ(std::count(all.begin(), all.end(), true), 2000);
  rollout.clear_canary_labels();
  EXPECT_FALSE(IsCanary(rollout, "r1"));
}

TEST(RolloutTest, ParsesWhatAFlagSays) {
  const auto rollout = ParseRollout("12:v2,v1");
  ASSERT_TRUE(rollout.ok()) << rollout.status();
  EXPECT_EQ(rollout->revision(), 12u);
  EXPECT_EQ(LabelsText(rollout->labels()), "v2,v1");
  for (const char* wrong : {"", "v2", "0:v2", "-1:v2", "x:v2", "1:a b",
                            "1:v2,v2", "99999999999999999999:v2"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseRollout(wrong).status())) << wrong;
  }
}

TEST(RolloutTest, LabelsAsText) {
  v1::Rollout rollout = Valid();
  EXPECT_EQ(LabelsText(rollout.canary_labels()), "v2,");
  EXPECT_THAT(ParseLabels("v2,"), ElementsAre("v2", ""));
  EXPECT_EQ(LabelsText({}), "");
}

}  // namespace
}  // namespace troupe
