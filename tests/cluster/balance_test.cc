#include "cluster/balance.h"

#include <algorithm>
#include <limits>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "cluster/balance_watch.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

BalanceProblem Empty(size_t num_layers, size_t num_experts,
                     size_t num_processes, size_t max_units) {
  BalanceProblem problem;
  problem.num_layers = num_layers;
  problem.num_experts = num_experts;
  problem.weights.assign(num_layers, std::vector<double>(num_experts, 1));
  for (size_t p = 0; p < num_processes; ++p) {
    BalanceProcess process;
    process.name = absl::StrCat("p", p);
    process.node = absl::StrCat("n", p % 2);
    process.max_units = max_units;
    process.holds.assign(num_layers * num_experts, false);
    problem.processes.push_back(process);
  }
  return problem;
}

// Contiguous ranges of experts, as `troupe serve` starts processes.
BalanceProblem Split(size_t num_layers, size_t num_experts,
                     size_t num_processes, size_t max_units) {
  BalanceProblem problem =
      Empty(num_layers, num_experts, num_processes, max_units);
  for (size_t layer = 0; layer < num_layers; ++layer) {
    for (size_t e = 0; e < num_experts; ++e) {
      problem.processes[e * num_processes / num_experts]
          .holds[layer * num_experts + e] = true;
    }
  }
  return problem;
}

BalancePlan MustPlan(const BalanceProblem& problem,
                     const BalanceOptions& options = {}) {
  const absl::StatusOr<BalancePlan> plan = PlanBalance(problem, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : BalancePlan();
}

// The definition, without shortcuts: a replica has an equal share of its
// expert, a layer is as slow as its slowest process.
double SlowStep(const BalanceProblem& problem) {
  double step = 0;
  for (size_t layer = 0; layer < problem.num_layers; ++layer) {
    std::vector<double> load(problem.processes.size(), 0);
    for (size_t e = 0; e < problem.weights[layer].size(); ++e) {
      const size_t i = layer * problem.num_experts + e;
      double replicas = 0;
      for (const BalanceProcess& p : problem.processes) {
        replicas += p.holds[i] && !p.leaving ? 1 : 0;
      }
      for (size_t p = 0; p < load.size(); ++p) {
        if (problem.processes[p].holds[i] && !problem.processes[p].leaving) {
          load[p] += problem.weights[layer][e] / replicas;
        }
      }
    }
    step += *std::max_element(load.begin(), load.end());
  }
  return step;
}

// Carries a plan out move by move, with everything that has to hold.
void CheckPlan(const BalanceProblem& problem, const BalancePlan& plan) {
  BalanceProblem now = problem;
  const auto units = [&](size_t p) {
    return static_cast<size_t>(std::count(now.processes[p].holds.begin(),
                                          now.processes[p].holds.end(), true));
  };
  const auto replicas = [&](size_t i) {
    size_t count = 0;
    for (const BalanceProcess& p : now.processes) count += p.holds[i] ? 1 : 0;
    return count;
  };
  std::vector<bool> served(problem.num_layers * problem.num_experts);
  for (size_t i = 0; i < served.size(); ++i) served[i] = replicas(i) > 0;
  for (const BalancePhase& phase : plan.phases) {
    EXPECT_FALSE(phase.loads.empty() && phase.unloads.empty());
    for (const BalanceUnit& unit : phase.loads) {
      const size_t i = unit.layer * problem.num_experts + unit.expert;
      EXPECT_FALSE(now.processes[unit.process].holds[i]) << "twice";
      EXPECT_FALSE(now.processes[unit.process].leaving);
      now.processes[unit.process].holds[i] = true;
      served[i] = true;
    }
    for (const BalanceUnit& unit : phase.unloads) {
      const size_t i = unit.layer * problem.num_experts + unit.expert;
      EXPECT_TRUE(now.processes[unit.process].holds[i]);
      now.processes[unit.process].holds[i] = false;
      EXPECT_TRUE(!served[i] || replicas(i) > 0)
          << "expert " << unit.expert << " of layer " << unit.layer
          << " is lost";
    }
  }
  for (size_t p = 0; p < now.processes.size(); ++p) {
    EXPECT_LE(units(p),
              now.processes[p].leaving ? 0 : now.processes[p].max_units);
  }
  for (size_t layer = 0; layer < problem.num_layers; ++layer) {
    for (size_t e = 0; e < problem.weights[layer].size(); ++e) {
      EXPECT_GE(replicas(layer * problem.num_experts + e), 1u);
    }
  }
  EXPECT_NEAR(plan.after.step, SlowStep(now), 1e-9 * (1 + plan.after.step));
  EXPECT_LE(plan.after.step, plan.before.step * (1 + 1e-12));
  for (size_t p = 0; p < now.processes.size(); ++p) {
    EXPECT_EQ(now.processes[p].holds,
              AfterPlan(problem, plan).processes[p].holds);
  }
}

TEST(Balance, AnEvenLoadChangesNothing) {
  const BalancePlan plan = MustPlan(Split(3, 8, 4, 8));
  EXPECT_TRUE(plan.phases.empty());
  EXPECT_FALSE(plan.mandatory);
  EXPECT_DOUBLE_EQ(plan.before.imbalance(), 1);
}

TEST(Balance, AHotExpertGetsAReplicaWhereItsLayerIsIdlest) {
  BalanceProblem problem = Split(1, 4, 4, 2);
  problem.weights = {{9, 3, 1, 3}};
  BalanceOptions options;
  options.cost_per_load = 0.5;  // one move, the best
  const BalancePlan plan = MustPlan(problem, options);
  CheckPlan(problem, plan);
  ASSERT_EQ(plan.phases.size(), 1u);
  EXPECT_THAT(plan.phases[0].loads, ElementsAre(BalanceUnit{0, 0, 2}));
  EXPECT_THAT(plan.phases[0].unloads, ElementsAre());
  EXPECT_DOUBLE_EQ(plan.before.step, 9);
  EXPECT_DOUBLE_EQ(plan.after.step, 5.5);
  EXPECT_DOUBLE_EQ(plan.before.imbalance(), 2.25);
}

TEST(Balance, WithoutRoomExpertsAreSwapped) {
  BalanceProblem problem = Split(1, 4, 2, 2);
  problem.weights = {{4, 4, 1, 1}};
  const BalancePlan plan = MustPlan(problem);
  CheckPlan(problem, plan);
  EXPECT_EQ(plan.num_loads(), 2u);
  EXPECT_EQ(plan.num_unloads(), 2u);
  EXPECT_DOUBLE_EQ(plan.after.step, 5);
}

TEST(Balance, AUselessReplicaMakesRoomForAUsefulOne) {
  // p1 holds a replica of layer 1's cold expert 0, which layer 0 needs more.
  BalanceProblem problem = Empty(2, 2, 2, 3);
  problem.weights = {{10, 0}, {1, 1}};
  problem.processes[0].holds = {true, false, true, false};
  problem.processes[1].holds = {false, true, true, true};
  const BalancePlan plan = MustPlan(problem);
  CheckPlan(problem, plan);
  EXPECT_DOUBLE_EQ(plan.after.step, 5 + 1);
}

TEST(Balance, SeveralSlowestProcessesAreHelpedTogether) {
  // Moving one of the two hot experts alone gains nothing.
  BalanceProblem problem = Split(1, 4, 4, 2);
  problem.weights = {{10, 10, 0, 0}};
  const BalancePlan plan = MustPlan(problem);
  CheckPlan(problem, plan);
  EXPECT_DOUBLE_EQ(plan.after.step, 5);
}

TEST(Balance, AGainBelowTheBoundChangesNothing) {
  BalanceProblem problem = Split(1, 4, 2, 3);
  problem.weights = {{1.4, 1, 1, 0.9}};
  BalanceOptions options;
  options.min_gain = 0.05;
  const BalancePlan plan = MustPlan(problem, options);
  EXPECT_TRUE(plan.phases.empty());
  EXPECT_TRUE(plan.below_min_gain);
  EXPECT_DOUBLE_EQ(plan.gain(), 0);
  options.min_gain = 0.04;
  EXPECT_FALSE(MustPlan(problem, options).phases.empty());
}

TEST(Balance, AProcessThatLeavesIsEmptiedWhateverThatGains) {
  BalanceProblem problem = Split(2, 4, 2, 8);
  problem.processes[1].leaving = true;
  const BalancePlan plan = MustPlan(problem);
  EXPECT_TRUE(plan.mandatory);
  CheckPlan(problem, plan);
  EXPECT_EQ(plan.num_loads(), 4u);
  EXPECT_EQ(plan.num_unloads(), 4u);
  EXPECT_FALSE(MustPlan(AfterPlan(problem, plan)).mandatory);
}

TEST(Balance, AnExpertWithoutAReplicaGetsOne) {
  BalanceProblem problem = Split(1, 4, 2, 4);
  problem.processes[0].holds[0] = false;
  const BalancePlan plan = MustPlan(problem);
  EXPECT_TRUE(plan.mandatory);
  CheckPlan(problem, plan);
  EXPECT_EQ(plan.num_loads(), 1u);
}

TEST(Balance, AProcessAboveItsBoundGivesUnitsAway) {
  BalanceProblem problem = Split(1, 4, 2, 2);
  problem.processes[0].max_units = 1;
  problem.processes[1].max_units = 3;
  const BalancePlan plan = MustPlan(problem);
  EXPECT_TRUE(plan.mandatory);
  CheckPlan(problem, plan);
}

TEST(Balance, SaysWhenThereIsNoRoom) {
  BalanceProblem problem = Split(1, 4, 2, 2);
  problem.processes[1].leaving = true;
  const auto plan = PlanBalance(problem, {});
  EXPECT_TRUE(absl::IsResourceExhausted(plan.status())) << plan.status();
  EXPECT_THAT(plan.status().message(), HasSubstr("no room for expert 2"));
}

TEST(Balance, RefusesSizesThatDoNotFit) {
  BalanceProblem problem = Split(1, 4, 2, 2);
  problem.processes[1].holds.pop_back();
  EXPECT_TRUE(absl::IsInvalidArgument(PlanBalance(problem, {}).status()));
  problem = Split(1, 4, 2, 2);
  problem.weights[0][1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(absl::IsInvalidArgument(PlanBalance(problem, {}).status()));
  problem = Split(1, 4, 2, 2);
  problem.num_groups = 3;
  EXPECT_TRUE(absl::IsInvalidArgument(PlanBalance(problem, {}).status()));
}

TEST(Balance, HierarchicalKeepsAGroupOnOneNode) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    BalanceProblem problem = Split(2, 8, 4, 6);
    problem.num_groups = 4;
    for (auto& row : problem.weights) {
      for (double& weight : row) weight = static_cast<double>(random() % 100);
    }
    BalanceOptions options;
    options.mode = BalanceMode::kHierarchical;
    const BalancePlan plan = MustPlan(problem, options);
    CheckPlan(problem, plan);
    const BalanceProblem after = AfterPlan(problem, plan);
    for (size_t layer = 0; layer < 2; ++layer) {
      std::vector<size_t> groups_of_node(2, 0);
      for (size_t group = 0; group < 4; ++group) {
        std::set<std::string> nodes;
        for (const BalanceProcess& process : after.processes) {
          for (size_t e = 2 * group; e < 2 * group + 2; ++e) {
            if (process.holds[layer * 8 + e]) nodes.insert(process.node);
          }
        }
        EXPECT_EQ(nodes.size(), 1u) << "group " << group;
        ++groups_of_node[*nodes.begin() == "n0" ? 0 : 1];
      }
      EXPECT_THAT(groups_of_node, ElementsAre(2, 2));
    }
    EXPECT_TRUE(MustPlan(after, options).phases.empty());
  }
}

// The best of all placements: gain minus what its loads cost.
double BestNet(const BalanceProblem& problem, const BalanceOptions& options) {
  const size_t num_units = problem.num_layers * problem.num_experts;
  const size_t num_processes = problem.processes.size();
  const size_t num_sets = (size_t{1} << num_processes) - 1;  // not empty
  const double before = SlowStep(problem);
  const double ideal = QualityOf(problem).ideal;
  std::vector<size_t> choice(num_units, 1);
  double best = 0;
  while (true) {
    BalanceProblem candidate = problem;
    size_t loads = 0;
    bool fits = true;
    for (size_t p = 0; p < num_processes && fits; ++p) {
      size_t units = 0;
      for (size_t i = 0; i < num_units; ++i) {
        const bool holds = (choice[i] >> p & 1) != 0;
        if (holds && !problem.processes[p].holds[i]) ++loads;
        units += holds ? 1 : 0;
        candidate.processes[p].holds[i] = holds;
      }
      fits = units <= problem.processes[p].max_units;
    }
    if (fits) {
      const double net = (before - SlowStep(candidate)) / ideal -
                         options.cost_per_load * static_cast<double>(loads);
      best = std::max(best, net);
    }
    size_t i = 0;
    while (i < num_units && choice[i] == num_sets) choice[i++] = 1;
    if (i == num_units) return best;
    ++choice[i];
  }
}

// Against the exhaustive search, on small problems: always sound, and close to
// the best there is.
TEST(Balance, IsNearlyAsGoodAsTryingEverything) {
  std::mt19937 random(11);
  double sum = 0;
  double sum_best = 0;
  size_t num_optimal = 0;
  constexpr int kRounds = 150;
  for (int round = 0; round < kRounds; ++round) {
    const bool two_layers = round % 3 == 0;
    BalanceProblem problem =
        two_layers ? Split(2, 2, 3, 2 + random() % 2)
                   : Split(1, 3 + random() % 2, 3, 2 + random() % 2);
    for (auto& row : problem.weights) {
      for (double& weight : row) {
        weight = 1 + static_cast<double>(random() % 50);
        if (random() % 4 == 0) weight *= 5;
      }
    }
    BalanceOptions options;
    options.min_gain = 0;
    options.cost_per_load = 0.01;
    const BalancePlan plan = MustPlan(problem, options);
    CheckPlan(problem, plan);
    const double net =
        (plan.before.step - plan.after.step) / plan.before.ideal -
        options.cost_per_load * static_cast<double>(plan.num_loads());
    const double best = BestNet(problem, options);
    EXPECT_LE(net, best + 1e-9);
    // No single case is far off: in ideal steps.
    EXPECT_GE(net, best - 0.4) << "round " << round;
    num_optimal += net >= best - 1e-9 ? 1 : 0;
    sum += net;
    sum_best += best;
  }
  EXPECT_GE(sum, 0.93 * sum_best) << sum / sum_best;
  EXPECT_GE(num_optimal, 2 * kRounds / 5) << num_optimal;
}

// On larger problems: everything that has to hold, and nothing moves twice.
TEST(Balance, IsSoundAndStable) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const size_t num_processes = 2 + random() % 4;
    const size_t num_experts = 8;
    const size_t num_layers = 1 + random() % 3;
    BalanceProblem problem =
        Split(num_layers, num_experts, num_processes,
              num_layers * ((num_experts + num_processes - 1) / num_processes +
                            random() % 3));
    for (auto& row : problem.weights) {
      for (double& weight : row) {
        weight = std::exponential_distribution<double>(1)(random);
      }
    }
    if (random() % 4 == 0) {
      const size_t p = random() % num_processes;
      problem.processes[p].leaving = true;
      for (BalanceProcess& process : problem.processes) {
        process.max_units = num_layers * num_experts;
      }
    }
    const BalancePlan plan = MustPlan(problem);
    CheckPlan(problem, plan);
    const BalancePlan again = MustPlan(problem);
    ASSERT_EQ(again.phases.size(), plan.phases.size());
    for (size_t i = 0; i < plan.phases.size(); ++i) {
      EXPECT_EQ(again.phases[i].loads, plan.phases[i].loads);
      EXPECT_EQ(again.phases[i].unloads, plan.phases[i].unloads);
    }
    const BalanceProblem after = AfterPlan(problem, plan);
    EXPECT_TRUE(MustPlan(after).phases.empty()) << "it flaps";
    // Nor does it flap when the load trembles: it may take what is just above
    // the bound, once.
    BalanceProblem now = after;
    size_t num_changes = 0;
    for (int window = 0; window < 20; ++window) {
      BalanceProblem trembling = now;
      trembling.weights = problem.weights;
      for (auto& row : trembling.weights) {
        for (double& weight : row) {
          weight *=
              0.99 + 0.02 * std::uniform_real_distribution<double>()(random);
        }
      }
      const BalancePlan next = MustPlan(trembling);
      num_changes += next.phases.empty() ? 0 : 1;
      now = AfterPlan(now, next);
    }
    EXPECT_LE(num_changes, 1u);
  }
}

TEST(Balance, WeightsAreOfAStep) {
  RecentLoad load;
  load.tokens_per_expert = {8, 2};
  load.active_steps_per_expert = {2, 1};
  EXPECT_TRUE(WeightsOf(load, BalanceBy::kTokens).empty());
  load.steps = 2;
  EXPECT_THAT(WeightsOf(load, BalanceBy::kTokens), ElementsAre(4, 1));
  EXPECT_THAT(WeightsOf(load, BalanceBy::kActivatedExperts),
              ElementsAre(1, 0.5));
}

// Many rows for one expert and few for three: the tokens say that the one is
// hot, the weights that are read say the other.
TEST(Balance, ActivatedExpertsAreAnotherBalanceThanTokens) {
  BalanceProblem problem = Split(1, 4, 2, 2);
  RecentLoad load;
  load.tokens_per_expert = {90, 5, 20, 20};
  load.active_steps_per_expert = {2, 2, 10, 10};
  load.steps = 10;
  problem.weights = {WeightsOf(load, BalanceBy::kTokens)};
  EXPECT_TRUE(MustPlan(problem).phases.empty());
  problem.weights = {WeightsOf(load, BalanceBy::kActivatedExperts)};
  const BalancePlan plan = MustPlan(problem);
  CheckPlan(problem, plan);
  EXPECT_DOUBLE_EQ(plan.before.step, 2);
  EXPECT_DOUBLE_EQ(plan.after.step, 1.2);
}

TEST(BalanceWatch, AGainHasToLast) {
  BalanceWatchOptions options;
  options.windows = 3;
  options.min_tokens = 100;
  using Verdict = BalanceWatch::Verdict;
  BalanceWatch watch(options);
  BalancePlan gain;
  gain.phases.push_back({{{0, 0, 0}}, {}});
  const BalancePlan none;
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(none, 100), Verdict::kBalanced);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 99), Verdict::kTooLittleLoad);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kApply);
  EXPECT_EQ(watch.Look(gain, 100), Verdict::kWaiting);
  // What is mandatory needs no load, but may be a process that restarts.
  gain.mandatory = true;
  EXPECT_EQ(watch.Look(gain, 0), Verdict::kWaiting);
  EXPECT_EQ(watch.Look(gain, 0), Verdict::kApply);
}

}  // namespace
}  // namespace troupe
