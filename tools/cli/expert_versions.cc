#include "tools/cli/expert_versions.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "cluster/rollout.h"

namespace troupe {
namespace {

ExpertName NameOf(const v1::ExpertVersion& version) {
  return {version.range().layer_begin(), version.range().expert_begin()};
}

// Calls visit(process, expert, loaded) for all that stays.
template <typename Visit>
void ForEach(const std::vector<ExpertProcess>& processes, const Visit& visit) {
  for (size_t i = 0; i < processes.size(); ++i) {
    for (const v1::LoadedExpert& loaded : processes[i].list.experts()) {
      if (!loaded.version().leaving()) {
        visit(i, NameOf(loaded.version()), loaded);
      }
    }
  }
}

std::vector<std::string> LabelsOf(const LabelList& labels) {
  std::vector<std::string> names;
  for (const v1::RolloutLabel& label : labels) names.push_back(label.label());
  return names;
}

}  // namespace

v1::Rollout NewestRollout(const std::vector<ExpertProcess>& processes) {
  v1::Rollout newest;
  for (const ExpertProcess& process : processes) {
    const v1::Rollout& told = process.list.description().rollout();
    if (IsNewer(told, newest)) newest = told;
  }
  return newest;
}

std::map<std::string, std::set<ExpertName>> ExpertsByLabel(
    const std::vector<ExpertProcess>& processes) {
  std::map<std::string, std::set<ExpertName>> experts;
  ForEach(processes, [&](size_t, ExpertName name, const auto& loaded) {
    experts[loaded.version().label()].insert(name);
  });
  return experts;
}

std::map<ExpertName, std::string> ChosenLabels(
    const std::vector<ExpertProcess>& processes,
    const std::vector<std::string>& labels) {
  const auto by_label = ExpertsByLabel(processes);
  std::map<ExpertName, std::string> chosen;
  for (const std::string& label : labels) {
    const auto experts = by_label.find(label);
    if (experts == by_label.end()) continue;
    for (const ExpertName& name : experts->second) {
      chosen.try_emplace(name, label);
    }
  }
  return chosen;
}

absl::StatusOr<std::vector<std::string>> CurrentLabels(
    const std::vector<ExpertProcess>& processes) {
  const v1::Rollout rollout = NewestRollout(processes);
  if (rollout.revision() > 0) return LabelsOf(rollout.labels());
  std::vector<std::string> labels;
  std::map<ExpertName, std::string> owner;
  for (const auto& [label, experts] : ExpertsByLabel(processes)) {
    labels.push_back(label);
    for (const ExpertName& name : experts) {
      const auto [other, is_new] = owner.try_emplace(name, label);
      if (is_new) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "expert ", name.expert, " of layer ", name.layer,
          " is loaded with the labels \"", other->second, "\" and \"", label,
          "\", and no rollout says which is current; say it with: troupe "
          "experts promote --labels BEST,..."));
    }
  }
  return labels;
}

v1::Rollout MakeRollout(const std::vector<ExpertProcess>& processes,
                        const v1::Rollout& before,
                        const std::vector<std::string>& labels,
                        const std::vector<std::string>& canary_labels,
                        uint32_t canary_share,
                        const std::vector<std::string>& previous_labels) {
  v1::Rollout rollout;
  rollout.set_revision(before.revision() + 1);
  const auto fill = [&](const std::vector<std::string>& names,
                        LabelList* list) {
    std::map<std::string, uint32_t> num_experts;
    for (const auto& [name, label] : ChosenLabels(processes, names)) {
      ++num_experts[label];
    }
    for (const std::string& name : names) {
      // One that decides nothing, since better ones are loaded, is left out.
      if (num_experts[name] == 0) continue;
      v1::RolloutLabel& label = *list->Add();
      label.set_label(name);
      label.set_num_experts(num_experts[name]);
    }
    // Where nothing better is whole, the last one is used as far as it is
    // there.
    if (!list->empty()) list->rbegin()->clear_num_experts();
  };
  fill(labels, rollout.mutable_labels());
  fill(canary_labels, rollout.mutable_canary_labels());
  for (const std::string& name : previous_labels) {
    rollout.add_previous_labels()->set_label(name);
  }
  rollout.set_canary_share(canary_labels.empty() ? 0 : canary_share);
  return rollout;
}

std::vector<v1::ExpertRange> RangesOf(const std::set<ExpertName>& experts) {
  std::vector<v1::ExpertRange> ranges;
  for (const ExpertName& name : experts) {
    const uint32_t layer = static_cast<uint32_t>(name.layer);
    const uint32_t expert = static_cast<uint32_t>(name.expert);
    if (!ranges.empty() && ranges.back().layer_begin() == layer &&
        ranges.back().expert_end() == expert) {
      ranges.back().set_expert_end(expert + 1);
      continue;
    }
    v1::ExpertRange range;
    range.set_layer_begin(layer);
    range.set_layer_end(layer + 1);
    range.set_expert_begin(expert);
    range.set_expert_end(expert + 1);
    ranges.push_back(range);
  }
  // Neighbouring layers with the same experts become one range.
  std::vector<v1::ExpertRange> merged;
  for (const v1::ExpertRange& range : ranges) {
    const auto above =
        std::find_if(merged.begin(), merged.end(), [&](const auto& other) {
          return other.layer_end() == range.layer_begin() &&
                 other.expert_begin() == range.expert_begin() &&
                 other.expert_end() == range.expert_end();
        });
    if (above == merged.end()) {
      merged.push_back(range);
    } else {
      above->set_layer_end(range.layer_end());
    }
  }
  return merged;
}

std::string TextOf(const std::set<ExpertName>& experts) {
  const std::vector<v1::ExpertRange> ranges = RangesOf(experts);
  if (ranges.empty()) return "none";
  if (ranges.size() == 1) return ToString(ranges[0]);
  return absl::StrCat(experts.size(), " experts");
}

std::vector<UnloadStep> Superfluous(const std::vector<ExpertProcess>& processes,
                                    const v1::Rollout& rollout) {
  const auto current = ChosenLabels(processes, LabelsOf(rollout.labels()));
  const auto canary =
      ChosenLabels(processes, LabelsOf(rollout.canary_labels()));
  const auto is_chosen = [](const auto& chosen, const ExpertName& name,
                            const std::string& label) {
    const auto it = chosen.find(name);
    return it != chosen.end() && it->second == label;
  };
  std::map<std::pair<size_t, std::string>, std::set<ExpertName>> superfluous;
  ForEach(processes, [&](size_t process, ExpertName name, const auto& loaded) {
    const std::string& label = loaded.version().label();
    // What the rollout has no opinion of is somebody's all the same.
    if (current.count(name) == 0 || is_chosen(current, name, label) ||
        is_chosen(canary, name, label)) {
      return;
    }
    superfluous[{process, label}].insert(name);
  });
  std::vector<UnloadStep> steps;
  for (auto& [where, experts] : superfluous) {
    steps.push_back({where.first, where.second, std::move(experts)});
  }
  return steps;
}

std::vector<ReloadStep> Missing(const std::vector<ExpertProcess>& processes,
                                const std::vector<std::string>& labels) {
  // The place in the list of the best label of each expert, loaded or not.
  std::map<ExpertName, size_t> best;
  const auto note = [&](const v1::ExpertVersion& version) {
    const auto it = std::find(labels.begin(), labels.end(), version.label());
    if (it == labels.end()) return;
    const size_t place = static_cast<size_t>(it - labels.begin());
    const auto [entry, is_new] = best.try_emplace(NameOf(version), place);
    entry->second = std::min(entry->second, place);
  };
  for (const ExpertProcess& process : processes) {
    for (const auto& loaded : process.list.experts()) note(loaded.version());
    for (const auto& loaded : process.list.unloaded()) note(loaded.version());
  }
  const auto by_label = ExpertsByLabel(processes);
  std::map<std::tuple<size_t, std::string, std::string>, ReloadStep> steps;
  for (size_t i = 0; i < processes.size(); ++i) {
    for (const v1::LoadedExpert& loaded : processes[i].list.unloaded()) {
      const v1::ExpertVersion& version = loaded.version();
      const ExpertName name = NameOf(version);
      const auto wanted = best.find(name);
      if (wanted == best.end() || labels[wanted->second] != version.label()) {
        continue;
      }
      const auto experts = by_label.find(version.label());
      if (experts != by_label.end() && experts->second.count(name) > 0) {
        continue;
      }
      ReloadStep& step = steps[{i, version.label(), loaded.source()}];
      step.process = i;
      step.label = version.label();
      step.source = loaded.source();
      step.content_hashes[name] = version.content_hash();
    }
  }
  std::vector<ReloadStep> result;
  for (auto& [key, step] : steps) result.push_back(std::move(step));
  return result;
}

}  // namespace troupe
