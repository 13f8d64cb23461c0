#include "cluster/balance_state.h"

#include <algorithm>
#include <numeric>

#include "common/check.h"

namespace troupe {
namespace {

// Of the spread in the potential: far less than what any useful move gains.
constexpr double kSpreadWeight = 1e-3;

}  // namespace

BalanceState::BalanceState(const BalanceProblem& problem)
    : num_experts_(problem.num_experts),
      weights_(problem.weights),
      replicas_(problem.num_layers * problem.num_experts),
      load_(problem.num_layers,
            std::vector<double>(problem.processes.size(), 0)) {
  for (const std::vector<double>& row : weights_) {
    total_.push_back(std::accumulate(row.begin(), row.end(), 0.0));
  }
  for (const BalanceProcess& process : problem.processes) {
    usable_.push_back(!process.leaving);
    max_units_.push_back(process.leaving ? 0 : process.max_units);
    num_usable_ += process.leaving ? 0 : 1;
    units_.push_back(0);
    holds_.emplace_back(replicas_.size(), false);
  }
  for (size_t p = 0; p < problem.processes.size(); ++p) {
    if (problem.processes[p].leaving) continue;
    for (size_t layer = 0; layer < problem.num_layers; ++layer) {
      for (size_t e = 0; e < weights_[layer].size(); ++e) {
        if (problem.processes[p].holds[layer * num_experts_ + e]) {
          DoAdd({layer, e, p});
        }
      }
    }
  }
}

size_t BalanceState::Slowest(size_t layer) const {
  size_t slowest = 0;
  for (size_t p = 1; p < units_.size(); ++p) {
    if (load_[layer][p] > load_[layer][slowest]) slowest = p;
  }
  return slowest;
}

double BalanceState::Step() const {
  double step = 0;
  for (size_t layer = 0; layer < load_.size(); ++layer) step += Step(layer);
  return step;
}

double BalanceState::Ideal() const {
  if (num_usable_ == 0) return 0;
  double sum = 0;
  for (const std::vector<double>& row : load_) {
    sum += std::accumulate(row.begin(), row.end(), 0.0);
  }
  return sum / num_usable_;
}

double BalanceState::Potential(size_t layer) const {
  if (total_[layer] <= 0) return 0;
  double max = 0;
  double squares = 0;
  for (const double load : load_[layer]) {
    max = std::max(max, load);
    squares += load * load;
  }
  return max + kSpreadWeight * squares / total_[layer];
}

void BalanceState::Share(const BalanceUnit& unit, double sign) {
  const std::vector<size_t>& replicas =
      replicas_[unit.layer * num_experts_ + unit.expert];
  const double share =
      sign * weights_[unit.layer][unit.expert] /
      static_cast<double>(std::max<size_t>(replicas.size(), 1));
  for (const size_t p : replicas) load_[unit.layer][p] += share;
}

void BalanceState::DoAdd(const BalanceUnit& unit) {
  const size_t i = unit.layer * num_experts_ + unit.expert;
  CHECK(!holds_[unit.process][i]);
  Share(unit, -1);
  std::vector<size_t>& replicas = replicas_[i];
  replicas.insert(
      std::lower_bound(replicas.begin(), replicas.end(), unit.process),
      unit.process);
  Share(unit, 1);
  holds_[unit.process][i] = true;
  ++units_[unit.process];
}

void BalanceState::DoRemove(const BalanceUnit& unit) {
  const size_t i = unit.layer * num_experts_ + unit.expert;
  CHECK(holds_[unit.process][i]);
  Share(unit, -1);
  std::vector<size_t>& replicas = replicas_[i];
  replicas.erase(std::find(replicas.begin(), replicas.end(), unit.process));
  // What is taken away entirely leaves no rounding error behind.
  load_[unit.layer][unit.process] =
      std::max(0.0, load_[unit.layer][unit.process]);
  Share(unit, 1);
  holds_[unit.process][i] = false;
  --units_[unit.process];
}

void BalanceState::Add(size_t layer, size_t expert, size_t process) {
  DoAdd({layer, expert, process});
  changes_.push_back({{layer, expert, process}, true});
}

void BalanceState::Remove(size_t layer, size_t expert, size_t process) {
  DoRemove({layer, expert, process});
  changes_.push_back({{layer, expert, process}, false});
}

void BalanceState::UndoTo(size_t num_changes) {
  while (changes_.size() > num_changes) {
    const Change change = changes_.back();
    changes_.pop_back();
    if (change.added) {
      DoRemove(change.unit);
    } else {
      DoAdd(change.unit);
    }
  }
}

std::optional<BalanceUnit> BalanceState::LeastUseful(size_t process) {
  std::optional<BalanceUnit> best;
  double best_harm = 0;
  for (size_t i = 0; i < replicas_.size(); ++i) {
    if (!holds_[process][i] || replicas_[i].size() < 2) continue;
    const BalanceUnit unit = {i / num_experts_, i % num_experts_, process};
    const double before = Potential(unit.layer);
    const size_t mark = num_changes();
    Remove(unit.layer, unit.expert, process);
    const double harm = Potential(unit.layer) - before;
    UndoTo(mark);
    if (!best.has_value() || harm < best_harm) {
      best = unit;
      best_harm = harm;
    }
  }
  return best;
}

}  // namespace troupe
