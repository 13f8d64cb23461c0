// Prints what this machine gives at most: read bandwidth and multiply-adds, on
// one thread and on all.
#include "tools/bench/machine_peak.h"

#include <cstdio>
#include <set>
#include <string>

#include "kernels/cpu_features.h"

int main() {
  const std::string missing = troupe::MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  const size_t available = troupe::AvailableThreads();
  std::printf("instruction set %s, %zu threads available\n",
              troupe::ChosenInstructionSet().c_str(), available);
  std::printf("%8s %16s %16s %16s %16s %16s\n", "threads", "read GB/s",
              "f32 GFLOP/s", "int8 Gop/s", "int4 Gop/s", "usual read GB/s");
  for (const size_t threads : std::set<size_t>{1, 2, available}) {
    if (threads > available) continue;
    troupe::ThreadPool pool(threads);
    const troupe::ReadBandwidth read = troupe::MeasureReadBandwidth(pool);
    std::printf("%8zu %16.1f %16.1f %16.1f %16.1f %16.1f\n", threads,
                read.best / 1e9, troupe::MeasurePeakFlops(pool) / 1e9,
                troupe::MeasurePeakInt8Ops(pool) / 1e9,
                troupe::MeasurePeakInt4Ops(pool) / 1e9, read.usual / 1e9);
  }
}
