// Memory, descriptors and threads of processes over time.
#ifndef TROUPE_TESTS_ROBUSTNESS_PROCESS_WATCH_H_
#define TROUPE_TESTS_ROBUSTNESS_PROCESS_WATCH_H_

#include <sys/types.h>

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

struct ProcessSize {
  double resident_mib = 0;
  size_t descriptors = 0;
  size_t threads = 0;
};

// Of /proc; all zero when the process is gone.
ProcessSize SizeOfProcess(pid_t pid);

// What processes may gain after they have warmed up.
struct GrowthLimits {
  double resident_mib = 0;
  size_t descriptors = 0;
  size_t threads = 0;
  size_t num_warm = 3;  // samples that do not count
};

// Collects samples of each run of each process. Not thread-safe.
class ProcessWatch {
 public:
  void Add(const std::string& name, pid_t pid, const ProcessSize& size);
  // A sentence per process that has grown by more than the limits: from the
  // largest of the first samples to the least of the last three, so that a peak
  // is no growth.
  std::vector<std::string> Problems(const GrowthLimits& limits) const;
  // A line per process with more than `min_samples`.
  std::string Report(size_t min_samples) const;

 private:
  std::map<std::pair<std::string, pid_t>, std::vector<ProcessSize>> samples_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_PROCESS_WATCH_H_
