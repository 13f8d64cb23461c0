#include "gateway/admission.h"

#include <optional>
#include <set>

#include "absl/synchronization/notification.h"
#include "gateway/choice_seed.h"
#include "gateway/router_choice.h"
#include "gateway/work_queue.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(AdmissionTest, RefusesBeyondTheBoundAndTakesPlacesBack) {
  Admission admission(2);
  std::optional<Admission::Ticket> first = admission.TryEnter();
  const Admission::Ticket second = admission.TryEnter();
  EXPECT_TRUE(*first);
  EXPECT_TRUE(second);
  EXPECT_FALSE(admission.TryEnter());
  EXPECT_EQ(admission.active(), 2u);
  first.reset();
  EXPECT_EQ(admission.active(), 1u);
  EXPECT_TRUE(admission.TryEnter());
}

TEST(AdmissionTest, MovedTicketsCountOnce) {
  Admission admission(1);
  Admission::Ticket ticket = admission.TryEnter();
  Admission::Ticket other = std::move(ticket);
  EXPECT_TRUE(other);
  EXPECT_EQ(admission.active(), 1u);
  other = Admission::Ticket();
  EXPECT_EQ(admission.active(), 0u);
}

TEST(AdmissionTest, TheHintFollowsDurationsWithinItsBounds) {
  Admission admission(8);
  const Admission::Ticket a = admission.TryEnter();
  const Admission::Ticket b = admission.TryEnter();
  for (int i = 0; i < 100; ++i) admission.RecordDuration(4000);
  EXPECT_NEAR(admission.RetryDelayMs(), 2000, 1);
  for (int i = 0; i < 100; ++i) admission.RecordDuration(1);
  EXPECT_EQ(admission.RetryDelayMs(), 100);
  for (int i = 0; i < 100; ++i) admission.RecordDuration(1e9);
  EXPECT_EQ(admission.RetryDelayMs(), 10000);
}

TEST(ChooseRouterTest, FewestActiveSequences) {
  const RouterLoad loads[] = {
      {true, 3, false}, {true, 1, false}, {true, 2, false}};
  EXPECT_EQ(ChooseRouter(loads, 0), 1u);
  EXPECT_EQ(ChooseRouter(loads, 2), 1u);
}

TEST(ChooseRouterTest, EqualsTakeTurns) {
  const RouterLoad loads[] = {
      {true, 1, false}, {true, 1, false}, {true, 1, false}};
  EXPECT_EQ(ChooseRouter(loads, 0), 0u);
  EXPECT_EQ(ChooseRouter(loads, 1), 1u);
  EXPECT_EQ(ChooseRouter(loads, 5), 2u);
}

TEST(ChooseRouterTest, SkipsThoseThatCannot) {
  const RouterLoad loads[] = {
      {false, 0, false}, {true, 0, true}, {true, 9, false}};
  EXPECT_EQ(ChooseRouter(loads, 0), 2u);
  const RouterLoad none[] = {{false, 0, false}, {true, 0, true}};
  EXPECT_EQ(ChooseRouter(none, 0), std::nullopt);
  EXPECT_EQ(ChooseRouter({}, 0), std::nullopt);
}

TEST(ChoiceSeedTest, TheFirstChoiceHasTheSeedItself) {
  EXPECT_EQ(ChoiceSeed(42, 0), 42u);
}

TEST(ChoiceSeedTest, IsPartOfTheContract) {
  // Computed by hand from SplitMix64: its first two outputs for seed 0.
  EXPECT_EQ(ChoiceSeed(0, 1), 0xE220A8397B1DCDAFu);
  EXPECT_EQ(ChoiceSeed(0, 2), 0x6E789E6AA1B965F4u);
}

TEST(ChoiceSeedTest, ChoicesDiffer) {
  std::set<uint64_t> seeds;
  for (uint32_t i = 0; i < 16; ++i) seeds.insert(ChoiceSeed(7, i));
  EXPECT_EQ(seeds.size(), 16u);
}

TEST(WorkQueueTest, RunsInOrderAndWhatIsLeftAtTheEnd) {
  std::vector<int> order;
  {
    WorkQueue queue(1);
    absl::Notification go;
    queue.Post([&] { go.WaitForNotification(); });
    for (int i = 0; i < 5; ++i) queue.Post([&order, i] { order.push_back(i); });
    go.Notify();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

}  // namespace
}  // namespace troupe
