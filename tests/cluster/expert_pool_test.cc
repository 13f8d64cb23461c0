#include "cluster/expert_pool.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/expert_frames.h"
#include "tests/fakes/fake_expert_process.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kNumLayers = 2;
constexpr size_t kNumExperts = 4;

v1::ExpertDescription Owner(const std::string& name,
                            const std::vector<uint32_t>& experts,
                            const std::string& version = "v1") {
  return FakeDescription(name, experts, kNumLayers, version);
}

class ExpertPoolTest : public testing::Test {
 protected:
  FakeExpertProcess& AddProcess(v1::ExpertDescription description) {
    processes_.push_back(
        std::make_unique<FakeExpertProcess>(std::move(description)));
    return *processes_.back();
  }

  // Connects all; returns when they have described themselves.
  ExpertPool& Start() {
    ExpertPoolOptions options;
    options.is_moe_layer.assign(kNumLayers, true);
    options.num_experts = kNumExperts;
    options.min_backoff = milliseconds(1);
    options.max_backoff = milliseconds(4);
    std::vector<ExpertPool::Member> members;
    for (size_t i = 0; i < processes_.size(); ++i) {
      members.push_back(
          {"address-" + std::to_string(i), processes_[i]->MakePeer()});
    }
    pool_ = std::make_unique<ExpertPool>(options, std::move(members));
    for (const auto& process : processes_) process->WaitForConnects(1);
    return *pool_;
  }

  static v1::ExpertBatch Batch(size_t num_copies) {
    v1::ExpertBatch batch;
    batch.set_num_tokens(1);
    const float hidden = FakeHidden(0, 0);
    batch.set_hidden_states(&hidden, sizeof(hidden));
    batch.add_expert_ids(0);
    batch.add_copies_per_expert(static_cast<uint32_t>(num_copies));
    for (size_t i = 0; i < num_copies; ++i) batch.add_row_of_copy(0);
    return batch;
  }

  static void SendTo(ExpertPool& pool, size_t peer,
                     const v1::ExpertBatch& batch, ProtoOutputCallback done) {
    SendProto(pool, batch, std::move(done), peer);
  }

  std::vector<std::unique_ptr<FakeExpertProcess>> processes_;
  std::unique_ptr<ExpertPool> pool_;  // before the processes
};

TEST_F(ExpertPoolTest, ConnectsAndPlaces) {
  AddProcess(Owner("a", {0, 1}));
  AddProcess(Owner("b", {2, 3}));
  ExpertPool& pool = Start();
  EXPECT_EQ(pool.size(), 2u);
  EXPECT_EQ(pool.address(1), "address-1");
  const auto placement = pool.placement();
  EXPECT_EQ(placement->Missing(), std::nullopt);
  EXPECT_THAT(placement->Replicas(1, 2), ElementsAre(1));
  const std::vector<v1::ExpertPeer> peers = pool.Describe();
  EXPECT_EQ(peers[0].state(), "ready");
  EXPECT_EQ(peers[0].transport(), "fake");
  EXPECT_EQ(peers[0].description().name(), "a");
  EXPECT_EQ(peers[0].free_rows(), 1000u);
}

TEST_F(ExpertPoolTest, EveryDescriptionMakesAnEpoch) {
  FakeExpertProcess& process = AddProcess(Owner("a", {0}));
  ExpertPool& pool = Start();
  const auto before = pool.placement();
  process.Describe(Owner("a", {0, 1, 2, 3}));
  const auto after = pool.placement();
  EXPECT_EQ(after->epoch(), before->epoch() + 1);
  EXPECT_EQ(after->Missing(), std::nullopt);
  // The old value is as it was.
  EXPECT_EQ(before->Missing(), "expert 1 of layer 0 has no replica");
}

TEST_F(ExpertPoolTest, ALostPeerLeavesThePlacementAndComesBack) {
  FakeExpertProcess& process = AddProcess(Owner("a", {0, 1, 2, 3}));
  ExpertPool& pool = Start();
  process.Lose(/*reachable=*/false);
  EXPECT_THAT(pool.placement()->Replicas(0, 0), IsEmpty());
  EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), std::nullopt);
  v1::ExpertPeer peer = pool.Describe()[0];
  EXPECT_THAT(peer.state(), HasSubstr("away: fake: "));
  EXPECT_EQ(peer.failures(), 1u);

  // It is tried again and again; that is no news.
  const uint64_t epoch = pool.placement()->epoch();
  process.WaitForConnects(process.num_connects() + 5);
  EXPECT_EQ(pool.placement()->epoch(), epoch);
  EXPECT_EQ(pool.Describe()[0].failures(), 1u);
  EXPECT_EQ(pool.Describe()[0].state(), "away: fake: nobody listens");

  process.SetReachable(true);
  process.WaitUntilKnown();
  EXPECT_EQ(pool.placement()->Missing(), std::nullopt);
  EXPECT_GT(pool.placement()->epoch(), epoch);
  EXPECT_EQ(pool.Describe()[0].state(), "ready");
}

TEST_F(ExpertPoolTest, ADrainingPeerIsNotChosen) {
  FakeExpertProcess& process = AddProcess(Owner("a", {0, 1, 2, 3}));
  AddProcess(Owner("b", {0}));
  ExpertPool& pool = Start();
  const auto before = pool.placement();
  v1::ExpertDescription draining = Owner("a", {0, 1, 2, 3});
  draining.set_state(v1::SERVING_STATE_DRAINING);
  process.Describe(draining);
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(1));
  EXPECT_EQ(pool.Describe()[0].state(), "draining");
  // A step that still uses the old placement may ask it: it is connected.
  EXPECT_EQ(pool.Choose(*before, 0, 3, {}), 0u);
}

TEST_F(ExpertPoolTest, AnotherVersionIsLeftOutUntilTheFirstIsGone) {
  FakeExpertProcess& old_one = AddProcess(Owner("old", {0, 1, 2, 3}, "v1"));
  AddProcess(Owner("new", {0, 1, 2, 3}, "v2"));
  ExpertPool& pool = Start();
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(0));
  old_one.Lose(/*reachable=*/false);
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(1));
}

TEST_F(ExpertPoolTest, EqualReplicasTakeTurns) {
  for (const char* name : {"a", "b", "c"}) AddProcess(Owner(name, {0}));
  ExpertPool& pool = Start();
  std::map<size_t, int> count;
  for (int i = 0; i < 30; ++i) {
    const size_t peer = *pool.Choose(*pool.placement(), 0, 0, {});
    // Until something is sent the choice stays: experts that share processes
    // go into one message.
    EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), peer);
    ++count[peer];
    absl::Notification answered;
    SendTo(pool, peer, Batch(1), [&answered](absl::StatusOr<v1::ExpertOutput>) {
      answered.Notify();
    });
    answered.WaitForNotification();
  }
  // Of two that are drawn, the one with the fewest messages.
  EXPECT_THAT(count, ElementsAre(std::pair(0, Ge(7)), std::pair(1, Ge(7)),
                                 std::pair(2, Ge(7))));
}

TEST_F(ExpertPoolTest, AvoidedPeersAreNotChosen) {
  for (const char* name : {"a", "b", "c"}) AddProcess(Owner(name, {0}));
  ExpertPool& pool = Start();
  const auto placement = pool.placement();
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(pool.Choose(*placement, 0, 0, {0, 2}), 1u);
    EXPECT_NE(pool.Choose(*placement, 0, 0, {1}), 1u);
  }
  EXPECT_EQ(pool.Choose(*placement, 0, 0, {0, 1, 2}), std::nullopt);
  EXPECT_EQ(pool.Choose(*placement, 0, 3, {}), std::nullopt);
}

TEST_F(ExpertPoolTest, ThePeerWithTheMostRoomIsChosen) {
  FakeExpertProcess& a = AddProcess(Owner("a", {0}));
  FakeExpertProcess& b = AddProcess(Owner("b", {0}));
  ExpertPool& pool = Start();
  a.Script({}, FakeAnswer::kHold);
  // Rows in flight take room.
  SendTo(pool, 0, Batch(10), [](absl::StatusOr<v1::ExpertOutput>) {});
  EXPECT_EQ(pool.Describe()[0].in_flight_rows(), 10u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), 1u);
  }
  a.Release();
  EXPECT_EQ(pool.Describe()[0].in_flight_rows(), 0u);
  // What the last answer said counts.
  b.SetFreeRows(17);
  SendTo(pool, 1, Batch(1), [](absl::StatusOr<v1::ExpertOutput>) {});
  EXPECT_EQ(pool.Describe()[1].free_rows(), 17u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), 0u);
  }
  // A full one is better than none.
  EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {0}), 1u);
}

// The number is the peer's: whatever it is, one peer is chosen.
TEST_F(ExpertPoolTest, AnyRoomIsTaken) {
  for (const uint64_t free_rows :
       {uint64_t{0}, uint64_t{1} << 63, ~uint64_t{0}}) {
    processes_.clear();
    AddProcess(Owner("a", {0})).SetFreeRows(free_rows);
    ExpertPool& pool = Start();
    SendTo(pool, 0, Batch(3), [](absl::StatusOr<v1::ExpertOutput>) {});
    processes_[0]->Script({}, FakeAnswer::kHold);
    SendTo(pool, 0, Batch(3), [](absl::StatusOr<v1::ExpertOutput>) {});
    EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), 0u);
    pool_ = nullptr;
  }
}

TEST_F(ExpertPoolTest, CountsAnswersAndErrors) {
  FakeExpertProcess& process = AddProcess(Owner("a", {0}));
  ExpertPool& pool = Start();
  process.Script({FakeAnswer::kCompute, FakeAnswer::kFail}, FakeAnswer::kHold);
  std::vector<absl::StatusOr<v1::ExpertOutput>> outputs;
  const auto keep = [&](absl::StatusOr<v1::ExpertOutput> output) {
    outputs.push_back(std::move(output));
  };
  for (int i = 0; i < 3; ++i) SendTo(pool, 0, Batch(2), keep);
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_TRUE(outputs[0].ok());
  EXPECT_EQ(outputs[1].status().code(), absl::StatusCode::kUnavailable);
  v1::ExpertPeer peer = pool.Describe()[0];
  EXPECT_EQ(peer.messages(), 1u);
  EXPECT_EQ(peer.in_flight_rows(), 2u);
  EXPECT_GE(peer.round_trip_ms_mean(), 0.0);

  process.Lose(/*reachable=*/true);
  ASSERT_EQ(outputs.size(), 3u);
  EXPECT_THAT(std::string(outputs[2].status().message()),
              HasSubstr("the connection broke"));
  EXPECT_EQ(pool.Describe()[0].in_flight_rows(), 0u);
}

TEST_F(ExpertPoolTest, DestroyingItEndsWhatIsInFlight) {
  FakeExpertProcess& a = AddProcess(Owner("a", {0}));
  AddProcess(Owner("b", {1})).SetReachable(false);
  ExpertPool& pool = Start();
  a.Script({}, FakeAnswer::kHold);
  int answers = 0;
  SendTo(pool, 0, Batch(1), [&](absl::StatusOr<v1::ExpertOutput> output) {
    EXPECT_FALSE(output.ok());
    ++answers;
  });
  pool_ = nullptr;
  EXPECT_EQ(answers, 1);
}

}  // namespace
}  // namespace troupe
