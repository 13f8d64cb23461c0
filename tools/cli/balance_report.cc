#include "tools/cli/balance_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/cli/balance_apply.h"

namespace troupe {
namespace {

using Json = nlohmann::ordered_json;

// By process, of the sum over layers: a process's share of a step's work.
std::vector<double> LoadOf(const BalanceProblem& problem) {
  std::vector<double> loads(problem.processes.size(), 0);
  for (size_t layer = 0; layer < problem.num_layers; ++layer) {
    for (size_t e = 0; e < problem.weights[layer].size(); ++e) {
      const size_t i = layer * problem.num_experts + e;
      const auto replicas = std::count_if(
          problem.processes.begin(), problem.processes.end(),
          [i](const BalanceProcess& process) { return process.holds[i]; });
      for (size_t p = 0; p < loads.size(); ++p) {
        if (problem.processes[p].holds[i]) {
          loads[p] += problem.weights[layer][e] / static_cast<double>(replicas);
        }
      }
    }
  }
  return loads;
}

long NumUnits(const BalanceProcess& process) {
  return std::count(process.holds.begin(), process.holds.end(), true);
}

double ShareOf(const std::vector<double>& loads, size_t p) {
  double total = 0;
  for (const double load : loads) total += load;
  return total > 0 ? 100 * loads[p] / total : 0;
}

Json Units(const BalanceInput& input, const std::vector<BalanceUnit>& units) {
  Json list = Json::array();
  for (const BalanceUnit& unit : units) {
    list.push_back({{"layer", unit.layer},
                    {"expert", unit.expert},
                    {"process", input.problem.processes[unit.process].name},
                    {"address", input.addresses[unit.process]}});
  }
  return list;
}

Json Quality(const BalanceQuality& quality) {
  return {{"slowest", quality.step},
          {"mean", quality.ideal},
          {"imbalance", quality.imbalance()}};
}

}  // namespace

std::string BalanceVerdict(const BalancePlan& plan) {
  if (plan.before.ideal <= 0 && plan.phases.empty()) {
    return "no load of late: nothing to go by";
  }
  const std::string change = absl::StrFormat(
      "imbalance %.3f -> %.3f, %d loads and %d unloads in %d phases",
      plan.before.imbalance(), plan.after.imbalance(), plan.num_loads(),
      plan.num_unloads(), plan.phases.size());
  if (plan.mandatory) return absl::StrCat("has to change: ", change);
  if (!plan.phases.empty()) return change;
  return absl::StrFormat("balanced: imbalance %.3f%s", plan.before.imbalance(),
                         plan.below_min_gain
                             ? ", and what could be gained is below the bound"
                             : "");
}

std::string BalanceTable(const BalanceInput& input, const BalancePlan& plan) {
  const BalanceProblem after = AfterPlan(input.problem, plan);
  const std::vector<double> loads_before = LoadOf(input.problem);
  const std::vector<double> loads_after = LoadOf(after);
  std::string text = absl::StrFormat("%-24s %7s %7s %9s %9s\n", "process",
                                     "experts", "bound", "load now", "planned");
  for (size_t p = 0; p < after.processes.size(); ++p) {
    const BalanceProcess& process = input.problem.processes[p];
    absl::StrAppendFormat(&text, "%-24s %7d %7d %8.1f%% %8.1f%%%s\n",
                          process.name, NumUnits(process), process.max_units,
                          ShareOf(loads_before, p), ShareOf(loads_after, p),
                          process.leaving ? "  leaves" : "");
  }
  for (size_t i = 0; i < plan.phases.size(); ++i) {
    absl::StrAppendFormat(&text, "phase %d\n", i + 1);
    for (size_t p = 0; p < after.processes.size(); ++p) {
      const auto of_process = [p](const std::vector<BalanceUnit>& units) {
        std::vector<BalanceUnit> own;
        for (const BalanceUnit& unit : units) {
          if (unit.process == p) own.push_back(unit);
        }
        return own;
      };
      const std::string& name = after.processes[p].name;
      const auto loads = of_process(plan.phases[i].loads);
      const auto unloads = of_process(plan.phases[i].unloads);
      if (!loads.empty()) {
        absl::StrAppend(&text, "  load ", TextOf(loads), " on ", name, "\n");
      }
      if (!unloads.empty()) {
        absl::StrAppend(&text, "  unload ", TextOf(unloads), " from ", name,
                        "\n");
      }
    }
  }
  absl::StrAppend(&text, BalanceVerdict(plan), "\n");
  return text;
}

std::string BalanceJson(const BalanceInput& input, const BalancePlan& plan) {
  const BalanceProblem after = AfterPlan(input.problem, plan);
  const std::vector<double> loads_before = LoadOf(input.problem);
  const std::vector<double> loads_after = LoadOf(after);
  Json json = {{"verdict", BalanceVerdict(plan)},
               {"mandatory", plan.mandatory},
               {"below_min_gain", plan.below_min_gain},
               {"recent_tokens", input.tokens},
               {"before", Quality(plan.before)},
               {"after", Quality(plan.after)},
               {"processes", Json::array()},
               {"phases", Json::array()}};
  for (size_t p = 0; p < after.processes.size(); ++p) {
    const BalanceProcess& process = input.problem.processes[p];
    json["processes"].push_back(
        {{"name", process.name},
         {"address", input.addresses[p]},
         {"experts", NumUnits(process)},
         {"experts_after", NumUnits(after.processes[p])},
         {"bound", process.max_units},
         {"leaving", process.leaving},
         {"load", loads_before[p]},
         {"load_after", loads_after[p]}});
  }
  for (const BalancePhase& phase : plan.phases) {
    json["phases"].push_back({{"load", Units(input, phase.loads)},
                              {"unload", Units(input, phase.unloads)}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace troupe
