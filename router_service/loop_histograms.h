// What a serving loop measures of itself.
#ifndef TROUPE_ROUTER_SERVICE_LOOP_HISTOGRAMS_H_
#define TROUPE_ROUTER_SERVICE_LOOP_HISTOGRAMS_H_

#include "common/metrics/histogram.h"

namespace troupe {

// Thread-safe.
struct LoopHistograms {
  AtomicHistogram step_seconds{kHopBounds};   // of committed steps
  AtomicHistogram step_tokens{kCountBounds};  // of prompts and outputs
  AtomicHistogram queue_seconds{kFirstTokenBounds};  // before the first step
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_LOOP_HISTOGRAMS_H_
