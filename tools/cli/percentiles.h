// Percentiles of measured times.
#ifndef TROUPE_TOOLS_CLI_PERCENTILES_H_
#define TROUPE_TOOLS_CLI_PERCENTILES_H_

#include <cstddef>
#include <vector>

namespace troupe {

struct Percentiles {
  size_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};

// Nearest rank: the smallest value that at least p percent of the values do
// not exceed, so every percentile is a value that was measured. All zero for
// no values.
Percentiles ComputePercentiles(std::vector<double> values);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_PERCENTILES_H_
