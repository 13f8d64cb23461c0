// Notices that the router of a model sends nearly everything to few experts.
#ifndef TROUPE_CLUSTER_COLLAPSE_DETECTOR_H_
#define TROUPE_CLUSTER_COLLAPSE_DETECTOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/clock.h"
#include "protos/cluster.pb.h"

namespace troupe {

struct CollapseOptions {
  // A layer has collapsed when its `top_k` hottest experts get more than this
  // share of the copies: it would be top_k / num_experts if all were equal, and
  // 1 if every token went to the same ones. At least 2: never.
  double share = 0.8;
  // With fewer copies of late nothing is said.
  double min_copies = 2000;
  // It is over when the share is that much below the bound.
  double margin = 0.05;
  // Between two warnings of one layer.
  milliseconds warn_every = milliseconds(60000);
};

// A pure function of what it is told. Not thread-safe.
class CollapseDetector {
 public:
  CollapseDetector(CollapseOptions options, size_t num_layers, size_t top_k);

  // recent_tokens_per_expert [num_experts] of a layer. Returns a warning to
  // log, or nothing.
  std::string Look(size_t layer,
                   absl::Span<const double> recent_tokens_per_expert,
                   SteadyTime now);

  // Layers that are collapsed now.
  std::vector<v1::RoutingCollapse> Collapsed(SteadyTime now) const;
  uint64_t num_collapses() const { return num_collapses_; }  // since the start

 private:
  struct Layer {
    bool collapsed = false;
    SteadyTime since;
    double share = 0;
    std::vector<size_t> hottest;  // [top_k]
    SteadyTime next_warning = SteadyTime::min();
  };

  const CollapseOptions options_;
  const size_t top_k_;
  std::vector<Layer> layers_;
  uint64_t num_collapses_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_COLLAPSE_DETECTOR_H_
