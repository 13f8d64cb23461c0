// Updates, canaries, promotions and roll-backs of experts: what the command
// line does with a running cluster (docs/versions.md).
#ifndef TROUPE_TOOLS_CLI_EXPERTS_UPDATE_H_
#define TROUPE_TOOLS_CLI_EXPERTS_UPDATE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tools/cli/experts_client.h"

namespace troupe {

struct ExpertsUpdateOptions {
  std::string file;  // of update and canary
  std::string label;
  std::string checksum;             // of the file; empty: not checked
  uint32_t share = 0;               // of canary, of 10000
  std::vector<std::string> labels;  // of promote; empty: those of the canary
  bool keep_old = false;            // loaded
  bool one_by_one = false;          // an expert at a time
  uint32_t drain_ms = 0;            // 0: as the processes say
  // Of all transactions: chosen anew for every run.
  std::string run_id;
  // A line for people.
  std::function<void(const std::string& line)> say = [](const std::string&) {};
  // Waits until all routers use that revision, or says why they do not.
  std::function<void(uint64_t revision)> await_routers = [](uint64_t) {};
};

// Each of them leaves the cluster as it was when it returns an error, except
// where the message says otherwise.

// Loads a file's experts where they are, uses them for new sequences, and
// unloads the old ones when they have drained.
absl::Status UpdateExperts(ExpertsClient& client,
                           const ExpertsUpdateOptions& options);
// Loads them and uses them for a share of the new sequences. Without a file:
// changes the share.
absl::Status StartCanary(ExpertsClient& client,
                         const ExpertsUpdateOptions& options);
// What the canary used is used by all.
absl::Status PromoteCanary(ExpertsClient& client,
                           const ExpertsUpdateOptions& options);
// Ends the canary; without one, goes back to what was used before, and loads it
// again where it is gone.
absl::Status RollBack(ExpertsClient& client,
                      const ExpertsUpdateOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_EXPERTS_UPDATE_H_
