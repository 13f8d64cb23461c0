// A placement that is being changed, and what it costs.
#ifndef TROUPE_CLUSTER_BALANCE_STATE_H_
#define TROUPE_CLUSTER_BALANCE_STATE_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "cluster/balance.h"

namespace troupe {

// Units may be added and removed one by one, and the latest changes taken
// back. Leaving processes hold nothing here. Not thread-safe.
class BalanceState {
 public:
  explicit BalanceState(const BalanceProblem& problem);

  bool Holds(size_t process, size_t layer, size_t expert) const {
    return holds_[process][layer * num_experts_ + expert];
  }
  absl::Span<const size_t> Replicas(size_t layer, size_t expert) const {
    return replicas_[layer * num_experts_ + expert];
  }
  size_t num_units(size_t process) const { return units_[process]; }
  bool HasRoom(size_t process) const {
    return units_[process] < max_units_[process];
  }
  bool usable(size_t process) const { return usable_[process]; }
  size_t num_processes() const { return units_.size(); }
  double load(size_t layer, size_t process) const {
    return load_[layer][process];
  }
  double weight(size_t layer, size_t expert) const {
    return weights_[layer][expert];
  }

  // The most loaded process of a layer; the first of equals.
  size_t Slowest(size_t layer) const;
  double Step(size_t layer) const { return load_[layer][Slowest(layer)]; }
  double Step() const;
  double Ideal() const;
  // Falls whenever a layer gets better: with its slowest process, and a little
  // with the spread of the others, so that of several slowest processes one can
  // be helped after the other.
  double Potential(size_t layer) const;

  void Add(size_t layer, size_t expert, size_t process);
  // Of a replica that is there.
  void Remove(size_t layer, size_t expert, size_t process);
  // Takes changes back until that many are left.
  size_t num_changes() const { return changes_.size(); }
  void UndoTo(size_t num_changes);

  // Of the units of a process that have another replica, the one whose removal
  // harms least.
  std::optional<BalanceUnit> LeastUseful(size_t process);

 private:
  struct Change {
    BalanceUnit unit;
    bool added;
  };
  void DoAdd(const BalanceUnit& unit);
  void DoRemove(const BalanceUnit& unit);
  void Share(const BalanceUnit& unit, double sign);

  const size_t num_experts_;
  const std::vector<std::vector<double>>& weights_;
  std::vector<bool> usable_;
  std::vector<size_t> max_units_;
  double num_usable_ = 0;
  std::vector<double> total_;                  // [num_layers], of weights
  std::vector<std::vector<bool>> holds_;       // [process][layer * experts]
  std::vector<std::vector<size_t>> replicas_;  // ascending
  std::vector<size_t> units_;                  // [process]
  std::vector<std::vector<double>> load_;      // [num_layers][process]
  std::vector<Change> changes_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_BALANCE_STATE_H_
