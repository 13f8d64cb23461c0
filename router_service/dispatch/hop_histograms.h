// What a dispatcher measures of the hop to the experts.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_HOP_HISTOGRAMS_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_HOP_HISTOGRAMS_H_

#include "common/metrics/histogram.h"

namespace troupe {

// One observation per layer and step that was combined. Thread-safe.
struct HopHistograms {
  AtomicHistogram wait_seconds{kHopBounds};  // for the layer's experts
  // Of it, what was not the computing of the slowest process.
  AtomicHistogram hop_seconds{kHopBounds};
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_HOP_HISTOGRAMS_H_
