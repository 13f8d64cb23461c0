#include "cluster/balance.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/balance_state.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// Differences below that share of a layer's load are rounding.
constexpr double kNoise = 1e-9;

absl::Status Validate(const BalanceProblem& problem) {
  const size_t num_units = problem.num_layers * problem.num_experts;
  if (problem.weights.size() != problem.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights of ", problem.weights.size(), " layers, not ",
                     problem.num_layers));
  }
  for (size_t layer = 0; layer < problem.num_layers; ++layer) {
    const std::vector<double>& row = problem.weights[layer];
    if (!row.empty() && row.size() != problem.num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights of ", row.size(), " experts of layer ", layer,
                       ", not ", problem.num_experts));
    }
    for (const double weight : row) {
      if (!std::isfinite(weight) || weight < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("a weight of layer ", layer, " is ", weight));
      }
    }
  }
  for (const BalanceProcess& process : problem.processes) {
    if (process.holds.size() != num_units) {
      return absl::InvalidArgumentError(
          absl::StrCat(process.name, ": holds ", process.holds.size(),
                       " units, not ", num_units));
    }
  }
  if (problem.num_groups == 0 ||
      problem.num_experts % problem.num_groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(problem.num_experts, " experts do not make ",
                     problem.num_groups, " groups"));
  }
  return absl::OkStatus();
}

// Which node each group of each layer belongs to, in the hierarchical mode.
class Nodes {
 public:
  Nodes(const BalanceProblem& problem, const BalanceOptions& options)
      : experts_per_group_(problem.num_experts / problem.num_groups) {
    if (options.mode != BalanceMode::kHierarchical) return;
    std::map<std::string, size_t> index;
    for (const BalanceProcess& process : problem.processes) {
      if (!process.leaving) index.emplace(process.node, 0);
    }
    size_t next = 0;
    for (auto& [name, i] : index) i = next++;
    if (index.size() < 2 || problem.num_groups % index.size() != 0) return;
    for (const BalanceProcess& process : problem.processes) {
      const auto node = index.find(process.node);
      node_of_process_.push_back(node == index.end() ? index.size()
                                                     : node->second);
    }
    for (size_t layer = 0; layer < problem.num_layers; ++layer) {
      node_of_group_.push_back(
          problem.weights[layer].empty()
              ? std::vector<size_t>()
              : Assign(problem, options, layer, index.size()));
    }
  }

  bool Allows(size_t layer, size_t expert, size_t process) const {
    return node_of_group_.empty() ||
           node_of_group_[layer][expert / experts_per_group_] ==
               node_of_process_[process];
  }

 private:
  // [num_groups]: the present assignment if it is one and not much worse; else
  // the heaviest group first to the node with the least, as many to each.
  std::vector<size_t> Assign(const BalanceProblem& problem,
                             const BalanceOptions& options, size_t layer,
                             size_t num_nodes) const {
    const size_t per_node = problem.num_groups / num_nodes;
    std::vector<double> weight(problem.num_groups, 0);
    // Units of each group that are on each node now.
    std::vector<std::vector<size_t>> here(problem.num_groups,
                                          std::vector<size_t>(num_nodes, 0));
    for (size_t e = 0; e < problem.num_experts; ++e) {
      const size_t group = e / experts_per_group_;
      weight[group] += problem.weights[layer][e];
      for (size_t p = 0; p < problem.processes.size(); ++p) {
        const BalanceProcess& process = problem.processes[p];
        if (!process.leaving &&
            process.holds[layer * problem.num_experts + e]) {
          ++here[group][node_of_process_[p]];
        }
      }
    }
    const auto heaviest_node = [&](const std::vector<size_t>& node_of) {
      std::vector<double> load(num_nodes, 0);
      for (size_t g = 0; g < node_of.size(); ++g) load[node_of[g]] += weight[g];
      return *std::max_element(load.begin(), load.end());
    };
    std::vector<size_t> present(problem.num_groups);
    std::vector<size_t> present_count(num_nodes, 0);
    for (size_t g = 0; g < problem.num_groups; ++g) {
      present[g] = static_cast<size_t>(
          std::max_element(here[g].begin(), here[g].end()) - here[g].begin());
      ++present_count[present[g]];
    }
    const bool is_assignment =
        std::all_of(present_count.begin(), present_count.end(),
                    [&](size_t count) { return count == per_node; });

    std::vector<size_t> order(problem.num_groups);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return weight[a] > weight[b]; });
    std::vector<size_t> packed(problem.num_groups);
    std::vector<double> load(num_nodes, 0);
    std::vector<size_t> count(num_nodes, 0);
    for (const size_t g : order) {
      size_t best = num_nodes;
      for (size_t n = 0; n < num_nodes; ++n) {
        if (count[n] == per_node) continue;
        if (best == num_nodes || load[n] < load[best] ||
            (load[n] == load[best] && here[g][n] > here[g][best])) {
          best = n;
        }
      }
      packed[g] = best;
      load[best] += weight[g];
      ++count[best];
    }
    return is_assignment && heaviest_node(present) * (1 - options.min_gain) <=
                                heaviest_node(packed)
               ? present
               : packed;
  }

  size_t experts_per_group_;
  std::vector<size_t> node_of_process_;             // [num processes]
  std::vector<std::vector<size_t>> node_of_group_;  // [num_layers][num_groups]
};

// Finds moves; the state keeps them.
class Planner {
 public:
  Planner(const BalanceProblem& problem, const BalanceOptions& options)
      : problem_(problem),
        options_(options),
        nodes_(problem, options),
        state_(problem) {}

  BalanceState& state() { return state_; }

  // What cannot stay as it is. True when there was something.
  absl::StatusOr<bool> Repair() {
    bool any = false;
    for (const BalanceProcess& process : problem_.processes) {
      any = any || (process.leaving &&
                    std::find(process.holds.begin(), process.holds.end(),
                              true) != process.holds.end());
    }
    ForEachUnit([&](size_t layer, size_t expert) {
      const absl::Span<const size_t> now = state_.Replicas(layer, expert);
      for (const size_t p : std::vector<size_t>(now.begin(), now.end())) {
        if (nodes_.Allows(layer, expert, p)) continue;
        state_.Remove(layer, expert, p);
        any = true;
      }
    });
    for (size_t p = 0; p < state_.num_processes(); ++p) {
      while (state_.num_units(p) > problem_.processes[p].max_units &&
             state_.usable(p)) {
        any = true;
        const std::optional<BalanceUnit> spare = state_.LeastUseful(p);
        if (spare.has_value()) {
          state_.Remove(spare->layer, spare->expert, p);
        } else {
          RemoveLightest(p);
        }
      }
    }
    // The heaviest first: there is the most choice for them.
    std::vector<std::pair<double, BalanceUnit>> missing;
    ForEachUnit([&](size_t layer, size_t expert) {
      if (state_.Replicas(layer, expert).empty()) {
        missing.push_back({-state_.weight(layer, expert), {layer, expert, 0}});
      }
    });
    std::stable_sort(
        missing.begin(), missing.end(),
        [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [weight, unit] : missing) {
      any = true;
      ABSL_RETURN_IF_ERROR(Place(unit.layer, unit.expert));
    }
    return any;
  }

  // Takes from each layer what gains the most per load, as long as something
  // gains more than it costs.
  void Improve() {
    // It stays the same whatever moves: a plan that was carried out looks the
    // same from its end.
    const double scale = state_.Ideal();
    if (scale <= 0) return;
    // What a layer could gain, as it was seen last.
    std::vector<Chain> chains(problem_.num_layers);
    std::vector<bool> fresh(problem_.num_layers, false);
    while (true) {
      size_t best = problem_.num_layers;
      bool all_fresh = true;
      for (size_t layer = 0; layer < problem_.num_layers; ++layer) {
        all_fresh = all_fresh && fresh[layer];
        if (chains[layer].net > 0 &&
            (best == problem_.num_layers ||
             chains[layer].per_load() > chains[best].per_load())) {
          best = layer;
        }
      }
      if (best == problem_.num_layers && all_fresh) return;
      if (best != problem_.num_layers && fresh[best]) {
        for (const Op& op : chains[best].ops) Do(op);
        // What is taken from one layer makes room for another.
        std::fill(fresh.begin(), fresh.end(), false);
        chains[best].net = 0;
        continue;
      }
      for (size_t layer = 0; layer < problem_.num_layers; ++layer) {
        if (fresh[layer]) continue;
        if (best != problem_.num_layers && layer != best) continue;
        chains[layer] = FindChain(layer, scale);
        fresh[layer] = true;
      }
    }
  }

 private:
  struct Op {
    BalanceUnit unit;
    bool add;
  };
  using Ops = std::vector<Op>;
  struct Chain {
    Ops ops;
    double net = 0;  // gain minus costs
    size_t loads = 0;
    double per_load() const { return net / static_cast<double>(loads + 1); }
  };

  template <typename Function>
  void ForEachUnit(const Function& function) const {
    for (size_t layer = 0; layer < problem_.num_layers; ++layer) {
      for (size_t e = 0; e < problem_.weights[layer].size(); ++e) {
        function(layer, e);
      }
    }
  }

  void Do(const Op& op) {
    if (op.add) {
      state_.Add(op.unit.layer, op.unit.expert, op.unit.process);
    } else {
      state_.Remove(op.unit.layer, op.unit.expert, op.unit.process);
    }
  }

  void RemoveLightest(size_t process) {
    std::optional<BalanceUnit> lightest;
    ForEachUnit([&](size_t layer, size_t expert) {
      if (state_.Holds(process, layer, expert) &&
          (!lightest.has_value() ||
           state_.weight(layer, expert) <
               state_.weight(lightest->layer, lightest->expert))) {
        lightest = {layer, expert, process};
      }
    });
    state_.Remove(lightest->layer, lightest->expert, process);
  }

  // A replica for an expert that has none, where its layer is idlest; in place
  // of what is useful least where nobody has room.
  absl::Status Place(size_t layer, size_t expert) {
    std::optional<size_t> best;
    std::optional<BalanceUnit> victim;
    for (const bool evict : {false, true}) {
      for (size_t p = 0; p < state_.num_processes(); ++p) {
        if (!state_.usable(p) || !nodes_.Allows(layer, expert, p)) continue;
        if (best && state_.load(layer, p) >= state_.load(layer, *best))
          continue;
        const std::optional<BalanceUnit> out =
            evict ? state_.LeastUseful(p) : std::nullopt;
        if (evict ? !out.has_value() : !state_.HasRoom(p)) continue;
        best = p;
        victim = out;
      }
      if (best.has_value()) break;
    }
    if (!best.has_value()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no room for expert ", expert, " of layer ", layer,
          ": every process that may have it is full of experts that nobody "
          "else has"));
    }
    if (victim.has_value()) {
      state_.Remove(victim->layer, victim->expert, victim->process);
    }
    state_.Add(layer, expert, *best);
    return absl::OkStatus();
  }

  // Improves a layer step by step, and keeps as many steps as pay.
  Chain FindChain(size_t layer, double scale) {
    const size_t mark = state_.num_changes();
    const double start = state_.Step();
    const size_t max_steps = 4 + 2 * state_.num_processes();
    Ops ops;
    Chain best;
    size_t loads = 0;
    for (size_t i = 0; i < max_steps; ++i) {
      const Ops step = BestStep(layer);
      if (step.empty()) break;
      for (const Op& op : step) {
        Do(op);
        ops.push_back(op);
        if (op.add) ++loads;
      }
      const double net = (start - state_.Step()) / scale - kNoise -
                         options_.cost_per_load * static_cast<double>(loads);
      if (net > best.net) best = {ops, net, loads};
    }
    state_.UndoTo(mark);
    return best;
  }

  // The change that takes the most from the layer's slowest process, by load;
  // empty when nothing does.
  Ops BestStep(size_t layer) {
    Ops best;
    double best_gain = kNoise * state_.Potential(layer);
    const size_t from = state_.Slowest(layer);
    const auto consider = [&](Ops ops) {
      const double gain = GainOf(ops);
      size_t loads = 0;
      for (const Op& op : ops) loads += op.add ? 1 : 0;
      // Two loads have to gain more than one.
      if (gain / static_cast<double>(loads + 1) > best_gain) {
        best_gain = gain / static_cast<double>(loads + 1);
        best = std::move(ops);
      }
    };
    std::vector<size_t> experts;  // of the slowest
    for (size_t e = 0; e < problem_.weights[layer].size(); ++e) {
      if (!state_.Holds(from, layer, e)) continue;
      experts.push_back(e);
      if (state_.Replicas(layer, e).size() > 1) {
        consider({{{layer, e, from}, false}});
      }
    }
    // Where something can go that makes room.
    std::optional<size_t> third;
    for (size_t p = 0; p < state_.num_processes(); ++p) {
      if (p != from && state_.usable(p) && state_.HasRoom(p) &&
          (!third || state_.load(layer, p) < state_.load(layer, *third))) {
        third = p;
      }
    }
    for (size_t to = 0; to < state_.num_processes(); ++to) {
      if (to == from || !state_.usable(to)) continue;
      const bool has_room = state_.HasRoom(to);
      const std::optional<BalanceUnit> victim =
          has_room ? std::nullopt : state_.LeastUseful(to);
      for (const size_t e : experts) {
        if (state_.weight(layer, e) <= 0 || state_.Holds(to, layer, e) ||
            !nodes_.Allows(layer, e, to)) {
          continue;
        }
        const Op add = {{layer, e, to}, true};
        const Op drop = {{layer, e, from}, false};
        if (has_room) {
          consider({add});
          consider({add, drop});
        } else if (victim.has_value()) {
          const Op evict = {*victim, false};
          consider({evict, add});
          consider({evict, add, drop});
        }
        for (size_t other = 0; other < problem_.num_experts; ++other) {
          if (!state_.Holds(to, layer, other)) continue;
          if (third && *third != to && !has_room &&
              !state_.Holds(*third, layer, other) &&
              nodes_.Allows(layer, other, *third)) {
            const Op out = {{layer, other, to}, false};
            const Op away = {{layer, other, *third}, true};
            consider({away, out, add});
            consider({away, out, add, drop});
          }
          if (state_.Holds(from, layer, other) ||
              !nodes_.Allows(layer, other, from)) {
            continue;
          }
          const Op out = {{layer, other, to}, false};
          const Op back = {{layer, other, from}, true};
          consider({add, drop, back, out});
          if (state_.HasRoom(from)) consider({add, back, out});
        }
      }
    }
    return best;
  }

  double GainOf(const Ops& ops) {
    double gain = 0;
    const size_t mark = state_.num_changes();
    for (size_t i = 0; i < ops.size(); ++i) {
      const size_t layer = ops[i].unit.layer;
      const bool seen =
          std::any_of(ops.begin(), ops.begin() + static_cast<ptrdiff_t>(i),
                      [&](const Op& op) { return op.unit.layer == layer; });
      if (!seen) gain += state_.Potential(layer);
    }
    for (const Op& op : ops) Do(op);
    for (size_t i = 0; i < ops.size(); ++i) {
      const size_t layer = ops[i].unit.layer;
      const bool seen =
          std::any_of(ops.begin(), ops.begin() + static_cast<ptrdiff_t>(i),
                      [&](const Op& op) { return op.unit.layer == layer; });
      if (!seen) gain -= state_.Potential(layer);
    }
    state_.UndoTo(mark);
    return gain;
  }

  const BalanceProblem& problem_;
  const BalanceOptions& options_;
  const Nodes nodes_;
  BalanceState state_;
};

// Orders what has changed so that every expert always has a replica and no
// process ever holds more than one unit above its bound, except where nothing
// else is left.
std::vector<BalancePhase> MakePhases(const BalanceProblem& problem,
                                     const BalanceState& target) {
  const size_t num_units = problem.num_layers * problem.num_experts;
  std::vector<BalanceUnit> loads;
  std::vector<BalanceUnit> unloads;
  std::vector<size_t> units(problem.processes.size(), 0);
  std::vector<size_t> replicas(num_units, 0);
  std::vector<size_t> pending(num_units, 0);  // loads
  const auto index = [&](const BalanceUnit& unit) {
    return unit.layer * problem.num_experts + unit.expert;
  };
  for (size_t i = 0; i < num_units; ++i) {
    const size_t layer = i / problem.num_experts;
    const size_t expert = i % problem.num_experts;
    if (problem.weights[layer].empty()) continue;
    for (size_t p = 0; p < problem.processes.size(); ++p) {
      const bool has = problem.processes[p].holds[i];
      const bool wants = target.Holds(p, layer, expert);
      units[p] += has ? 1 : 0;
      replicas[i] += has ? 1 : 0;
      if (wants && !has) {
        loads.push_back({layer, expert, p});
        ++pending[i];
      } else if (has && !wants) {
        unloads.push_back({layer, expert, p});
      }
    }
  }
  std::vector<BalancePhase> phases;
  bool force = false;
  while (!loads.empty() || !unloads.empty()) {
    BalancePhase phase;
    std::vector<BalanceUnit> later;
    for (const BalanceUnit& load : loads) {
      const size_t bound = problem.processes[load.process].max_units + 1;
      if (units[load.process] >= bound && !force) {
        later.push_back(load);
        continue;
      }
      force = false;
      ++units[load.process];
      ++replicas[index(load)];
      --pending[index(load)];
      phase.loads.push_back(load);
    }
    loads = std::move(later);
    later.clear();
    for (const BalanceUnit& unload : unloads) {
      // Until all of its new replicas are there, an expert keeps the old ones,
      // unless it has several.
      if (pending[index(unload)] > 0 && replicas[index(unload)] < 2) {
        later.push_back(unload);
        continue;
      }
      --units[unload.process];
      --replicas[index(unload)];
      phase.unloads.push_back(unload);
    }
    unloads = std::move(later);
    if (phase.loads.empty() && phase.unloads.empty()) {
      force = true;  // a knot: one process has to hold more for a while
      continue;
    }
    phases.push_back(std::move(phase));
  }
  return phases;
}

}  // namespace

size_t BalancePlan::num_loads() const {
  size_t count = 0;
  for (const BalancePhase& phase : phases) count += phase.loads.size();
  return count;
}

size_t BalancePlan::num_unloads() const {
  size_t count = 0;
  for (const BalancePhase& phase : phases) count += phase.unloads.size();
  return count;
}

absl::StatusOr<BalancePlan> PlanBalance(const BalanceProblem& problem,
                                        const BalanceOptions& options) {
  ABSL_RETURN_IF_ERROR(Validate(problem));
  Planner planner(problem, options);
  BalanceState& state = planner.state();
  BalancePlan plan;
  ABSL_ASSIGN_OR_RETURN(plan.mandatory, planner.Repair());
  plan.before = {state.Step(), state.Ideal()};
  const size_t repaired = state.num_changes();
  planner.Improve();
  plan.after = {state.Step(), state.Ideal()};
  if (plan.gain() < options.min_gain) {
    plan.below_min_gain = state.num_changes() > repaired;
    state.UndoTo(repaired);
    plan.after = plan.before;
  }
  plan.phases = MakePhases(problem, state);
  return plan;
}

std::vector<double> WeightsOf(const RecentLoad& load, BalanceBy by) {
  if (!(load.steps > 0)) return {};
  std::vector<double> weights = by == BalanceBy::kTokens
                                    ? load.tokens_per_expert
                                    : load.active_steps_per_expert;
  for (double& weight : weights) weight /= load.steps;
  return weights;
}

BalanceQuality QualityOf(const BalanceProblem& problem) {
  const BalanceState state(problem);
  return {state.Step(), state.Ideal()};
}

BalanceProblem AfterPlan(BalanceProblem problem, const BalancePlan& plan) {
  for (const BalancePhase& phase : plan.phases) {
    for (const BalanceUnit& unit : phase.loads) {
      problem.processes[unit.process]
          .holds[unit.layer * problem.num_experts + unit.expert] = true;
    }
    for (const BalanceUnit& unit : phase.unloads) {
      problem.processes[unit.process]
          .holds[unit.layer * problem.num_experts + unit.expert] = false;
    }
  }
  return problem;
}

}  // namespace troupe
