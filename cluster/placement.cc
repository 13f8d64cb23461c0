#include "cluster/placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"

namespace troupe {

Placement::Placement(uint64_t epoch, const std::vector<bool>& is_moe_layer,
                     size_t num_experts, absl::Span<const PlacementPeer> peers,
                     const Placement* previous)
    : epoch_(epoch),
      num_experts_(num_experts),
      is_moe_layer_(is_moe_layer),
      replicas_(is_moe_layer.size() * num_experts),
      versions_(replicas_.size()) {
  if (previous != nullptr) {
    versions_ = previous->versions_;
    num_version_changes_ = previous->num_version_changes_;
  }
  std::vector<const std::string*> version(replicas_.size(), nullptr);
  for (const PlacementPeer& peer : peers) {
    if (peer.description.state() != v1::SERVING_STATE_READY) continue;
    for (const v1::ExpertVersion& owned : peer.description.experts()) {
      const v1::ExpertRange& range = owned.range();
      bool conflict = false;
      const size_t layer_end =
          std::min<size_t>(range.layer_end(), is_moe_layer.size());
      const size_t expert_end =
          std::min<size_t>(range.expert_end(), num_experts);
      for (size_t layer = range.layer_begin(); layer < layer_end; ++layer) {
        if (!is_moe_layer[layer]) continue;
        for (size_t e = range.expert_begin(); e < expert_end; ++e) {
          const size_t i = layer * num_experts + e;
          if (version[i] == nullptr) version[i] = &owned.content_hash();
          if (*version[i] != owned.content_hash()) {
            conflict = true;
            continue;
          }
          std::vector<size_t>& replicas = replicas_[i];
          if (replicas.empty() || replicas.back() != peer.peer) {
            replicas.push_back(peer.peer);
          }
        }
      }
      if (conflict) {
        conflicts_.push_back(absl::StrCat(
            peer.description.name(), ": version ", owned.content_hash(), " of ",
            ToString(range), " differs from that of another replica"));
      }
    }
  }
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (version[i] == nullptr || *version[i] == versions_[i]) continue;
    if (!versions_[i].empty()) ++num_version_changes_;
    versions_[i] = *version[i];
  }
}

std::optional<std::string> Placement::Missing() const {
  for (size_t layer = 0; layer < is_moe_layer_.size(); ++layer) {
    if (!is_moe_layer_[layer]) continue;
    for (size_t expert = 0; expert < num_experts_; ++expert) {
      if (Replicas(layer, expert).empty()) {
        return absl::StrCat("expert ", expert, " of layer ", layer,
                            " has no replica");
      }
    }
  }
  return std::nullopt;
}

}  // namespace troupe
