#include "tools/cli/balance_apply.h"

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace troupe {
namespace {

std::map<size_t, std::vector<BalanceUnit>> ByProcess(
    const std::vector<BalanceUnit>& units) {
  std::map<size_t, std::vector<BalanceUnit>> by_process;
  for (const BalanceUnit& unit : units) {
    by_process[unit.process].push_back(unit);
  }
  return by_process;
}

}  // namespace

std::string TextOf(const std::vector<BalanceUnit>& units) {
  std::map<size_t, std::set<size_t>> layers;  // by expert
  for (const BalanceUnit& unit : units) layers[unit.expert].insert(unit.layer);
  std::vector<std::string> parts;
  for (const auto& [expert, of] : layers) {
    std::vector<std::string> ranges;
    for (auto it = of.begin(); it != of.end();) {
      const size_t begin = *it;
      size_t last = begin;
      for (++it; it != of.end() && *it == last + 1; ++it) last = *it;
      ranges.push_back(begin == last ? absl::StrCat(begin)
                                     : absl::StrCat(begin, "-", last));
    }
    parts.push_back(absl::StrCat("expert ", expert, " of layer",
                                 of.size() == 1 ? " " : "s ",
                                 absl::StrJoin(ranges, ",")));
  }
  return absl::StrJoin(parts, ", ");
}

BalanceApplied ApplyBalance(
    const BalancePlan& plan, const BalanceProblem& problem,
    BalanceActions& actions,
    const std::function<void(const std::string& line)>& say) {
  BalanceApplied applied;
  const auto fails = [&](const absl::Status& status, const std::string& step) {
    if (status.ok()) return false;
    applied.status =
        absl::Status(status.code(), absl::StrCat(step, ": ", status.message()));
    say(absl::StrCat("failed: ", applied.status.message()));
    return true;
  };
  for (size_t i = 0; i < plan.phases.size(); ++i) {
    const BalancePhase& phase = plan.phases[i];
    const std::string prefix =
        absl::StrCat("phase ", i + 1, " of ", plan.phases.size(), ": ");
    const auto loads = ByProcess(phase.loads);
    for (const auto& [process, units] : loads) {
      const std::string step =
          absl::StrCat(prefix, "load ", TextOf(units), " on ",
                       problem.processes[process].name);
      say(step);
      if (fails(actions.Load(process, units), step)) return applied;
      applied.loads += units.size();
    }
    for (const auto& [process, units] : loads) {
      if (fails(
              actions.AwaitRouters(process, units),
              absl::StrCat(prefix, "wait until the routers see ", TextOf(units),
                           " on ", problem.processes[process].name))) {
        return applied;
      }
    }
    for (const auto& [process, units] : ByProcess(phase.unloads)) {
      const std::string step =
          absl::StrCat(prefix, "unload ", TextOf(units), " from ",
                       problem.processes[process].name);
      say(step);
      if (fails(actions.Unload(process, units), step)) return applied;
      applied.unloads += units.size();
    }
  }
  return applied;
}

}  // namespace troupe
