// What is done to the cluster while it serves.
#ifndef TROUPE_TESTS_ROBUSTNESS_FAULTS_H_
#define TROUPE_TESTS_ROBUSTNESS_FAULTS_H_

#include <cstddef>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/robustness/chaos_cluster.h"

namespace troupe {

// What a fault needs, and what it tells.
struct FaultContext {
  ChaosCluster& cluster;
  std::mt19937_64& random;
  int outage_ms = 1000;  // between the fault and its end
  // Of the last fault; set before anything happens.
  std::string victim;
  uint64_t num_updates = 0;  // rolling updates so far, for their labels

  ChaosProcess& Pick(const std::vector<ChaosProcess*>& candidates);
};

struct Fault {
  std::string name;
  std::string what;  // for --list and the documentation
  // The gateway is lost: clients call again.
  bool cuts_streams = false;
  // Why it cannot be done here; empty: it can.
  std::function<std::string(ChaosCluster&)> why_not;
  // Does it and ends it, in this thread. An error is a promise that was not
  // kept, for example an exit status.
  std::function<absl::Status(FaultContext&)> run;
};

const std::vector<Fault>& AllFaults();

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_FAULTS_H_
