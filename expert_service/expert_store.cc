#include "expert_service/expert_store.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/version_key.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

bool Is(const LoadedExpert& expert, const ExpertStore::Which& which) {
  return expert.layer() == which.layer && expert.expert() == which.expert &&
         expert.version.label() == which.label;
}

std::string Name(const LoadedExpert& expert) {
  return absl::StrCat("version \"", expert.version.label(), "\" of expert ",
                      expert.expert(), " of layer ", expert.layer());
}

}  // namespace

ExpertStore::ExpertStore(const ModelConfig& config)
    : num_layers_(config.num_layers),
      num_experts_(config.num_experts),
      hidden_size_(config.hidden_size) {
  absl::MutexLock lock(&mu_);
  Replace({});
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Load(
    const Checkpoint& checkpoint, const std::vector<HalfOpenRange>& layers,
    const std::vector<HalfOpenRange>& experts, ThreadPool& pool,
    const Progress& progress, const std::string& label) {
  const ModelConfig& config = checkpoint.config();
  std::vector<ExpertOfLayer> owned;
  for (const HalfOpenRange& layer_range : layers) {
    for (size_t layer = layer_range.begin; layer < layer_range.end; ++layer) {
      if (!config.is_moe_layer[layer]) continue;
      for (const HalfOpenRange& range : experts) {
        for (size_t e = range.begin; e < range.end; ++e) {
          owned.push_back({layer, e});
        }
      }
    }
  }
  if (owned.empty()) {
    return absl::InvalidArgumentError(
        "no expert to own: the given layers have none");
  }
  ABSL_ASSIGN_OR_RETURN(
      const LoadedExperts loaded,
      LoadExperts(checkpoint, owned, label, "checkpoint", pool, progress));
  auto store = std::unique_ptr<ExpertStore>(new ExpertStore(config));
  ABSL_RETURN_IF_ERROR(store->Add(loaded));
  return store;
}

std::shared_ptr<const ExpertSet> ExpertStore::experts() const {
  absl::MutexLock lock(&mu_);
  return set_;
}

void ExpertStore::Replace(const LoadedExperts& experts) {
  set_ = std::make_shared<ExpertSet>(num_layers_, num_experts_, experts);
}

absl::Status ExpertStore::Add(const LoadedExperts& experts) {
  absl::MutexLock lock(&mu_);
  LoadedExperts all = set_->All();
  for (const auto& expert : experts) {
    bool is_here = false;
    std::shared_ptr<const GatedMlpWeights> weights = expert->weights;
    for (const auto& other :
         set_->Versions(expert->layer(), expert->expert())) {
      const bool same_content =
          other->version.content_hash() == expert->version.content_hash();
      const bool same_label = other->version.label() == expert->version.label();
      if (same_content) weights = other->weights;
      is_here = is_here || (same_content && same_label);
      if (same_label && !same_content) {
        return absl::FailedPreconditionError(absl::StrCat(
            Name(*expert), " is here with other weights: ",
            other->version.content_hash(), " from ", other->source));
      }
      if (!same_content && other->key == expert->key) {
        return absl::FailedPreconditionError(
            absl::StrCat(Name(*expert), " has the key of version \"",
                         other->version.label(), "\""));
      }
    }
    if (is_here) continue;
    if (set_->Versions(expert->layer(), expert->expert()).size() >=
        kMaxVersionsPerExpert) {
      return absl::FailedPreconditionError(
          absl::StrCat("there are ", kMaxVersionsPerExpert,
                       " versions of expert ", expert->expert(), " of layer ",
                       expert->layer(), " already: unload one"));
    }
    auto added = std::make_shared<LoadedExpert>(*expert);
    added->weights = std::move(weights);
    all.push_back(std::move(added));
  }
  Replace(all);
  return absl::OkStatus();
}

absl::Status ExpertStore::SetLeaving(absl::Span<const Which> which,
                                     bool leaving) {
  absl::MutexLock lock(&mu_);
  LoadedExperts all = set_->All();
  for (const Which& one : which) {
    const auto found =
        std::find_if(all.begin(), all.end(),
                     [&](const auto& expert) { return Is(*expert, one); });
    if (found == all.end()) {
      return absl::NotFoundError(
          absl::StrCat("there is no version \"", one.label, "\" of expert ",
                       one.expert, " of layer ", one.layer, " here"));
    }
    auto changed = std::make_shared<LoadedExpert>(**found);
    changed->version.set_leaving(leaving);
    *found = std::move(changed);
  }
  Replace(all);
  return absl::OkStatus();
}

void ExpertStore::SetAllLeaving() {
  absl::MutexLock lock(&mu_);
  LoadedExperts all;
  for (const auto& expert : set_->All()) {
    auto changed = std::make_shared<LoadedExpert>(*expert);
    changed->version.set_leaving(true);
    all.push_back(std::move(changed));
  }
  Replace(all);
}

LoadedExperts ExpertStore::Remove(absl::Span<const Which> which) {
  absl::MutexLock lock(&mu_);
  LoadedExperts stay;
  LoadedExperts removed;
  for (auto& expert : set_->All()) {
    const bool leaves =
        std::any_of(which.begin(), which.end(),
                    [&](const Which& one) { return Is(*expert, one); });
    (leaves ? removed : stay).push_back(std::move(expert));
  }
  Replace(stay);
  return removed;
}

uint64_t ExpertStore::num_bytes() const {
  uint64_t num_bytes = 0;
  std::unordered_set<const GatedMlpWeights*> counted;
  for (const auto& expert : experts()->All()) {
    if (counted.insert(expert->weights.get()).second) {
      num_bytes += expert->num_bytes();
    }
  }
  return num_bytes;
}

std::vector<v1::ExpertVersion> ExpertStore::versions() const {
  std::vector<v1::ExpertVersion> versions;
  for (const auto& expert : experts()->All()) {
    versions.push_back(expert->version);
  }
  return versions;
}

}  // namespace troupe
