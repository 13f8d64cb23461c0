// How well a checkpoint predicts a text, and how far its predictions are from
// those of another checkpoint of the same model: what a numeric format costs.
#ifndef TROUPE_TOOLS_BENCH_PERPLEXITY_H_
#define TROUPE_TOOLS_BENCH_PERPLEXITY_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/fallback_policy.h"
#include "protos/cluster.pb.h"
#include "router_service/gating/capacity.h"

namespace troupe {

struct PerplexityOptions {
  std::string model_dir;
  std::string reference_dir;  // of the same vocabulary; empty: none
  // Documents end with a line "<|endoftext|>"; each is predicted on its own,
  // up to the model's context.
  std::string text;
  size_t max_documents = 0;  // 0: all
  size_t num_threads = 0;    // 0: all that may be used
  // Of the model, not of the reference; steps have at most 128 tokens.
  double capacity_factor = 0.0;
  RefuseBy refuse = RefuseBy::kPosition;
  FallbackPolicy fallback = FallbackPolicy::Exact();
};

struct PerplexityResult {
  size_t num_documents = 0;
  size_t num_tokens = 0;      // predicted ones: the first of a text is given
  double nats_per_token = 0;  // mean negative log-probability
  double perplexity = 0;      // e to the power of it
  // Beside the reference: mean Kullback-Leibler divergence of a position's
  // distribution from the reference's, in nats, and the share of positions
  // where both find the same token likeliest.
  double divergence = 0;
  double same_best = 0;
  v1::CopyUsage copies;  // what became of the model's routed copies
};

absl::StatusOr<PerplexityResult> MeasurePerplexity(
    const PerplexityOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_BENCH_PERPLEXITY_H_
