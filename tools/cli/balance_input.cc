#include "tools/cli/balance_input.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cluster/load_summary.h"

namespace troupe {
namespace {

// More experts than any model has: the model's description is not believed.
constexpr uint64_t kMaxUnits = 1 << 20;

size_t CountUnits(const BalanceProcess& process) {
  return static_cast<size_t>(
      std::count(process.holds.begin(), process.holds.end(), true));
}

void SetHolds(const v1::ExpertDescription& description,
              const BalanceProblem& problem, std::vector<bool>& holds) {
  for (const v1::ExpertVersion& version : description.experts()) {
    if (version.leaving()) continue;
    const v1::ExpertRange& range = version.range();
    const size_t layer_end =
        std::min<size_t>(range.layer_end(), problem.num_layers);
    const size_t expert_end =
        std::min<size_t>(range.expert_end(), problem.num_experts);
    for (size_t layer = range.layer_begin(); layer < layer_end; ++layer) {
      if (problem.weights[layer].empty()) continue;
      for (size_t e = range.expert_begin(); e < expert_end; ++e) {
        holds[layer * problem.num_experts + e] = true;
      }
    }
  }
}

absl::Status MarkLeaving(const std::vector<std::string>& without,
                         BalanceInput& input) {
  for (const std::string& name : without) {
    bool found = false;
    for (size_t p = 0; p < input.addresses.size(); ++p) {
      BalanceProcess& process = input.problem.processes[p];
      if (process.name != name && input.addresses[p] != name) continue;
      process.leaving = true;
      found = true;
    }
    if (!found) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--without: no ready expert process has the name or address \"", name,
          "\""));
    }
  }
  return absl::OkStatus();
}

void SetBounds(const BalanceInputOptions& options,
               const std::vector<uint64_t>& weight_bytes,
               BalanceProblem& problem) {
  size_t num_units = 0;
  for (const auto& row : problem.weights) num_units += row.size();
  size_t num_staying = 0;
  double unit_bytes = 0;
  for (size_t p = 0; p < problem.processes.size(); ++p) {
    num_staying += problem.processes[p].leaving ? 0 : 1;
    const size_t held = CountUnits(problem.processes[p]);
    if (held > 0) {
      unit_bytes = std::max(unit_bytes, static_cast<double>(weight_bytes[p]) /
                                            static_cast<double>(held));
    }
  }
  const double share = (1 + options.spare_percent / 100) *
                       static_cast<double>(num_units) /
                       static_cast<double>(std::max<size_t>(num_staying, 1));
  for (BalanceProcess& process : problem.processes) {
    if (options.slots > 0) {
      process.max_units = options.slots;
    } else if (options.memory_mb > 0 && unit_bytes > 0) {
      process.max_units = static_cast<size_t>(
          static_cast<double>(options.memory_mb << 20) / unit_bytes);
    } else {
      process.max_units =
          std::max(CountUnits(process), static_cast<size_t>(std::ceil(share)));
    }
  }
}

}  // namespace

std::string HostOf(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) return "";
  return address.substr(0, address.rfind(':'));
}

absl::StatusOr<BalanceInput> MakeBalanceInput(
    const v1::ModelInfo& model, const v1::ClusterStats& stats,
    const BalanceInputOptions& options) {
  BalanceInput input;
  BalanceProblem& problem = input.problem;
  if (model.num_experts() == 0 ||
      uint64_t{model.num_layers()} * model.num_experts() > kMaxUnits) {
    return absl::FailedPreconditionError(
        absl::StrCat("nothing to balance: the model has ", model.num_layers(),
                     " layers of ", model.num_experts(), " experts"));
  }
  problem.num_layers = model.num_layers();
  problem.num_experts = model.num_experts();
  problem.num_groups = options.num_groups;
  if (options.num_groups == 0 ||
      problem.num_experts % options.num_groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--groups: ", options.num_groups, " groups of ",
                     problem.num_experts, " experts"));
  }
  problem.weights.resize(problem.num_layers);
  size_t num_layers = 0;
  for (const auto& [layer, load] : MergeRecentLoad(stats.routers())) {
    if (layer >= problem.num_layers) continue;
    ++num_layers;
    std::vector<double>& row = problem.weights[layer];
    row = WeightsOf(load, options.by);
    row.resize(problem.num_experts, 0);  // of a layer without load, too
    input.tokens += std::accumulate(load.tokens_per_expert.begin(),
                                    load.tokens_per_expert.end(), 0.0);
  }
  if (num_layers == 0) {
    return absl::FailedPreconditionError(
        "no router answers, or none has layers of experts");
  }

  std::map<std::string, const v1::ExpertDescription*> ready;
  for (const v1::RouterStats& router : stats.routers()) {
    for (const v1::ExpertPeer& peer : router.peers()) {
      if (peer.description().state() == v1::SERVING_STATE_READY) {
        ready[peer.address()] = &peer.description();
      }
    }
  }
  if (ready.empty()) {
    return absl::FailedPreconditionError(
        "the routers see no expert process that is ready");
  }
  std::vector<uint64_t> weight_bytes;
  for (const auto& [address, description] : ready) {
    BalanceProcess process;
    process.name = description->name().empty() ? address : description->name();
    process.node = HostOf(address);
    process.holds.resize(problem.num_layers * problem.num_experts);
    SetHolds(*description, problem, process.holds);
    problem.processes.push_back(std::move(process));
    input.addresses.push_back(address);
    weight_bytes.push_back(description->weight_bytes());
  }
  const absl::Status leaving = MarkLeaving(options.without, input);
  if (!leaving.ok()) return leaving;
  SetBounds(options, weight_bytes, problem);
  return input;
}

}  // namespace troupe
