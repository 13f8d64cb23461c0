#include "tools/cli/percentiles.h"

#include <algorithm>
#include <numeric>

namespace troupe {

Percentiles ComputePercentiles(std::vector<double> values) {
  Percentiles result;
  result.count = values.size();
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  // Integers, since 0.9 * 10 is not 9 everywhere.
  const auto rank = [&](size_t percent) {
    const size_t at = (percent * values.size() + 99) / 100;
    return values[std::max<size_t>(at, 1) - 1];
  };
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                static_cast<double>(values.size());
  result.p50 = rank(50);
  result.p90 = rank(90);
  result.p99 = rank(99);
  result.max = values.back();
  return result;
}

}  // namespace troupe
