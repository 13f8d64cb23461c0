#include "cluster/placement.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "cluster/rollout.h"
#include "cluster/version_key.h"

namespace troupe {
namespace {

void Append(size_t peer, std::vector<size_t>& peers) {
  if (peers.empty() || peers.back() != peer) peers.push_back(peer);
}

// A snapshot that is the same as before stays the same object.
SnapshotPtr Reuse(SnapshotPtr next, const SnapshotPtr& previous) {
  return previous != nullptr && previous->id() == next->id() &&
                 previous->labels() == next->labels()
             ? previous
             : next;
}

}  // namespace

Placement::Placement(uint64_t epoch, const std::vector<bool>& is_moe_layer,
                     size_t num_experts, absl::Span<const PlacementPeer> peers,
                     const Placement* previous)
    : epoch_(epoch),
      num_experts_(num_experts),
      is_moe_layer_(is_moe_layer),
      versions_(is_moe_layer.size() * num_experts) {
  if (previous != nullptr) rollout_ = previous->rollout_;
  for (const PlacementPeer& peer : peers) {
    AddPeer(peer);
    const v1::Rollout& told = peer.description.rollout();
    if (peer.description.has_rollout() && IsNewer(told, rollout_) &&
        ValidateRollout(told).ok()) {
      rollout_ = told;
    }
  }
  const SnapshotPtr before = previous == nullptr ? nullptr : previous->current_;
  current_ = Reuse(Choose(UsableLabels(rollout_.labels()),
                          LabelsText(rollout_.labels()), before),
                   before);
  if (!rollout_.canary_labels().empty()) {
    canary_ = Choose(UsableLabels(rollout_.canary_labels()),
                     LabelsText(rollout_.canary_labels()), current_);
    if (previous != nullptr) canary_ = Reuse(canary_, previous->canary_);
  }
  if (rollout() == nullptr) NoteConflicts(peers);
}

void Placement::AddPeer(const PlacementPeer& peer) {
  const v1::ServingState state = peer.description.state();
  if (state == v1::SERVING_STATE_DRAINING) return;  // it does not return
  const bool ready = state == v1::SERVING_STATE_READY;
  for (const v1::ExpertVersion& owned : peer.description.experts()) {
    const v1::ExpertRange& range = owned.range();
    const uint64_t key = VersionKeyOf(owned.content_hash());
    const size_t layer_end =
        std::min<size_t>(range.layer_end(), is_moe_layer_.size());
    const size_t expert_end =
        std::min<size_t>(range.expert_end(), num_experts_);
    for (size_t layer = range.layer_begin(); layer < layer_end; ++layer) {
      if (!is_moe_layer_[layer]) continue;
      for (size_t e = range.expert_begin(); e < expert_end; ++e) {
        std::vector<Version>& versions = versions_[layer * num_experts_ + e];
        auto found =
            std::find_if(versions.begin(), versions.end(),
                         [key](const Version& v) { return v.key == key; });
        if (found == versions.end()) {
          found = versions.insert(versions.end(), Version());
          found->key = key;
        }
        if (!ready) {
          Append(peer.peer, found->away);
        } else if (owned.leaving()) {
          Append(peer.peer, found->leaves);
          LeavingVersion leaving = {peer.peer, owned, key};
          v1::ExpertRange& one = *leaving.version.mutable_range();
          one.set_layer_begin(static_cast<uint32_t>(layer));
          one.set_layer_end(static_cast<uint32_t>(layer + 1));
          one.set_expert_begin(static_cast<uint32_t>(e));
          one.set_expert_end(static_cast<uint32_t>(e + 1));
          leaving_.push_back(std::move(leaving));
        } else {
          Append(peer.peer, found->stays);
          if (std::find(found->labels.begin(), found->labels.end(),
                        owned.label()) == found->labels.end()) {
            found->labels.push_back(owned.label());
          }
        }
      }
    }
  }
}

std::vector<std::string> Placement::UsableLabels(
    const google::protobuf::RepeatedPtrField<v1::RolloutLabel>& labels) const {
  std::map<std::string, size_t> num_experts;
  for (const std::vector<Version>& versions : versions_) {
    for (const Version& version : versions) {
      for (const std::string& label : version.labels) ++num_experts[label];
    }
  }
  std::vector<std::string> usable;
  for (const v1::RolloutLabel& label : labels) {
    if (num_experts[label.label()] >= label.num_experts()) {
      usable.push_back(label.label());
    }
  }
  return usable;
}

SnapshotPtr Placement::Choose(const std::vector<std::string>& labels,
                              const std::string& text,
                              const SnapshotPtr& previous) const {
  std::vector<uint64_t> keys(versions_.size(), 0);
  for (size_t i = 0; i < versions_.size(); ++i) {
    const std::vector<Version>& versions = versions_[i];
    if (previous != nullptr) keys[i] = previous->keys()[i];
    const auto choose = [&](const auto& is_wanted) {
      const auto found = std::find_if(
          versions.begin(), versions.end(), [&](const Version& version) {
            return !version.stays.empty() && is_wanted(version);
          });
      if (found == versions.end()) return false;
      keys[i] = found->key;
      return true;
    };
    bool chosen = false;
    for (const std::string& label : labels) {
      chosen = choose([&](const Version& version) {
        return std::find(version.labels.begin(), version.labels.end(), label) !=
               version.labels.end();
      });
      if (chosen) break;
    }
    // The labels say nothing of what is here: the version that was current
    // stays; one that a rollout chose also while its peers may return. Else
    // that of the lowest peer.
    if (chosen) continue;
    const bool stays = std::any_of(
        versions.begin(), versions.end(), [&](const Version& version) {
          return version.key == keys[i] &&
                 (!version.stays.empty() ||
                  (rollout() != nullptr && !version.away.empty()));
        });
    if (stays) continue;
    size_t lowest = SIZE_MAX;
    for (const Version& version : versions) {
      if (!version.stays.empty() && version.stays.front() < lowest) {
        lowest = version.stays.front();
        keys[i] = version.key;
      }
    }
  }
  return std::make_shared<ModelSnapshot>(num_experts_, std::move(keys), text);
}

void Placement::NoteConflicts(absl::Span<const PlacementPeer> peers) {
  for (const PlacementPeer& peer : peers) {
    if (peer.description.state() != v1::SERVING_STATE_READY) continue;
    for (const v1::ExpertVersion& owned : peer.description.experts()) {
      const v1::ExpertRange& range = owned.range();
      if (range.layer_begin() >= is_moe_layer_.size() ||
          range.expert_begin() >= num_experts_) {
        continue;
      }
      const uint64_t current =
          current_->key(range.layer_begin(), range.expert_begin());
      if (owned.leaving() || !is_moe_layer_[range.layer_begin()] ||
          VersionKeyOf(owned.content_hash()) == current) {
        continue;
      }
      conflicts_.push_back(absl::StrCat(
          peer.description.name(), ": version ", owned.content_hash(), " of ",
          ToString(range), " differs from that of another replica"));
    }
  }
}

const Placement::Version* Placement::Find(size_t layer, size_t expert,
                                          uint64_t key) const {
  if (key == 0) key = current_->key(layer, expert);
  for (const Version& version : versions_[layer * num_experts_ + expert]) {
    if (version.key == key) return &version;
  }
  return nullptr;
}

absl::Span<const size_t> Placement::Replicas(size_t layer, size_t expert,
                                             uint64_t key) const {
  const Version* const version = Find(layer, expert, key);
  if (version == nullptr) return {};
  return version->stays.empty() ? version->leaves : version->stays;
}

bool Placement::MayReturn(size_t layer, size_t expert, uint64_t key) const {
  const Version* const version = Find(layer, expert, key);
  return version != nullptr && !version->away.empty();
}

bool Placement::StaysElsewhere(size_t layer, size_t expert,
                               uint64_t key) const {
  const Version* const version = Find(layer, expert, key);
  return version != nullptr && !version->stays.empty();
}

bool Placement::HasOtherVersion(size_t layer, size_t expert,
                                uint64_t key) const {
  const std::vector<Version>& versions =
      versions_[layer * num_experts_ + expert];
  return std::any_of(versions.begin(), versions.end(),
                     [key](const Version& version) {
                       return version.key != key && !version.stays.empty();
                     });
}

const SnapshotPtr& Placement::SnapshotFor(absl::string_view request_id) const {
  return canary_ != nullptr && IsCanary(rollout_, request_id) ? canary_
                                                              : current_;
}

SnapshotPtr Placement::Find(absl::string_view name) const {
  uint64_t id = 0;
  std::string labels;
  if (!ParseSnapshotName(name, &id, &labels)) return nullptr;
  for (const SnapshotPtr& known : {current_, canary_}) {
    if (known != nullptr && known->id() == id) return known;
  }
  SnapshotPtr made = Choose(ParseLabels(labels), labels, nullptr);
  return made->id() == id ? made : nullptr;
}

std::optional<std::string> Placement::FirstWithout(bool known_is_enough) const {
  for (size_t layer = 0; layer < is_moe_layer_.size(); ++layer) {
    if (!is_moe_layer_[layer]) continue;
    for (size_t expert = 0; expert < num_experts_; ++expert) {
      const bool has = known_is_enough ? current_->key(layer, expert) != 0
                                       : !Replicas(layer, expert).empty();
      if (!has) {
        return absl::StrCat("expert ", expert, " of layer ", layer,
                            " has no replica");
      }
    }
  }
  return std::nullopt;
}

std::optional<std::string> Placement::Missing() const {
  return FirstWithout(/*known_is_enough=*/false);
}

std::optional<std::string> Placement::Unknown() const {
  return FirstWithout(/*known_is_enough=*/true);
}

}  // namespace troupe
