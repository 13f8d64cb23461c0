// What a batcher measures of its work.
#ifndef TROUPE_EXPERT_SERVICE_BATCHER_HISTOGRAMS_H_
#define TROUPE_EXPERT_SERVICE_BATCHER_HISTOGRAMS_H_

#include "common/metrics/histogram.h"

namespace troupe {

// Thread-safe.
struct BatcherHistograms {
  AtomicHistogram service_seconds{kHopBounds};  // of each grouped GEMM
  AtomicHistogram batch_rows{kCountBounds};     // and its routed copies
  AtomicHistogram queue_seconds{kHopBounds};    // of each message, before it
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_BATCHER_HISTOGRAMS_H_
