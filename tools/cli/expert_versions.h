// What a set of expert processes has loaded, and what a change of it takes:
// pure functions of their lists.
#ifndef TROUPE_TOOLS_CLI_EXPERT_VERSIONS_H_
#define TROUPE_TOOLS_CLI_EXPERT_VERSIONS_H_

#include <compare>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "protos/admin.pb.h"

namespace troupe {

// One expert of one layer.
struct ExpertName {
  size_t layer = 0;
  size_t expert = 0;
  auto operator<=>(const ExpertName&) const = default;
};

struct ExpertProcess {
  std::string address;
  v1::ListExpertsResponse list;
};

// The rollout that is in effect; revision 0: none.
v1::Rollout NewestRollout(const std::vector<ExpertProcess>& processes);

// All labels that are loaded, each with its experts, whichever process has
// them. Those that are leaving do not count.
std::map<std::string, std::set<ExpertName>> ExpertsByLabel(
    const std::vector<ExpertProcess>& processes);

// The label that a list of labels chooses for each expert: the first that is
// loaded; experts for which there is none are not in it.
std::map<ExpertName, std::string> ChosenLabels(
    const std::vector<ExpertProcess>& processes,
    const std::vector<std::string>& labels);

// The labels that new sequences use now, best first. While there is no rollout:
// all that are loaded. FailedPrecondition when there is none and several labels
// claim one expert.
absl::StatusOr<std::vector<std::string>> CurrentLabels(
    const std::vector<ExpertProcess>& processes);

// A rollout after `before`, whose labels know how many experts they have.
v1::Rollout MakeRollout(const std::vector<ExpertProcess>& processes,
                        const v1::Rollout& before,
                        const std::vector<std::string>& labels,
                        const std::vector<std::string>& canary_labels,
                        uint32_t canary_share,
                        const std::vector<std::string>& previous_labels);

// Ranges that are exactly these experts.
std::vector<v1::ExpertRange> RangesOf(const std::set<ExpertName>& experts);
// "experts 0-3 of layers 0-11", or how many there are.
std::string TextOf(const std::set<ExpertName>& experts);

// What each process has to unload so that only what the rollout may choose is
// left: by process and label.
struct UnloadStep {
  size_t process = 0;
  std::string label;
  std::set<ExpertName> experts;
};
std::vector<UnloadStep> Superfluous(const std::vector<ExpertProcess>& processes,
                                    const v1::Rollout& rollout);

// What has to be loaded again so that each expert has the label that `labels`
// would choose if nothing had been unloaded.
struct ReloadStep {
  size_t process = 0;
  std::string label;
  std::string source;  // "checkpoint" or a file
  std::map<ExpertName, std::string> content_hashes;
};
std::vector<ReloadStep> Missing(const std::vector<ExpertProcess>& processes,
                                const std::vector<std::string>& labels);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_EXPERT_VERSIONS_H_
