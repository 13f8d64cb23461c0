#include "cluster/placement.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/rollout.h"
#include "cluster/version_key.h"
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

// One expert per content hash.
uint64_t KeyOf(const std::string& version, uint32_t expert) {
  return VersionKeyOf(absl::StrCat(version, "-", expert));
}

PlacementPeer Labelled(size_t peer, const std::vector<uint32_t>& experts,
                       const std::string& label) {
  PlacementPeer labelled = Peer(peer, experts, label);
  for (v1::ExpertVersion& owned : *labelled.description.mutable_experts()) {
    owned.set_label(label);
  }
  return labelled;
}

v1::Rollout MakeRollout(uint64_t revision,
                        const std::vector<std::string>& labels,
                        const std::vector<std::string>& canary = {},
                        uint32_t share = 0) {
  v1::Rollout rollout;
  rollout.set_revision(revision);
  for (const std::string& label : labels) {
    rollout.add_labels()->set_label(label);
  }
  for (const std::string& label : canary) {
    rollout.add_canary_labels()->set_label(label);
  }
  rollout.set_canary_share(share);
  return rollout;
}

TEST(PlacementTest, AnExpertKeepsItsVersionWhileItHasAReplica) {
  const Placement first(0, kAllMoe, kNumExperts, {Peer(1, {0, 1}, "a")});
  EXPECT_EQ(first.current()->key(1, 0), KeyOf("a", 0));
  EXPECT_EQ(first.current()->key(1, 2), 0u);  // never seen
  // A lower peer with another version comes.
  const Placement both(1, kAllMoe, kNumExperts,
                       {Peer(0, {0, 1}, "b"), Peer(1, {0, 1}, "a")}, &first);
  EXPECT_EQ(both.current(), first.current());  // the same object
  EXPECT_THAT(both.Replicas(0, 0), ElementsAre(1));
  EXPECT_THAT(both.Replicas(0, 0, KeyOf("b", 0)), ElementsAre(0));
  // The first leaves: what is there is used.
  PlacementPeer away = Peer(1, {0, 1}, "a");
  away.description.set_state(v1::SERVING_STATE_UNSPECIFIED);
  const Placement other(2, kAllMoe, kNumExperts, {Peer(0, {0, 1}, "b"), away},
                        &both);
  EXPECT_EQ(other.current()->key(0, 1), KeyOf("b", 1));
  EXPECT_NE(other.current()->id(), first.current()->id());
  EXPECT_TRUE(other.MayReturn(0, 1, KeyOf("a", 1)));
  EXPECT_FALSE(other.MayReturn(0, 1, KeyOf("b", 1)));
  // Nobody is left: it keeps the last one.
  const Placement none(3, kAllMoe, kNumExperts, {away}, &other);
  EXPECT_EQ(none.current(), other.current());
  EXPECT_EQ(*none.Missing(), "expert 0 of layer 0 has no replica");
  EXPECT_EQ(*none.Unknown(), "expert 2 of layer 0 has no replica");
}

TEST(PlacementTest, ARolloutChoosesTheFirstLabelThatIsThere) {
  PlacementPeer v1 = Labelled(0, {0, 1, 2, 3}, "v1");
  *v1.description.mutable_rollout() = MakeRollout(3, {"v2", "v1"});
  const Placement placement(0, kAllMoe, kNumExperts,
                            {v1, Labelled(1, {2, 3}, "v2")});
  EXPECT_EQ(placement.current()->key(0, 1), KeyOf("v1", 1));
  EXPECT_EQ(placement.current()->key(1, 2), KeyOf("v2", 2));
  EXPECT_EQ(placement.current()->labels(), "v2,v1");
  EXPECT_EQ(placement.canary(), nullptr);
  EXPECT_THAT(placement.conflicts(), IsEmpty());
}

TEST(PlacementTest, TheHighestRevisionIsInEffectAndIsRemembered) {
  PlacementPeer a = Labelled(0, {0, 1, 2, 3}, "v1");
  PlacementPeer b = Labelled(1, {0, 1, 2, 3}, "v2");
  *a.description.mutable_rollout() = MakeRollout(3, {"v1"});
  *b.description.mutable_rollout() = MakeRollout(4, {"v2", "v1"});
  const Placement first(0, kAllMoe, kNumExperts, {a, b});
  EXPECT_EQ(first.rollout()->revision(), 4u);
  EXPECT_EQ(first.current()->key(0, 0), KeyOf("v2", 0));
  // Without b there is v1 alone; that b comes back changes it back.
  const Placement alone(1, kAllMoe, kNumExperts, {a}, &first);
  EXPECT_EQ(alone.rollout()->revision(), 4u);
  EXPECT_EQ(alone.current()->key(0, 0), KeyOf("v1", 0));
  // One that is not valid is not taken.
  *b.description.mutable_rollout() = MakeRollout(9, {});
  const Placement invalid(2, kAllMoe, kNumExperts, {a, b}, &alone);
  EXPECT_EQ(invalid.rollout()->revision(), 4u);
}

TEST(PlacementTest, ALabelIsUsedAsAWholeOrNotAtAll) {
  PlacementPeer v1 = Labelled(0, {0, 1, 2, 3}, "v1");
  v1::Rollout& rollout = *v1.description.mutable_rollout();
  rollout = MakeRollout(1, {"v2", "v1"});
  rollout.mutable_labels(0)->set_num_experts(8);
  const Placement half(0, kAllMoe, kNumExperts,
                       {v1, Labelled(1, {0, 1}, "v2")});
  EXPECT_EQ(half.current()->key(0, 0), KeyOf("v1", 0));
  const Placement whole(
      1, kAllMoe, kNumExperts,
      {v1, Labelled(1, {0, 1}, "v2"), Labelled(2, {2, 3}, "v2")}, &half);
  for (uint32_t expert = 0; expert < kNumExperts; ++expert) {
    EXPECT_EQ(whole.current()->key(1, expert), KeyOf("v2", expert));
  }
}

TEST(PlacementTest, ACanaryHasItsOwnSnapshot) {
  PlacementPeer v1 = Labelled(0, {0, 1, 2, 3}, "v1");
  *v1.description.mutable_rollout() =
      MakeRollout(1, {"v1"}, {"v2", "v1"}, kWholeShare / 2);
  const Placement placement(0, kAllMoe, kNumExperts,
                            {v1, Labelled(1, {1}, "v2")});
  EXPECT_EQ(placement.current()->key(0, 1), KeyOf("v1", 1));
  EXPECT_EQ(placement.canary()->key(0, 1), KeyOf("v2", 1));
  EXPECT_EQ(placement.canary()->key(0, 0), KeyOf("v1", 0));
  int canaries = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = absl::StrCat("request-", i);
    const SnapshotPtr& chosen = placement.SnapshotFor(id);
    EXPECT_EQ(chosen, placement.SnapshotFor(id));
    if (chosen == placement.canary()) ++canaries;
  }
  EXPECT_GT(canaries, 400);
  EXPECT_LT(canaries, 600);
}

TEST(PlacementTest, LeavingReplicasAreTheLastChoice) {
  PlacementPeer leaving = Labelled(0, {0, 1}, "v1");
  for (v1::ExpertVersion& owned : *leaving.description.mutable_experts()) {
    owned.set_leaving(true);
  }
  const Placement alone(0, kAllMoe, kNumExperts,
                        {leaving, Labelled(1, {0}, "v2")});
  const uint64_t v1 = KeyOf("v1", 0);
  // Those that are pinned to it go on; new ones use the other.
  EXPECT_THAT(alone.Replicas(0, 0, v1), ElementsAre(0));
  EXPECT_FALSE(alone.StaysElsewhere(0, 0, v1));
  EXPECT_EQ(alone.current()->key(0, 0), KeyOf("v2", 0));
  EXPECT_THAT(alone.leaving(), SizeIs(4));
  const Placement replica(1, kAllMoe, kNumExperts,
                          {leaving, Labelled(2, {0, 1}, "v1")}, &alone);
  EXPECT_THAT(replica.Replicas(0, 0, v1), ElementsAre(2));
  EXPECT_TRUE(replica.StaysElsewhere(0, 0, v1));
}

TEST(PlacementTest, FindsASnapshotByItsName) {
  const PlacementPeer v1 = Labelled(0, {0, 1, 2, 3}, "v1");
  const PlacementPeer v2 = Labelled(1, {1, 2}, "v2");
  PlacementPeer told = v1;
  *told.description.mutable_rollout() = MakeRollout(1, {"v2", "v1"});
  const std::string name =
      Placement(0, kAllMoe, kNumExperts, {told, v2}).current()->Name();
  // Another router, or the same after a roll-back.
  *told.description.mutable_rollout() = MakeRollout(2, {"v1"});
  const Placement other(0, kAllMoe, kNumExperts, {told, v2});
  ASSERT_NE(other.Find(name), nullptr);
  EXPECT_EQ(other.Find(name)->Name(), name);
  EXPECT_EQ(other.Find(other.current()->Name()), other.current());
  // Without v2 it cannot be made any more.
  EXPECT_EQ(Placement(0, kAllMoe, kNumExperts, {told}).Find(name), nullptr);
  for (const char* wrong : {"", "v2,v1", "0123456789abcdef", ":", "x:v1",
                            "0123456789abcdeg:v1", "0123456789abcdef:v2,v1"}) {
    EXPECT_EQ(other.Find(wrong), nullptr) << wrong;
  }
}

}  // namespace
}  // namespace troupe
