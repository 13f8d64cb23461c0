#include "cluster/expert_pool.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
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
using ::testing::Pair;

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
    options.hidden_size = 1;
    options.health.max_overdue = milliseconds(10);
    options.health.min_backoff = milliseconds(5);
    options.health.max_backoff = milliseconds(20);
    options.health.probe_limit = milliseconds(200);
    options.retire_limit = milliseconds(60000);
    options.make_peer = [this](const std::string& address) {
      return std::move(new_peers_.at(address));
    };
    std::vector<ExpertPool::Member> members;
    for (size_t i = 0; i < processes_.size(); ++i) {
      members.push_back(
          {"address-" + std::to_string(i), processes_[i]->MakePeer()});
    }
    pool_ = std::make_unique<ExpertPool>(options, std::move(members));
    for (const auto& process : processes_) process->WaitForConnects(1);
    return *pool_;
  }

  // Another process, which is there once its address is listed.
  FakeExpertProcess& AddLater(const std::string& address,
                              v1::ExpertDescription description) {
    FakeExpertProcess& process = AddProcess(std::move(description));
    new_peers_[address] = process.MakePeer();
    return process;
  }

  // Polls; fails after half a minute.
  template <typename Predicate>
  static bool Eventually(const Predicate& predicate) {
    for (int i = 0; i < 30000; ++i) {
      if (predicate()) return true;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return false;
  }
  std::string State(size_t i) const { return pool_->Describe()[i].state(); }
  v1::FailoverStats Failover() const {
    v1::FailoverStats stats;
    pool_->AddFailoverStats(stats);
    return stats;
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
  std::map<std::string, std::unique_ptr<ExpertPeer>> new_peers_;
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
  EXPECT_THAT(count,
              ElementsAre(Pair(0, Ge(7)), Pair(1, Ge(7)), Pair(2, Ge(7))));
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

TEST_F(ExpertPoolTest, ASilentPeerIsEjectedProbedAndTakenBack) {
  FakeExpertProcess& a = AddProcess(Owner("a", {0, 1, 2, 3}));
  AddProcess(Owner("b", {0, 1, 2, 3}));
  ExpertPool& pool = Start();
  a.Script({}, FakeAnswer::kHold);
  SendTo(pool, 0, Batch(1), [](absl::StatusOr<v1::ExpertOutput>) {});
  pool.OnLate(0, 1);
  // At once: it is asked for nothing more while there is another.
  EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), 1u);
  ASSERT_TRUE(
      Eventually([&] { return State(0).find("ejected: silent") == 0; }));
  EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {}), 1u);
  EXPECT_EQ(pool.ChooseForHedge(*pool.placement(), 0, 0, {1}), std::nullopt);
  // Better than nobody.
  EXPECT_EQ(pool.Choose(*pool.placement(), 0, 0, {1}), 0u);
  EXPECT_EQ(pool.placement()->Missing(), std::nullopt);
  // It is probed, and stays away while it does not answer.
  a.WaitForBatches(3);
  EXPECT_THAT(State(0), HasSubstr("ejected"));
  a.Script({}, FakeAnswer::kCompute);
  a.Release();
  ASSERT_TRUE(Eventually([&] { return State(0) == "ready"; }));
  EXPECT_EQ(Failover().ejections(), 1u);
  EXPECT_EQ(Failover().readmissions(), 1u);
  const v1::PeerHealth health = pool.Describe()[0].health();
  EXPECT_GE(health.probes(), 2u);
  EXPECT_THAT(health.last_ejection(), HasSubstr("silent"));
  EXPECT_EQ(health.late(), 1u);
}

TEST_F(ExpertPoolTest, TroublesInARowEject) {
  AddProcess(Owner("a", {0, 1, 2, 3}));
  FakeExpertProcess& b = AddProcess(Owner("b", {0, 1, 2, 3}));
  ExpertPool& pool = Start();
  b.Script({}, FakeAnswer::kRefuse);  // probes, too
  for (int i = 0; i < 5; ++i) {
    pool.OnTrouble(1, Trouble::kWrongAnswer, "answered 7 bytes");
  }
  ASSERT_TRUE(Eventually(
      [&] { return pool.Describe()[1].health().failed_probes() >= 2; }));
  EXPECT_THAT(State(1), HasSubstr("answered 7 bytes"));
  b.Script({}, FakeAnswer::kCompute);
  EXPECT_TRUE(Eventually([&] { return State(1) == "ready"; }));
}

TEST_F(ExpertPoolTest, TheLastReplicaOfAnExpertIsNotEjected) {
  AddProcess(Owner("a", {0, 1, 2, 3}));
  AddProcess(Owner("b", {0, 1, 2}));
  ExpertPool& pool = Start();
  for (int i = 0; i < 5; ++i) pool.OnTrouble(0, Trouble::kTimeout, "silent");
  ASSERT_TRUE(Eventually([&] { return Failover().ejections_forgone() == 1; }));
  EXPECT_EQ(State(0), "ready");
  // The other one may be.
  for (int i = 0; i < 5; ++i) pool.OnTrouble(1, Trouble::kTimeout, "silent");
  EXPECT_TRUE(Eventually([&] { return Failover().ejections() == 1; }));
}

TEST_F(ExpertPoolTest, TheHedgeDelayIsLearnt) {
  AddProcess(Owner("a", {0}));
  ExpertPool& pool = Start();
  EXPECT_EQ(pool.HedgeDelay(0, 1), HedgeDelayOptions().unknown);
  for (int i = 0; i < 100; ++i) {
    SendTo(pool, 0, Batch(1), [](absl::StatusOr<v1::ExpertOutput>) {});
  }
  EXPECT_LT(pool.HedgeDelay(0, 1), HedgeDelayOptions().unknown);
}

TEST_F(ExpertPoolTest, PeersComeAndGo) {
  FakeExpertProcess& a = AddProcess(Owner("a", {0, 1, 2, 3}));
  ExpertPool& pool = Start();
  FakeExpertProcess& b = AddLater("b", Owner("b", {0, 1, 2, 3}));
  pool.SetAddresses({"address-0", "b"});
  b.WaitForConnects(1);
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(0, 1));

  // One that goes answers what it has.
  a.Script({}, FakeAnswer::kHold);
  int answers = 0;
  SendTo(pool, 0, Batch(1), [&](absl::StatusOr<v1::ExpertOutput> output) {
    EXPECT_TRUE(output.ok());
    ++answers;
  });
  const auto old_placement = pool.placement();
  pool.SetAddresses({"b"});
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(1));
  EXPECT_EQ(pool.Choose(*old_placement, 0, 0, {}), 1u);
  EXPECT_EQ(State(0), "leaving");
  a.Release();
  EXPECT_EQ(answers, 1);
  ASSERT_TRUE(Eventually([&] { return pool.Describe().size() == 1; }));
  EXPECT_EQ(pool.Describe()[0].address(), "b");

  // Indices that anybody may have are not another's.
  bool failed = false;
  SendTo(pool, 0, Batch(1), [&](absl::StatusOr<v1::ExpertOutput> output) {
    failed = !output.ok();
  });
  EXPECT_TRUE(failed);
  FakeExpertProcess& c = AddLater("c", Owner("c", {0}));
  pool.SetAddresses({"b", "c"});
  c.WaitForConnects(1);
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(1, 2));
  EXPECT_EQ(pool.size(), 3u);
}

TEST_F(ExpertPoolTest, OneThatIsListedAgainInTimeIsKept) {
  FakeExpertProcess& a = AddProcess(Owner("a", {0, 1, 2, 3}));
  ExpertPool& pool = Start();
  a.Script({}, FakeAnswer::kHold);
  SendTo(pool, 0, Batch(1), [](absl::StatusOr<v1::ExpertOutput>) {});
  pool.SetAddresses({});
  EXPECT_THAT(pool.placement()->Replicas(0, 0), IsEmpty());
  pool.SetAddresses({"address-0"});
  EXPECT_THAT(pool.placement()->Replicas(0, 0), ElementsAre(0));
  EXPECT_EQ(a.num_connects(), 1u);
  a.Release();
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
