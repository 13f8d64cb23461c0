// The most that this machine gives: what benchmarks are a fraction of.
#ifndef TROUPE_TOOLS_BENCH_MACHINE_PEAK_H_
#define TROUPE_TOOLS_BENCH_MACHINE_PEAK_H_

#include "common/thread_pool.h"

namespace troupe {

// Bytes per second that the pool reads from memory, through a buffer that is
// larger than the caches.
struct ReadBandwidth {
  double best;   // of many runs of 64 MiB: what the memory can give
  double usual;  // the median of runs of 9 MiB, each a ParallelFor: what a
                 // kernel can hope for, beside whoever shares the memory
};
ReadBandwidth MeasureReadBandwidth(ThreadPool& pool);

// Floating-point operations per second (a fused multiply-add is two) of the
// pool in registers, with the chosen instruction set: the best of many short
// runs.
double MeasurePeakFlops(ThreadPool& pool);

// The same of integer operations (a multiply-add is two) on bytes, as the
// kernels of quantised weights do them: int8 by signed bytes with 32-bit sums,
// int4 by unsigned bytes whose products add up in 16 bits for a while, where
// that is faster. Only what the arithmetic cannot do without.
double MeasurePeakInt8Ops(ThreadPool& pool);
double MeasurePeakInt4Ops(ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_TOOLS_BENCH_MACHINE_PEAK_H_
