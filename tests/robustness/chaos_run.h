// One run: a cluster, a load, faults one after the other, and the checks.
#ifndef TROUPE_TESTS_ROBUSTNESS_CHAOS_RUN_H_
#define TROUPE_TESTS_ROBUSTNESS_CHAOS_RUN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/robustness/chaos_cluster.h"
#include "tests/robustness/chaos_report.h"
#include "tests/robustness/process_watch.h"

namespace troupe {

struct ChaosOptions {
  ChaosClusterOptions cluster;  // num_experts is the model's
  uint64_t seed = 1;
  // Names; in each round all of them, in an order of the round's own.
  std::vector<std::string> faults;
  size_t num_rounds = 1;
  double minutes = 0;  // instead of rounds, when not 0
  // Faults of this seed that were done by earlier runs.
  size_t num_done = 0;
  double period_s = 4;
  int outage_ms = 2000;
  // Requests that would run at once if each ran as fast as alone; gives the
  // rate of arrivals.
  double streams = 6;
  double rate_per_s = 0;  // instead, when not 0
  size_t num_templates = 24;
  size_t max_prompt = 100;
  uint32_t max_tokens = 160;
  int timeout_ms = 20000;
  bool call_again = true;
  bool policies = true;           // also requests that are not exact
  bool spoil_references = false;  // for a control run: no response is right
  FaultLimits limits;
  GrowthLimits growth;
  // Hears of every fault that is over, and of everything else worth a line.
  std::function<void(const FaultResult&)> on_result;
  std::function<void(const std::string&)> say;
};

struct ChaosOutcome {
  std::vector<FaultResult> results;
  // "partition: no network namespace: ..."
  std::vector<std::string> skipped;
  // Of single faults and of the whole: every promise that was not kept. The
  // kinds of Problems(), and "hang", "growth", "integrity".
  std::vector<std::string> problems;
};

// Fails when the cluster does not start or a request alone does.
absl::StatusOr<ChaosOutcome> RunChaos(const ChaosOptions& options);

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_CHAOS_RUN_H_
