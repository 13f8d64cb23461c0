// Which experts deserve another replica, and where: a pure function of measured
// load (docs/balance.md).
#ifndef TROUPE_CLUSTER_BALANCE_H_
#define TROUPE_CLUSTER_BALANCE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/load_tracker.h"

namespace troupe {

// What an expert costs in a step: its rows where computing bounds the step, the
// reading of its weights (once, however many rows) where memory does.
enum class BalanceBy { kTokens, kActivatedExperts };

// In the hierarchical mode the experts of a layer's group (group-limited
// routing) stay together on the processes of one node; where the nodes do not
// divide the groups, it is the global one, in which any process may have any.
enum class BalanceMode { kGlobal, kHierarchical };

struct BalanceProcess {
  std::string name;  // for people
  std::string node;  // the host; of the hierarchical mode
  // The most units (experts of one layer) that it may hold. While a plan is
  // applied it may be one more.
  size_t max_units = 0;
  bool leaving = false;     // is to be emptied
  std::vector<bool> holds;  // [num_layers * num_experts]
};

struct BalanceProblem {
  size_t num_layers = 0;
  size_t num_experts = 0;  // per layer
  // Of an expert in a step, [num_layers][num_experts]; a layer without experts
  // has an empty row.
  std::vector<std::vector<double>> weights;
  std::vector<BalanceProcess> processes;
  size_t num_groups = 1;  // of the experts of a layer; divides num_experts
};

struct BalanceOptions {
  BalanceMode mode = BalanceMode::kGlobal;
  // A plan that makes steps shorter by less than this share of the experts'
  // time changes nothing.
  double min_gain = 0.05;
  // What the loading of one unit has to gain, as a share of the experts' time.
  double cost_per_load = 0.001;
};

struct BalanceUnit {
  size_t layer = 0;
  size_t expert = 0;
  size_t process = 0;
  bool operator==(const BalanceUnit&) const = default;
};

// In order: the loads, then the unloads. Between phases, and after the loads of
// each, every expert has a replica.
struct BalancePhase {
  std::vector<BalanceUnit> loads;
  std::vector<BalanceUnit> unloads;
};

// A layer is as slow as its most loaded process, replicas sharing equally.
struct BalanceQuality {
  double step = 0;   // the sum over layers of the most loaded process
  double ideal = 0;  // and of the mean
  double imbalance() const { return ideal > 0 ? step / ideal : 0; }
};

struct BalancePlan {
  std::vector<BalancePhase> phases;
  BalanceQuality before;  // without the leaving processes, if that is possible
  BalanceQuality after;
  // Something has to be done whatever it gains: an expert without a replica, a
  // process that leaves or holds too much, an expert off its group's node.
  bool mandatory = false;
  // The gain was below the bound, so that only mandatory moves are left.
  bool below_min_gain = false;
  double gain() const {
    return before.step > 0 ? 1 - after.step / before.step : 0;
  }
  size_t num_loads() const;
  size_t num_unloads() const;
};

// InvalidArgument: the sizes do not fit one another. ResourceExhausted: the
// processes cannot hold every expert once. The same problem gives the same
// plan, and a plan carried out gives a problem whose plan is empty.
absl::StatusOr<BalancePlan> PlanBalance(const BalanceProblem& problem,
                                        const BalanceOptions& options);

// Weights of one layer by step; empty without a step.
std::vector<double> WeightsOf(const RecentLoad& load, BalanceBy by);

// Of the placement that `problem` has. Experts without a replica count nowhere.
BalanceQuality QualityOf(const BalanceProblem& problem);

// What the placement becomes.
BalanceProblem AfterPlan(BalanceProblem problem, const BalancePlan& plan);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_BALANCE_H_
