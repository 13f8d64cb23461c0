#include "cluster/placement.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_expert_process.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr size_t kNumExperts = 4;
const std::vector<bool> kAllMoe(2, true);

PlacementPeer Peer(size_t peer, const std::vector<uint32_t>& experts,
                   const std::string& version = "v1") {
  return {peer, FakeDescription(absl::StrCat("e", peer), experts, 2, version)};
}

TEST(PlacementTest, ReplicasAreThePeersThatOwnTheExpert) {
  const Placement placement(
      7, kAllMoe, kNumExperts,
      {Peer(0, {0, 1}), Peer(1, {2, 3}), Peer(5, {1, 2})});
  EXPECT_EQ(placement.epoch(), 7u);
  for (const size_t layer : {0, 1}) {
    EXPECT_THAT(placement.Replicas(layer, 0), ElementsAre(0));
    EXPECT_THAT(placement.Replicas(layer, 1), ElementsAre(0, 5));
    EXPECT_THAT(placement.Replicas(layer, 2), ElementsAre(1, 5));
    EXPECT_THAT(placement.Replicas(layer, 3), ElementsAre(1));
  }
  EXPECT_EQ(placement.Missing(), std::nullopt);
  EXPECT_THAT(placement.conflicts(), IsEmpty());
}

TEST(PlacementTest, NamesTheFirstExpertWithoutReplica) {
  EXPECT_EQ(*Placement(0, kAllMoe, kNumExperts, {}).Missing(),
            "expert 0 of layer 0 has no replica");
  EXPECT_EQ(*Placement(0, kAllMoe, kNumExperts, {Peer(0, {0, 1, 3})}).Missing(),
            "expert 2 of layer 0 has no replica");
  PlacementPeer first_layer = Peer(0, {0, 1, 2, 3});
  first_layer.description.mutable_experts(3)->mutable_range()->set_layer_end(1);
  EXPECT_EQ(*Placement(0, kAllMoe, kNumExperts, {first_layer}).Missing(),
            "expert 3 of layer 1 has no replica");
}

TEST(PlacementTest, LayersWithoutExpertsMissNothing) {
  PlacementPeer peer = Peer(0, {0, 1, 2, 3});
  for (v1::ExpertVersion& owned : *peer.description.mutable_experts()) {
    owned.mutable_range()->set_layer_begin(1);
  }
  const Placement placement(0, {false, true}, kNumExperts, {peer});
  EXPECT_EQ(placement.Missing(), std::nullopt);
  EXPECT_THAT(placement.Replicas(0, 0), IsEmpty());
}

TEST(PlacementTest, OnlyReadyPeersTakePart) {
  for (const v1::ServingState state :
       {v1::SERVING_STATE_UNSPECIFIED, v1::SERVING_STATE_LOADING,
        v1::SERVING_STATE_DRAINING}) {
    PlacementPeer peer = Peer(0, {0, 1, 2, 3});
    peer.description.set_state(state);
    const Placement placement(0, kAllMoe, kNumExperts, {peer});
    EXPECT_THAT(placement.Replicas(0, 0), IsEmpty());
  }
}

TEST(PlacementTest, TheVersionOfTheLowestPeerWins) {
  const Placement placement(
      0, kAllMoe, kNumExperts,
      {Peer(0, {0, 1}, "new"), Peer(1, {1, 2, 3}, "old"), Peer(2, {1}, "new")});
  EXPECT_THAT(placement.Replicas(0, 1), ElementsAre(0, 2));
  // What does not conflict stays.
  EXPECT_THAT(placement.Replicas(0, 2), ElementsAre(1));
  ASSERT_THAT(placement.conflicts(), SizeIs(1));
  EXPECT_THAT(placement.conflicts()[0], HasSubstr("e1: version old-1"));
  EXPECT_THAT(placement.conflicts()[0], HasSubstr("experts 1-1"));
}

// The version of a peer that does not serve decides nothing.
TEST(PlacementTest, ADrainingPeerHasNoConflicts) {
  PlacementPeer draining = Peer(0, {0}, "old");
  draining.description.set_state(v1::SERVING_STATE_DRAINING);
  const Placement placement(0, kAllMoe, kNumExperts,
                            {draining, Peer(1, {0}, "new")});
  EXPECT_THAT(placement.Replicas(0, 0), ElementsAre(1));
  EXPECT_THAT(placement.conflicts(), IsEmpty());
}

TEST(PlacementTest, RangesBeyondTheModelAreCut) {
  PlacementPeer peer = Peer(0, {});
  v1::ExpertRange& range = *peer.description.add_experts()->mutable_range();
  range.set_layer_begin(1);
  range.set_layer_end(0xffffffff);
  range.set_expert_begin(2);
  range.set_expert_end(0xffffffff);
  v1::ExpertRange& backwards = *peer.description.add_experts()->mutable_range();
  backwards.set_layer_end(2);
  backwards.set_expert_begin(1);
  backwards.set_expert_end(0);
  v1::ExpertRange& outside = *peer.description.add_experts()->mutable_range();
  outside.set_layer_begin(0xfffffff0);
  outside.set_layer_end(0xffffffff);
  outside.set_expert_end(1);
  const Placement placement(0, kAllMoe, kNumExperts, {peer});
  EXPECT_THAT(placement.Replicas(0, 2), IsEmpty());
  EXPECT_THAT(placement.Replicas(1, 1), IsEmpty());
  EXPECT_THAT(placement.Replicas(1, 2), ElementsAre(0));
  EXPECT_THAT(placement.Replicas(1, 3), ElementsAre(0));
}

TEST(PlacementTest, AnExpertNamedTwiceIsOneReplica) {
  const Placement placement(0, kAllMoe, kNumExperts, {Peer(3, {1, 1, 1})});
  EXPECT_THAT(placement.Replicas(0, 1), ElementsAre(3));
}

TEST(PlacementTest, CountsChangesOfVersionsAcrossAbsences) {
  const Placement first(0, kAllMoe, kNumExperts,
                        {Peer(0, {0, 1}, "a"), Peer(1, {2, 3}, "a")});
  EXPECT_EQ(first.num_version_changes(), 0u);
  const Placement away(1, kAllMoe, kNumExperts, {Peer(0, {0, 1}, "a")}, &first);
  EXPECT_EQ(away.num_version_changes(), 0u);
  const Placement same(2, kAllMoe, kNumExperts,
                       {Peer(0, {0, 1}, "a"), Peer(1, {2, 3}, "a")}, &away);
  EXPECT_EQ(same.num_version_changes(), 0u);
  const Placement other(2, kAllMoe, kNumExperts,
                        {Peer(0, {0, 1}, "a"), Peer(1, {2, 3}, "b")}, &away);
  EXPECT_EQ(other.num_version_changes(), 4u);  // two experts of two layers
  const Placement back(3, kAllMoe, kNumExperts,
                       {Peer(0, {0, 1}, "a"), Peer(1, {2, 3}, "a")}, &other);
  EXPECT_EQ(back.num_version_changes(), 8u);
}

}  // namespace
}  // namespace troupe
